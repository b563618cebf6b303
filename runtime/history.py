"""What a session remembers of finished shots: the frames that a later shot may still be shown, and nothing else.

The frame choice (`choose_context`) depends on the number of shots and their lengths only, so
the frames that can ever be picked are known when a shot ends: at most eight in all, of at most six shots, however long
the session plays. Frames are kept as latents, each encoded alone (5.3). This file decodes and encodes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from torch import Tensor

from shotstream.runtime.model.context import choose_context


def reachable_frames(lengths: Sequence[int], budget: int) -> frozenset[tuple[int, int]]:
    """(shot, pixel frame) pairs that `choose_context` picks after these shots, or after any number of further ones.

    The lengths of further shots do not matter: the counts depend on the number of shots, and a shot's positions on the
    shots up to itself. After `budget` further shots none of the present ones is picked any more.
    """
    return _reachable(tuple(lengths), budget)


@lru_cache(maxsize=4096)  # shots of one length ask the same again and again, and the frame loop waits for it
def _reachable(lengths: tuple[int, ...], budget: int) -> frozenset[tuple[int, int]]:
    picked = (choose_context([*lengths, *[1] * further], budget) for further in range(budget))
    return frozenset(pair for pairs in picked for pair in pairs if pair[0] < len(lengths))


@dataclass
class PastShot:
    """A finished shot that later shots may still be shown."""

    number: int
    caption: str
    """The full caption it was made with, at its end if it was steered: global caption, label, shot caption."""
    length: int
    """Pixel frames."""
    latents: dict[int, Tensor] = field(default_factory=dict)
    """Pixel frame inside the shot -> its latent [C, h, w]."""
    earlier: dict[int, str] = field(default_factory=dict)
    """Of a shot that was steered: frames from before -> the full caption they were made under, where it is another."""

    def caption_of(self, frame: int) -> str:
        """The full caption that a frame was made under, and is read with when it is context.

        Per frame and not per shot: context frames are to read what they show, and often a shot's first frame is the
        only one of it that is shown again, while the steer came after it.
        """
        return self.earlier.get(frame, self.caption)


@dataclass(frozen=True)
class ContextFrame:
    """One frame of the next shot's context, with the number of the shot it comes from and the caption it reads."""

    shot: int
    frame: int
    caption: str
    latent_CHW: Tensor


class History:
    """The finished shots that matter, oldest first. Size is bounded; shot numbers are those of the whole session."""

    def __init__(self, budget: int, shots: Sequence[PastShot] = ()) -> None:
        self.budget = budget
        self.shots: list[PastShot] = list(shots)

    def copy(self) -> History:
        """An independent history that shares the latents, which are never written to."""
        shots = (replace(s, latents=dict(s.latents), earlier=dict(s.earlier)) for s in self.shots)
        return History(self.budget, list(shots))

    def captions(self) -> set[str]:
        """Every full caption that a later shot's context may read."""
        return {shot.caption_of(frame) for shot in self.shots for frame in shot.latents}

    def candidates(self, length: int) -> set[int]:
        """Frames of a running shot that can be picked if it ends after `length` pixel frames."""
        lengths = [s.length for s in self.shots] + [length]
        return {frame for shot, frame in reachable_frames(lengths, self.budget) if shot == len(self.shots)}

    def add(self, shot: PastShot) -> None:
        """Take a finished shot and drop what can no longer be picked; its latents must hold its candidates."""
        # With more than `budget` shots each of the last `budget` gives its first frame and older ones give none, so
        # forgetting the older ones does not change any later choice.
        self.shots = [*self.shots, shot][-self.budget :]
        keep = reachable_frames([s.length for s in self.shots], self.budget)
        for index, past in enumerate(self.shots):
            past.latents = {frame: z for frame, z in past.latents.items() if (index, frame) in keep}
            past.earlier = {frame: caption for frame, caption in past.earlier.items() if frame in past.latents}

    def context(self) -> list[ContextFrame]:
        """The next shot's context in sampling order; empty before the first shot has ended."""
        chosen = choose_context([s.length for s in self.shots], self.budget)
        return [
            ContextFrame(past.number, frame, past.caption_of(frame), past.latents[frame])
            for past, frame in ((self.shots[index], frame) for index, frame in chosen)
        ]
