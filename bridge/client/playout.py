"""When each frame is shown: by its pts, at the film's own pace, whatever the network and the model do. Pure.

A frame's ideal time follows from the one before it, so a film that froze goes on from where it stood. This file knows
nothing of messages or pictures: anything with a `seq`, `epoch`, `shot`, `pts` and `end` can be played.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Literal, Protocol, TypeVar

STALL_S = 0.5
"""An application that does not look for so long (a loading screen) has not missed the film: it waited."""
JUMP_FRAMES = 4
"""A step in pts of more frames than this is no pause in the film but a hole; it is shown without one."""


class Playable(Protocol):
    """What `Playout` needs to know of a frame."""

    seq: int
    epoch: int
    shot: int
    pts: int
    end: bool


F = TypeVar("F", bound=Playable)


class Playout(Generic[F]):
    """The frames of one film that have come and have not been shown, and the one that is shown.

    ``window`` is how many frames may lie here; `grant` says when the server is to be told of room. ``jitter_s``: a
    frame that comes later than this behind its time counts as late and moves the film's clock (default: half a frame).
    """

    def __init__(
        self,
        fps: float = 16.0,
        tb: int = 90_000,
        window: int = 24,
        chunk: int = 12,
        policy: Literal["pace", "latest"] = "pace",
        jitter_s: float | None = None,
    ) -> None:
        self.period_s = 1.0 / fps
        self.window = window
        self.next_seq = 0
        """The number of the next frame to come."""
        self.upto = window
        """Frames below this may be sent; the server grants itself the first window."""
        self.shown: F | None = None
        self.presented = self.skipped = self.dropped = self.late = 0
        """Frames shown; passed over because the application looks less often than frames come; thrown away or never
        received; how often nothing was there to show."""
        self.holding = False
        """The shown frame stands longer than its time, for whatever reason."""
        self._tb, self._chunk, self._policy = tb, chunk, policy
        self._jitter_s = self.period_s / 2 if jitter_s is None else jitter_s
        self._queue: deque[tuple[F, float]] = deque()
        self._shown_due = 0.0
        self._looked: float | None = None
        self._at_once = True
        self._expecting, self._paused = True, False
        self._held_from = 0.0
        self._frozen_s = self._freezing_s = 0.0

    # --- what comes ---------------------------------------------------------------------------------------------------
    def add(self, frame: F, now: float) -> bool:
        """Take a frame that came at ``now``; False where its number has been before. Numbers left out count as
        dropped."""
        if frame.seq < self.next_seq:
            return False
        self.skip(frame.seq)
        self.next_seq = frame.seq + 1
        self._queue.append((frame, now))
        self._expecting = True
        if self._policy == "latest" and frame.end:
            self._keep(self._chunk)
        return True

    def skip(self, until: int) -> int:
        """Frames below ``until`` will not come any more; how many that are."""
        missing = max(0, until - self.next_seq)
        self.next_seq += missing
        self.dropped += missing
        return missing

    def flush(self, epoch: int) -> int:
        """Drop what is queued from before ``epoch``; the next frame is shown at once. How many were dropped."""
        kept = deque((frame, came) for frame, came in self._queue if frame.epoch >= epoch)
        dropped = len(self._queue) - len(kept)
        self._queue = kept
        self.dropped += dropped
        self._at_once = True
        return dropped

    def catch_up(self, keep_ms: float = 0.0) -> int:
        """Drop the oldest frames until at most ``keep_ms`` (0: one frame) are queued, and show the next at once: for
        an application that wants the newest picture rather than every picture. How many were dropped."""
        return self._keep(max(1, int(keep_ms / 1000 / self.period_s)))

    def _keep(self, most: int) -> int:
        dropped = max(0, len(self._queue) - most)
        for _ in range(dropped):
            self._queue.popleft()
        self.dropped += dropped
        self._at_once = self._at_once or dropped > 0
        return dropped

    def begin_at(self, seq: int) -> None:
        """The film's first frame has this number, not 0."""
        self.next_seq, self.upto = seq, seq + self.window

    def restart(self, window: int) -> None:
        """A new film begins at number 0 in the place of one that was lost; what is shown stays until it comes."""
        self.dropped += len(self._queue)
        self._queue.clear()
        self.next_seq, self.upto, self.window, self._at_once = 0, window, window, True

    def rest(self) -> None:
        """No frames are to be expected for now (no story): until the next one comes, holding the last is no freeze."""
        self._expecting = False
        self._frozen_s += self._freezing_s
        self._freezing_s = 0.0

    def pause(self, paused: bool) -> None:
        """The film was paused, or goes on: what is queued plays on, but a film that stands still then is no freeze."""
        self._paused = paused
        self.rest()

    # --- what is shown ------------------------------------------------------------------------------------------------
    def due(self, now: float) -> F | None:
        """The newest frame whose time has come, or the shown one again; None before the first. ``now`` in seconds."""
        if self._looked is not None and self.shown is not None and now - self._looked > STALL_S:
            waited = now - self._looked - self.period_s
            self._shown_due += waited
            self._held_from += waited
        self._looked = now if self._looked is None else max(now, self._looked)
        first = True
        while self._queue:
            frame, came = self._queue[0]
            when = self._when(frame)
            if self._at_once or self.shown is None:
                when = now
            elif came > when + self._jitter_s:
                self._was_late(when, now)
                when = now
            if when > now:
                break
            self._queue.popleft()
            if not first:
                self.skipped, self.presented = self.skipped + 1, self.presented - 1
            self._present(frame, when)
            first = False
        if first:
            self._hold(now)
        return self.shown

    def take(self, now: float) -> F | None:
        """The next frame at once, whatever its time; None where none is queued. For tools that want every frame."""
        if not self._queue:
            return None
        frame, _ = self._queue.popleft()
        self._looked = now
        self._present(frame, now)
        return frame

    def _when(self, frame: F) -> float:
        if self.shown is None:
            return 0.0
        step = (frame.pts - self.shown.pts) / self._tb
        if not 0 < step <= JUMP_FRAMES * self.period_s:
            step = self.period_s
        return self._shown_due + step

    def _present(self, frame: F, when: float) -> None:
        self.shown, self._shown_due, self._at_once, self.holding = frame, when, False, False
        self._frozen_s += self._freezing_s
        self._freezing_s = 0.0
        self.presented += 1

    def _was_late(self, when: float, now: float) -> None:
        """A freeze ends; it may have passed between two looks."""
        if not self.holding:
            self.late += 1
            self._frozen_s += max(0.0, now - when)
        elif self._freezing_s:
            self._freezing_s = max(0.0, now - self._held_from)

    def _hold(self, now: float) -> None:
        ends = self._shown_due + self.period_s
        if self.shown is None or self._queue or now <= ends + self._jitter_s:
            return
        if not self.holding:
            self.holding, self._held_from = True, ends
            self.late += self._expecting and not self._paused
        if self._expecting and not self._paused:
            self._freezing_s = now - self._held_from

    # --- what is told -------------------------------------------------------------------------------------------------
    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def played(self) -> int:
        """The first frame number that was neither shown nor dropped."""
        return self._queue[0][0].seq if self._queue else self.next_seq

    @property
    def lead_ms(self) -> float:
        """How much film lies ready, in ms: what a player does now shows behind it."""
        return len(self._queue) * self.period_s * 1000

    @property
    def frozen_s(self) -> float:
        """Seconds in which the film stood still because nothing was there to show."""
        return self._frozen_s + self._freezing_s

    @property
    def held_s(self) -> float:
        """For how long the shown frame has stood beyond its time, in seconds."""
        return max(0.0, (self._looked or 0.0) - self._held_from) if self.holding else 0.0

    def grant(self, at_once: bool = False) -> int | None:
        """The frame number up to which the server may now send, or None while there is nothing worth telling: it is
        told in steps of half a chunk, and at once when there is room for a whole chunk: a server that hears of that
        three frames later begins three frames later, which is a freeze where the model is just fast enough."""
        upto = self.played + self.window
        step = max(1, self._chunk // 2)
        starving = not self._queue and self.upto - self.next_seq < self._chunk
        fits = self.upto - self.next_seq < self._chunk <= upto - self.next_seq
        if not at_once and upto - self.upto < step and not fits and not (starving and upto > self.upto):
            return None
        self.upto = max(self.upto, upto)
        return self.upto


class Hold(Generic[F]):
    """What an engine can draw while it waits, and how a new shot comes in. Call `update` once per drawn image.

    ``holding`` and ``hold_s`` say that the film stands still and for how long: time for a slow push-in, a vignette, a
    line of dialogue. On a cut ``previous`` is the last frame of the old shot and ``weight`` runs from 0 to 1 within
    ``fade_ms``: draw ``previous * (1 - weight) + frame * weight``. 0 ms is a hard cut.
    """

    def __init__(self, fade_ms: float = 120.0, after_ms: float = 80.0) -> None:
        """``after_ms``: shorter waits are not told, they would only flicker."""
        self.fade_ms, self.after_ms = max(0.0, fade_ms), max(0.0, after_ms)
        self.holding = False
        self.hold_s = 0.0
        self.weight = 1.0
        self.previous: F | None = None
        self._frame: F | None = None
        self._began = 0.0

    def update(self, now: float, frame: F | None, held_s: float = 0.0) -> F | None:
        """``frame`` and ``held_s`` as the film gives them (`Film.frame`, `Film.held_s`); returns ``frame``."""
        self.holding = held_s * 1000 > self.after_ms
        self.hold_s = held_s if self.holding else 0.0
        if frame is not None and self._frame is not None and frame.shot != self._frame.shot:
            self.previous, self._began = self._frame, now
        self._frame = frame if frame is not None else self._frame
        faded = (now - self._began) * 1000
        if self.previous is None or faded >= self.fade_ms:
            self.previous, self.weight = None, 1.0
        else:
            self.weight = max(0.0, faded / self.fade_ms)
        return frame
