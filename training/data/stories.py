"""What the stages need of the stories they train on, whether these were drawn from seeds or cut from videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

TRIES = 1000
"""Draws of a shot that is long enough; the story world needs one."""


class TrainingStories(Protocol):
    """Stories of shots as latents. Stories may differ in their number of shots, and shots in their length."""

    def __len__(self) -> int:
        """How many stories."""
        ...

    def shots(self, story: int) -> int:
        """Shots of a story, at least 1."""
        ...

    def latents(self, story: int, shot: int) -> int:
        """Latents of the shot's clip."""
        ...

    def singles(self, story: int, shot: int) -> int:
        """How many frames of the shot are there encoded alone, at least 1."""
        ...

    def clip(self, story: int, shot: int, frames: int) -> Tensor:
        """The first ``frames`` latents of a shot, fewer where it has fewer, float32 ``[frames, C, H, W]``."""
        ...

    def clip_parts(self, story: int, shot: int, frames: int) -> Tensor:
        """Parts seen at the ends of the same latents, uint8 ``[frames, H, W, parts]``; no parts where unknown."""
        ...

    def single(self, story: int, shot: int, position: int) -> Tensor:
        """The ``position``-th of the singly encoded frames of a shot, float32 ``[C, H, W]``."""
        ...

    def single_parts(self, story: int, shot: int, position: int) -> Tensor:
        """Parts seen in the same frame, uint8 ``[H, W, parts]``."""
        ...

    def context(self, story: int, shot: int, budget: int = 6) -> tuple[Tensor, list[int]]:
        """Context latents ``[budget, C, H, W]`` and their shots, chosen from the shots before ``shot``."""
        ...

    def captions(self, story: int, shots: Sequence[int], wording: int | None) -> list[str]:
        """Whole captions of the given shots; ``wording`` seeds a paraphrase where there are any."""
        ...

    def camera_moves(self, story: int, shot: int) -> bool:
        """Whether the camera moves in a shot; true where nobody knows."""
        ...

    def choices(self, story: int, shot: int, shown: int, seed: int) -> Tensor:
        """What a shot shows and no caption says, the first ``shown`` shots being known: ``[N]`` of -1 and 1, NaN where
        there is nothing to choose; none where stories do not tell. ``seed`` decides between several spellings.
        """
        ...


class CaptionEncoder(Protocol):
    """A text encoder, or the embeddings that one made earlier."""

    def encode(self, captions: list[str]) -> Tensor:
        """Embeddings ``[N, L, D]``; rows behind a caption's end are zero."""
        ...


def draw_shot(shots: int, first_shot: float, rng: np.random.Generator) -> int:
    """The first of ``shots`` shots with probability ``first_shot``, else one of the others."""
    first = rng.random() < first_shot
    return 0 if first or shots == 1 else int(rng.integers(1, shots))
