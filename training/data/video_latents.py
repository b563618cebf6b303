"""Prepared videos as the stages see them: stories of latents, and a text encoder that only looks up.

Nothing is held but headers: latents and embeddings are read from memory-mapped files when they are drawn, so that any
number of processes share one copy and a data set may be larger than memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from shotstream.runtime.errors import UserError
from shotstream.runtime.model.context import choose_context
from shotstream.training.data.prepared import STORIES, DatasetInfo, PreparedShot, read_header, read_info


@dataclass(frozen=True)
class _Story:
    """Where a story is: its file, the number of its first shot in it, and its shots."""

    path: Path
    first: int
    shots: tuple[PreparedShot, ...]


class VideoLatents:
    """The stories of a folder that ``prepare`` made, in the order of their files (see ``stories.TrainingStories``).

    Raises UserError for a folder without any.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info: DatasetInfo = read_info(folder)
        self._stories: list[_Story] = []
        for path in sorted((folder / STORIES).glob("*.safetensors")):
            first = 0
            for shots in read_header(path).stories:
                self._stories.append(_Story(path, first, shots))
                first += len(shots)
        if not self._stories:
            raise UserError(f"{folder} holds no prepared video; run 'shotstream train prepare' again")

    def __len__(self) -> int:
        return len(self._stories)

    def shots(self, story: int) -> int:
        """Shots of a story."""
        return len(self._stories[story].shots)

    def latents(self, story: int, shot: int) -> int:
        """Latents of the shot's clip."""
        return self._stories[story].shots[shot].latents

    def singles(self, story: int, shot: int) -> int:
        """How many frames of the shot were encoded alone."""
        return len(self._stories[story].shots[shot].positions)

    def clip(self, story: int, shot: int, frames: int) -> Tensor:
        """The first ``frames`` latents of a shot, fewer where it has fewer, float32 ``[frames, C, H, W]``."""
        found = self._stories[story]
        with safe_open(found.path, "pt") as file:
            return file.get_slice(f"clip.{found.first + shot}")[:frames].float()

    def clip_parts(self, story: int, shot: int, frames: int) -> Tensor:
        """Nothing is known of what is seen where: uint8 ``[frames, H, W, 0]``."""
        count = min(frames, self.latents(story, shot))
        return torch.zeros(count, *self.info.latent[1:], 0, dtype=torch.uint8)

    def single(self, story: int, shot: int, position: int) -> Tensor:
        """The ``position``-th of the singly encoded frames of a shot, float32 ``[C, H, W]``."""
        return self._single(self._stories[story], shot, position)

    def single_parts(self, story: int, shot: int, position: int) -> Tensor:
        """uint8 ``[H, W, 0]``."""
        return torch.zeros(*self.info.latent[1:], 0, dtype=torch.uint8)

    def context(self, story: int, shot: int, budget: int = 6) -> tuple[Tensor, list[int]]:
        """Context latents ``[budget, C, H, W]`` and their shots, chosen from the shots before ``shot`` by their own
        lengths. UserError for another budget than the folder was prepared for.
        """
        if budget != self.info.context:
            raise UserError(f"{self.folder} was prepared for {self.info.context} context frames, not for {budget}")
        found = self._stories[story]
        chosen = choose_context([s.length for s in found.shots[:shot]], budget)
        latents = [self._single(found, s, found.shots[s].positions.index(frame)) for s, frame in chosen]
        return torch.stack(latents), [s for s, _ in chosen]

    def captions(self, story: int, shots: Sequence[int], wording: int | None) -> list[str]:
        """Whole captions of the given shots; videos have one wording."""
        return [self._stories[story].shots[shot].caption for shot in shots]

    def camera_moves(self, story: int, shot: int) -> bool:
        """True: a video does not tell."""
        return True

    def choices(self, story: int, shot: int, shown: int, seed: int) -> Tensor:
        """None: a video does not tell what it might have shown."""
        return torch.empty(0)

    @staticmethod
    def _single(found: _Story, shot: int, index: int) -> Tensor:
        with safe_open(found.path, "pt") as file:
            return file.get_slice(f"singles.{found.first + shot}")[index].float()

    def text_places(self) -> dict[str, tuple[Path, str]]:
        """For every caption the file and the name of its embedding."""
        return {
            shot.caption: (story.path, f"text.{story.first + k}")
            for story in self._stories
            for k, shot in enumerate(story.shots)
        }


class CachedText(nn.Module):
    """Looks up the embeddings of all captions of some prepared folders; takes the place of a text encoder in training.

    A module only so that it is moved and frozen like one; it has no weights.
    """

    device_of: Tensor

    def __init__(self, *data: VideoLatents) -> None:
        super().__init__()
        self.length, self.dim = data[0].info.text
        if any(each.info.text != data[0].info.text or each.info.weights != data[0].info.weights for each in data):
            names = ", ".join(str(each.folder) for each in data)
            raise UserError(f"{names} were prepared with different models; prepare them with the same")
        self._places = {caption: place for each in data for caption, place in each.text_places().items()}
        self.register_buffer("device_of", torch.empty(0), persistent=False)

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Embeddings ``[N, length, dim]``, float32 on this module's device; UserError for an unknown caption."""
        out = torch.zeros(len(captions), self.length, self.dim)
        for row, caption in zip(out, captions, strict=True):
            if caption not in self._places:
                raise UserError(
                    f"no embedding was prepared for the caption {caption[:80]!r}; "
                    "train on the captions of the prepared videos, or prepare again"
                )
            path, name = self._places[caption]
            with safe_open(path, "pt") as file:
                known = file.get_tensor(name)
            row[: len(known)] = known
        return out.to(self.device_of.device)
