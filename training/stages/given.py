"""What stages are given and do not train: codec and text encoder, and the stories that other processes read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from shotstream.training.data.stories import TrainingStories


class Codec(Protocol):
    """Latents to pixels in [-1, 1], and single frames back."""

    def decode(self, z_BFCHW: Tensor) -> Tensor:
        """Video ``[B, 1 + 4 (F - 1), 3, H, W]``."""
        ...

    def encode_frames(self, frames_NCHW: Tensor) -> Tensor:
        """Latents ``[N, C, h, w]`` of frames, each encoded alone."""
        ...


class FrozenText(Protocol):
    """Captions to embeddings; a module, so that it can be moved."""

    def encode(self, captions: list[str]) -> Tensor:
        """Embeddings ``[N, L, D]``, float32 on the encoder's device."""
        ...


class Unread:
    """Stories of which nothing is read: drawing a sample from them takes the same random numbers and no time.

    Every process draws a step's whole batch, and reads only its own rows of it.
    """

    def __init__(self, stories: TrainingStories) -> None:
        self._stories = stories

    def __len__(self) -> int:
        return len(self._stories)

    def shots(self, story: int) -> int:
        return self._stories.shots(story)

    def latents(self, story: int, shot: int) -> int:
        return self._stories.latents(story, shot)

    def singles(self, story: int, shot: int) -> int:
        return self._stories.singles(story, shot)

    def camera_moves(self, story: int, shot: int) -> bool:
        return self._stories.camera_moves(story, shot)

    def clip(self, story: int, shot: int, frames: int) -> Tensor:
        return torch.empty(frames, 0, 0, 0)

    def clip_parts(self, story: int, shot: int, frames: int) -> Tensor:
        return torch.empty(frames, 0, 0, 0)

    def single(self, story: int, shot: int, position: int) -> Tensor:
        return torch.empty(0, 0, 0)

    def single_parts(self, story: int, shot: int, position: int) -> Tensor:
        return torch.empty(0, 0, 0)

    def context(self, story: int, shot: int, budget: int = 6) -> tuple[Tensor, list[int]]:
        return torch.empty(budget, 0, 0, 0), [0] * budget

    def captions(self, story: int, shots: Sequence[int], wording: int | None) -> list[str]:
        return [""] * len(shots)

    def choices(self, story: int, shot: int, shown: int, seed: int) -> Tensor:
        return torch.empty(0)
