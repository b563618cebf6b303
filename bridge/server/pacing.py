"""Credit and lead of one session: how many frames may go out, and when its client will run dry. Pure.

Credit is absolute and only grows: the number of the first frame that may not be sent. It is granted when frames are
shown, so it bounds what lies between making and showing, which is the time that a player waits for an effect.
"""

from __future__ import annotations

from collections import deque

HASTE, HASTE_S, HASTE_WAITS_S = 3, 2.0, 1.0
"""A client with so many cuts at once within so many seconds is hasty: films that run dry within a second come first."""


class Pacing:
    """``window`` frames may lie between what is sent and what is shown; ``most`` at the very most. Times in seconds."""

    def __init__(self, window: int, most: int, fps: int, now: float) -> None:
        self.window, self.most, self.fps = window, most, fps
        self.next_seq = 0
        """Number of the next frame to send."""
        self.upto = window
        self.played = 0
        self.late = 0
        self._played_at = now

    def credit(self, upto: int, played: int, late: int, now: float) -> None:
        """What a client grants; never more than ``most`` beyond what it has shown, whatever it asks for."""
        shown = min(played, self.next_seq)
        self.upto = max(self.upto, min(upto, shown + self.most))
        self.played = max(self.played, shown)
        self.late, self._played_at = late, now

    def flush(self) -> None:
        """What lies in the client's queue is dropped: it makes room for as much."""
        self.upto = max(self.upto, self.next_seq + self.window)

    def attached(self, now: float) -> None:
        """A client is back: it has shown nothing while it was away."""
        self._played_at = now

    def room(self, frames: int) -> bool:
        """True if a chunk of so many frames may be sent."""
        return self.upto - self.next_seq >= frames

    def lead_s(self, now: float) -> float:
        """Seconds of film in the client's queue, estimated from its last credit."""
        shown = self.played + max(0.0, now - self._played_at) * self.fps
        return max(0.0, (self.next_seq - shown) / self.fps)

    @property
    def credit_left(self) -> int:
        """Frames that may still be sent."""
        return max(0, self.upto - self.next_seq)

    @property
    def queued(self) -> int:
        """Frames sent and not known to be shown."""
        return max(0, self.next_seq - self.played)


class Haste:
    """How often a client cuts at once. A few cuts are what `now` is for; somebody who hammers a button would take the
    model from all other films, and see nothing because every chunk is given up for the next. Times in seconds."""

    def __init__(self) -> None:
        self._pressed: deque[float] = deque(maxlen=HASTE)

    def pressed(self, now: float) -> None:
        """A cut at once was asked for."""
        self._pressed.append(now)

    def hasty(self, now: float) -> bool:
        """True if there were too many lately."""
        return len(self._pressed) == HASTE and now - self._pressed[0] < HASTE_S
