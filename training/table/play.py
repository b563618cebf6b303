"""Playing stories with a row's model, many at a time for the scores and one alone for the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shotstream.runtime.decoders.common import TIME_FACTOR
from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.presets import TINY_LATENT
from shotstream.runtime.storyline import full_caption
from shotstream.runtime.text.tiny import TinyTextEncoder
from shotstream.training.data.latents import LatentStories
from shotstream.training.evaluation.sources import Frames, canonical, to_bytes
from shotstream.training.method.draws import TorchDraws
from shotstream.training.stages.trainer import step_generator
from shotstream.training.table.bidirectional import Keyframes, Sampler, Task, WholeStory
from shotstream.training.table.past import OwnPast
from shotstream.training.table.students import Student, StudentPlan
from shotstream.training.world import Story

BATCH = 12
"""Stories that play together."""


@dataclass(frozen=True)
class Speed:
    """On one story alone. fps: frames made per second, decoding included, in the steady state. wait_s: from a shot's
    caption (of bidirectional methods: from all captions) to its first frames.
    """

    fps: float
    wait_s: float


class Player:
    """A row's model as a source of frames (see `FramesOfStories`); shots of `frames` latents."""

    def __init__(
        self, plan: StudentPlan | WholeStory | Keyframes, model: Transformer, text: TinyTextEncoder, vae: TinyVAE,
        data: LatentStories, frames: int = 9, sampler: Sampler | None = None,
    ) -> None:  # fmt: skip
        self.plan, self.model, self.text, self.vae, self.data = plan, model.eval(), text, vae, data
        self.frames, self.sampler = frames, sampler or Sampler()
        self.device = next(model.parameters()).device
        self.student = Student(plan, model, text) if isinstance(plan, StudentPlan) else None

    def __call__(self, stories: Sequence[Story]) -> Iterator[list[Frames]]:
        """The shots of every story, in order; each uint8 [F, H, W, 3]. Stories of a batch have equally many shots."""
        for start in range(0, len(stories), BATCH):
            batch = stories[start : start + BATCH]
            films = [[to_bytes(video) for video in shot] for shot in self.shots(batch)]
            yield from map(list, zip(*films, strict=True))

    @torch.no_grad()
    def speed(self, story: Story) -> Speed:
        """On the clock, after a first shot to warm up; a student's figures are those of the story's second shot."""
        pixels = 1 + TIME_FACTOR * (self.frames - 1)
        if self.student is None:
            begin = time.perf_counter()
            clocks = [time.perf_counter() - begin for _ in self.shots([story])]
            return Speed(pixels * len(clocks) / clocks[-1], clocks[0])
        past = OwnPast(self.vae, pixels)
        self._next_shot([story], past, self.frames)
        begin = time.perf_counter()
        self._next_shot([story], past, self.frames)
        whole = time.perf_counter() - begin
        past.clips.pop(), past.videos.pop()
        begin = time.perf_counter()
        self._next_shot([story], past, self.model.config.chunk_frames)
        return Speed(pixels / whole, time.perf_counter() - begin)

    @torch.no_grad()
    def shots(self, stories: Sequence[Story]) -> Iterator[Tensor]:
        """Shot after shot of all stories, [B, pixel frames, 3, height, width] in [-1, 1]."""
        count = len(stories[0].shots)
        if isinstance(self.plan, StudentPlan):
            past = OwnPast(self.vae, 1 + TIME_FACTOR * (self.frames - 1))
            for _ in range(count):
                yield self._next_shot(stories, past, self.frames)
            return
        task = Task(self.model, self.text, self.data, len(stories), self.frames)
        shape = (len(stories), self.frames, self.model.config.channels, *TINY_LATENT)
        noise = [self._draws(stories, k).target_noise(shape) for k in range(count)]
        for latents in self.plan.play(task, _captions(stories, count), noise, self.sampler):
            yield self.vae.decode(latents.float())

    def _next_shot(self, stories: Sequence[Story], past: OwnPast, frames: int) -> Tensor:
        assert self.student is not None
        shot = len(past.clips)
        like = torch.zeros(len(stories), self.model.config.channels, *TINY_LATENT, device=self.device)
        recalled = self.student.remember(past, shot, like)
        last, draws = len(self.student.steps) - 1, self._draws(stories, shot)
        captions = _captions(stories, shot + 1)
        return past.add(self.student.roll_out(recalled, captions, shot, frames, last, draws, train=False))

    def _draws(self, stories: Sequence[Story], shot: int) -> TorchDraws:
        """The same for every row: they depend on the stories that play together, and on the shot."""
        return TorchDraws(step_generator(stories[0].seed, shot, self.device), device=self.device)


def _captions(stories: Sequence[Story], shots: int) -> list[list[str]]:
    """Full captions of the first `shots` shots of every story, in the fixed wording."""
    worded = map(canonical, stories)
    return [[full_caption(whole, k, parts[k]) for k in range(shots)] for whole, parts in worded]
