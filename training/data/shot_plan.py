"""Which frames of a video become latents: of every shot a clip, and single frames that a later shot may be shown.

Numbers only, no pixels. A played frame is one at the model's pace, counted from its shot's first; a native frame is
one of the file. Source for lengths and choice: the intervals themselves; adding up lengths as the reference's data set
does would shift every label behind a gap between shots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from shotstream.runtime.decoders.common import TIME_FACTOR
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.context import choose_context

PACES = ("model", "reference")


@dataclass(frozen=True)
class Pace:
    """How time is sampled. ``frames``: the most a clip may have, 4m + 1; ``fps``: the model's.

    ``kind`` "model": a faster video is thinned to ``fps`` (a slower one keeps its frames: repeated ones would teach
    stutter), and of a long shot the beginning is the clip. "reference": every native frame counts as played, and a
    shot of at least ``frames`` gives every ``length // frames``-th, so long shots look faster.
    """

    frames: int
    fps: int
    kind: str = "model"

    def __post_init__(self) -> None:
        if self.kind not in PACES:
            raise UserError(f"the pace is one of {', '.join(PACES)}, not {self.kind!r}")
        if self.frames < 1 or self.frames % TIME_FACTOR != 1:
            raise UserError(f"a clip has 4m + 1 frames; {self.frames} is not such a number")

    def step(self, fps: Fraction) -> Fraction:
        """Native frames per played frame, at least 1."""
        return max(Fraction(1), fps / self.fps) if self.kind == "model" else Fraction(1)


@dataclass(frozen=True)
class ShotPlan:
    """Native numbers of a shot's ``clip`` (4m + 1 frames) and of the ``singles`` encoded alone, at ``positions`` of its
    ``length`` played frames.
    """

    clip: tuple[int, ...]
    singles: tuple[int, ...]
    positions: tuple[int, ...]
    length: int


def plan_story(intervals: Sequence[tuple[int, int]], fps: Fraction, pace: Pace, budget: int) -> list[ShotPlan]:
    """The frames of every shot of one story. ``singles`` are all that :func:`choose_context` can name for any of its
    shots, and for one more behind the last.
    """
    step = pace.step(fps)
    lengths = [ceil((end - start) / step) for start, end in intervals]
    named: list[set[int]] = [set() for _ in lengths]
    for history in range(1, len(lengths) + 1):
        for shot, position in choose_context(lengths[:history], budget):
            named[shot].add(position)
    plans = []
    for (start, _), length, found in zip(intervals, lengths, named, strict=True):
        stride = max(1, length // pace.frames) if pace.kind == "reference" else 1
        played = range(0, length, stride)[: pace.frames]
        played = played[: len(played) - (len(played) - 1) % TIME_FACTOR]
        native = [start + int(p * step) for p in range(length)]
        positions = tuple(sorted(found))
        plans.append(ShotPlan(tuple(native[p] for p in played), tuple(native[p] for p in positions), positions, length))
    return plans
