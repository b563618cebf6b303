"""The past of a batch of stories, true or of a model's own making, and which of its frames a student is shown.

A memory is what one method remembers of earlier shots: frames, each with its flag for the rotary jump and the caption
that it reads. All stories of a batch stand at the same shot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.model.context import choose_context
from shotstream.training.data.latents import LatentStories

SLOTS = 6
"""Context frames of the teacher, and of every memory that does not say otherwise."""


class Past(Protocol):
    """Earlier shots of B stories."""

    shot_frames: int
    """Pixel frames of a shot."""

    def single(self, shot: int, frame: int) -> Tensor:
        """One pixel frame of a shot, encoded alone, [B, C, H, W]."""
        ...

    def clip(self, shot: int) -> Tensor:
        """A whole shot, encoded as a clip, [B, F, C, H, W]."""
        ...


class TruePast:
    """The stories as they were rendered."""

    def __init__(self, data: LatentStories, stories: Sequence[int], device: torch.device) -> None:
        self.data, self.stories, self.device = data, stories, device
        self.shot_frames = data.plan.frames

    def single(self, shot: int, frame: int) -> Tensor:
        """See :class:`Past`; where the frame was not encoded alone, its nearest neighbour stands in for it."""
        position = min(range(len(self.data.positions)), key=lambda i: abs(self.data.positions[i] - frame))
        return torch.stack([self.data.single(s, shot, position) for s in self.stories]).to(self.device)

    def clip(self, shot: int) -> Tensor:
        """See :class:`Past`."""
        return torch.stack([self.data.clip(s, shot, (self.shot_frames + 3) // 4) for s in self.stories]).to(self.device)


class OwnPast:
    """What a model has made so far: shots as latents, decoded once."""

    def __init__(self, vae: TinyVAE, shot_frames: int) -> None:
        self.vae, self.shot_frames = vae, shot_frames
        self.clips: list[Tensor] = []
        self.videos: list[Tensor] = []

    def add(self, latents_BFCHW: Tensor) -> Tensor:
        """Append a finished shot; returns its pixels, [B, frames, 3, height, width] in [-1, 1]."""
        self.clips.append(latents_BFCHW.detach().float())
        with torch.no_grad():
            self.videos.append(self.vae.decode(self.clips[-1]))
        return self.videos[-1]

    @torch.no_grad()
    def single(self, shot: int, frame: int) -> Tensor:
        """See :class:`Past`."""
        return self.vae.encode_frames(self.videos[shot][:, frame]).float()

    def clip(self, shot: int) -> Tensor:
        """See :class:`Past`."""
        return self.clips[shot]


@dataclass(frozen=True)
class Recalled:
    """Context of a shot: clean latents [B, K, C, H, W]; per context frame its flag and the shot whose caption it
    reads; and the flag of the shot itself.
    """

    context_BFCHW: Tensor
    flags: tuple[int, ...]
    captions: tuple[int, ...]
    flag: int


Memory = Callable[[Past, int], Recalled]
"""(past, number of the shot to make, at least 1) -> what is recalled."""


def sampled(budget: int = SLOTS, remainder: str = "spread") -> Memory:
    """Ours: single frames spread over all past shots, each under its own caption (see `choose_context`)."""

    def recall(past: Past, shot: int) -> Recalled:
        chosen = choose_context([past.shot_frames] * shot, budget, remainder)
        shots = tuple(s for s, _ in chosen)
        context = torch.stack([past.single(s, frame) for s, frame in chosen], dim=1)
        return Recalled(context, shots, shots, shots[-1] + 1)

    return recall


def forgotten(past: Past, shot: int) -> Recalled:
    """No global cache: every shot begins as the first one does."""
    return blank(past.single(0, 0), shot)


def window(sink: int = 3, recent: int = 3) -> Memory:
    """The film's first latents and the newest ones, all read anew under the new caption, with no jump between shots.

    That is a sliding window with a sink whose keys are computed again at a switch of prompts.
    """

    def recall(past: Past, shot: int) -> Recalled:
        context = torch.cat([past.clip(0)[:, :sink], past.clip(shot - 1)[:, -recent:]], dim=1)
        frames = context.shape[1]
        return Recalled(context, (0,) * frames, (shot,) * frames, 0)

    return recall


def everything(past: Past, shot: int) -> Recalled:
    """Every latent of every past shot, each under its own caption."""
    clips = [past.clip(s) for s in range(shot)]
    shots = tuple(s for s, clip in enumerate(clips) for _ in range(clip.shape[1]))
    return Recalled(torch.cat(clips, dim=1), shots, shots, shot)


def blank(like_BCHW: Tensor, shot: int, slots: int = SLOTS) -> Recalled:
    """The empty context of a first shot: zeros with flag 0 before a shot with flag 1."""
    zeros = torch.zeros_like(like_BCHW)[:, None].repeat(1, slots, 1, 1, 1)
    return Recalled(zeros, (0,) * slots, (shot,) * slots, 1)
