"""Methods that see a film's shots at once: the whole story in one go, and keyframes first, then each shot from its own.

Both fine-tune the teacher by flow matching and sample by Euler steps with guidance. Nothing streams: the first frame of
a whole story is there when its last one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.text.tiny import TinyTextEncoder
from shotstream.training.data.latents import LatentStories
from shotstream.training.method import losses
from shotstream.training.method.conditioning import Conditioning
from shotstream.training.method.objectives import target_flow
from shotstream.training.method.sampling import sample_teacher

KEYFRAME_POSITION = 5
"""The time index of a keyframe before its shot, which begins at 6 as everywhere."""


@dataclass(frozen=True)
class Sampler:
    """Euler steps and classifier-free guidance (1 is none)."""

    steps: int = 16
    guidance: float = 3.0


def together(captions: Sequence[Sequence[str]], frames: int, text: TinyTextEncoder, like_BFCHW: Tensor) -> Conditioning:
    """No context; `frames` latents of every shot in one sequence, each with its shot's flag and caption.

    `captions[b][k]` is what shot k of story b is asked to show.
    """
    shots, batch = len(captions[0]), len(captions)
    flags = torch.arange(shots).repeat_interleave(frames).expand(batch, -1)
    index = flags + shots * torch.arange(batch)[:, None]
    rows = text.encode([c for story in captions for c in story]).clone()
    device = like_BFCHW.device
    return Conditioning(like_BFCHW[:, :0], rows.to(device), flags.to(device), index.to(device))


def from_keyframe(keyframe_BCHW: Tensor, captions: Sequence[str], frames: int, text: TinyTextEncoder) -> Conditioning:
    """One shot per sample behind its own first frame, under its own caption; no jump, for they are one shot."""
    batch, device = len(captions), keyframe_BCHW.device
    index = torch.arange(batch, device=device)[:, None].expand(-1, frames + 1)
    positions = torch.arange(KEYFRAME_POSITION, KEYFRAME_POSITION + 1 + frames, device=device).expand(batch, -1)
    rows = text.encode(list(captions)).clone().to(device)
    return Conditioning(keyframe_BCHW[:, None], rows, torch.zeros_like(index), index, positions)


class WholeStory:
    """All latents of all shots denoised together, under every caption at once."""

    def loss(self, task: Task, rng: np.random.Generator) -> Tensor:
        """Flow matching on whole stories."""
        data, stories, captions = task.draw(rng)
        frames = task.frames
        clips = [torch.stack([data.clip(s, k, frames) for s in stories]) for k in range(data.plan.shots)]
        x0 = torch.cat(clips, dim=1).to(task.device)
        return task.flow_loss(x0, together(captions, frames, task.text, x0), rng)

    def play(self, task: Task, captions: list[list[str]], noise: list[Tensor], sampler: Sampler) -> list[Tensor]:
        """Shots [B, F, C, H, W] from as many noises."""
        z = torch.cat(noise, dim=1)
        made = task.sample(z, together(captions, noise[0].shape[1], task.text, z), sampler)
        return list(made.split(noise[0].shape[1], dim=1))


class Keyframes:
    """One model, two tasks by turns: the first frames of all shots together, and a shot behind its first frame."""

    def loss(self, task: Task, rng: np.random.Generator) -> Tensor:
        """Flow matching on keyframes, or on shots behind theirs."""
        data, stories, captions = task.draw(rng)
        if rng.random() < 0.5:
            firsts = [torch.stack([data.single(s, k, 0) for s in stories]) for k in range(data.plan.shots)]
            x0 = torch.stack(firsts, dim=1).to(task.device)
            return task.flow_loss(x0, together(captions, 1, task.text, x0), rng)
        shots = rng.integers(data.plan.shots, size=len(stories)).tolist()
        x0 = torch.stack([data.clip(s, k, task.frames) for s, k in zip(stories, shots, strict=True)]).to(task.device)
        first = torch.stack([data.single(s, k, 0) for s, k in zip(stories, shots, strict=True)]).to(task.device)
        asked = [own[k] for own, k in zip(captions, shots, strict=True)]
        return task.flow_loss(x0, from_keyframe(first, asked, task.frames, task.text), rng)

    def play(self, task: Task, captions: list[list[str]], noise: list[Tensor], sampler: Sampler) -> list[Tensor]:
        """Shots [B, F, C, H, W] from as many noises."""
        z = torch.cat([n[:, :1] for n in noise], dim=1)
        firsts = task.sample(z, together(captions, 1, task.text, z), sampler)
        return [
            task.sample(n, from_keyframe(firsts[:, k], [c[k] for c in captions], n.shape[1], task.text), sampler)
            for k, n in enumerate(noise)
        ]


@dataclass
class Task:
    """What both methods share: the model, its text encoder, the stories, and how many of them a step takes."""

    model: Transformer
    text: TinyTextEncoder
    data: LatentStories
    batch: int
    frames: int

    def __post_init__(self) -> None:
        config = self.model.config
        self.device = next(self.model.parameters()).device
        self.schedule = NoiseSchedule(config.shift, self.device)
        self.negative = torch.zeros(1, config.text_len, config.text_dim, device=self.device)

    def draw(self, rng: np.random.Generator) -> tuple[LatentStories, list[int], list[list[str]]]:
        """Stories and the captions of all their shots, seven in ten freely worded."""
        stories = rng.integers(len(self.data), size=self.batch).tolist()
        every = list(range(self.data.plan.shots))
        wordings = [int(rng.integers(1 << 30)) if rng.random() < 0.7 else None for _ in stories]
        return self.data, stories, [self.data.captions(s, every, w) for s, w in zip(stories, wordings, strict=True)]

    def flow_loss(self, x0_BFCHW: Tensor, conditioning: Conditioning, rng: np.random.Generator) -> Tensor:
        """Flow matching at one noise level a sample; one text in ten is dropped."""
        g = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        t_B = self.schedule.timesteps[torch.randint(1000, (len(x0_BFCHW),), generator=g).to(self.device)]
        noise = torch.randn(x0_BFCHW.shape, generator=g).to(self.device)
        if rng.random() < 0.1:
            conditioning = conditioning.with_captions(self.negative)
        flow = target_flow(self.model, self.schedule.add_noise(x0_BFCHW, noise, t_B), t_B, conditioning)
        return losses.flow_matching_loss(flow, x0_BFCHW, noise, torch.ones_like(t_B))

    def sample(self, noise_BFCHW: Tensor, conditioning: Conditioning, sampler: Sampler) -> Tensor:
        """Latents of the same shape."""
        how: dict[str, Any] = {"steps": sampler.steps, "guidance": sampler.guidance}
        return sample_teacher(self.model, self.schedule, noise_BFCHW, conditioning, self.negative, **how).x0_BFCHW
