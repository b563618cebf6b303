"""A player on paper: it shows each chunk's frames at the film's rate and waits when the next chunk is not there.

It begins when the first chunk arrives and may have any number of chunks ahead, so a fast model's lead hides a slow
chunk; that a chunk took longer than its own frames last is counted elsewhere (`Position.over_limit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_NOTHING_S = 1e-9
"""Less than this is rounding, no stall."""


@dataclass(frozen=True)
class Playout:
    """What the player saw."""

    stalls_s: tuple[float, ...]
    """For every chunk, how long the picture stood still before it; 0.0 where it came in time."""

    @property
    def late(self) -> int:
        """Chunks that came after the frames before them had run out."""
        return sum(stall > 0 for stall in self.stalls_s)

    @property
    def longest_s(self) -> float:
        """The longest stall; 0.0 without any."""
        return max(self.stalls_s, default=0.0)

    @property
    def total_s(self) -> float:
        """All stalls together."""
        return sum(self.stalls_s)


def play_out(arrivals_s: Sequence[float], frames: Sequence[int], frames_per_second: float) -> Playout:
    """Play chunks of `frames` frames each that arrive at these times, on any clock, in order.

    A chunk is due when the frames before it have been shown. A late one moves everything behind it: time that was lost
    is not made up by showing faster."""
    stalls: list[float] = []
    runs_out = arrivals_s[0] if arrivals_s else 0.0
    for arrival, count in zip(arrivals_s, frames, strict=True):
        stall = arrival - runs_out
        stalls.append(stall if stall > _NOTHING_S else 0.0)
        runs_out = max(runs_out, arrival) + count / frames_per_second
    return Playout(tuple(stalls))
