"""Causal students of the table: one causal initialisation, then self-forcing distillation under their own memory.

A student differs from ours in what it remembers of earlier shots, in how it rolls a shot out, or in its configuration.
The teacher that scores it always sees what our teacher sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.text.tiny import TinyTextEncoder
from shotstream.training.data.batches import Condition, encode
from shotstream.training.data.latents import LatentStories
from shotstream.training.method.conditioning import Conditioning, Routing
from shotstream.training.method.draws import Draws, TorchDraws
from shotstream.training.method.objectives import DmdLoss, DmdSettings, score_critic, score_generator
from shotstream.training.method.rollout import DEFAULT, RolloutSettings, self_forcing_rollout
from shotstream.training.table.past import Memory, OwnPast, Past, Recalled, TruePast, blank, sampled
from shotstream.training.table.rolling import RoutedAttention, rolling_rollout

FIRST_SHOT = 0.2
"""Share of first shots among those that are drawn behind true history."""


@dataclass(frozen=True)
class StudentPlan:
    """One student. jump: see `DiTConfig`. steps: nominal denoising steps. rolling: a rolling window inside the shot.
    top: remembered frames that attention picks, 0 for all. own_history: share of the training budget that is spent
    behind the student's own shots (stage 2), the rest behind true ones (stage 1). continued: share of the budget, the
    last, for how a shot goes on: regression on true clips, as in the stage of that name.
    """

    memory: Memory = field(default_factory=sampled)
    slots: int = 6
    jump: float | None = None
    steps: tuple[int, ...] = ()
    rollout: RolloutSettings = DEFAULT
    rolling: bool = False
    top: int = 0
    own_history: float = 0.4
    continued: float = 0.0


class Student:
    """A generator with its plan: rolls shots out, for training and for playing."""

    def __init__(self, plan: StudentPlan, model: Transformer, text: TinyTextEncoder) -> None:
        """Changes the model's configuration and, for routed memories, its attention."""
        config = model.config
        jump = config.jump if plan.jump is None else plan.jump
        model.config = replace(config, jump=jump, nominal_steps=plan.steps or config.nominal_steps)
        self.plan, self.model, self.text = plan, model, text
        self.device = next(model.parameters()).device
        self.schedule = NoiseSchedule(model.config.shift, self.device)
        self.steps = self.schedule.warp(model.config.nominal_steps)
        self.routed: RoutedAttention | None = None

    def remember(self, past: Past, shot: int, like_BCHW: Tensor) -> Recalled:
        """The student's own view of the past; empty before the first shot."""
        return self.plan.memory(past, shot) if shot else blank(like_BCHW, shot, self.plan.slots)

    def roll_out(
        self, recalled: Recalled, captions: Sequence[Sequence[str]], shot: int, frames: int, exit_step: int,
        draws: Draws, *, train: bool,
    ) -> Tensor:  # fmt: skip
        """Latents of one shot, [B, frames, C, H, W], as they stand after `exit_step`."""
        given = conditions(recalled, captions, shot, frames, self.text, self.device)
        self.route(recalled)
        if self.plan.rolling:
            return rolling_rollout(
                self.model, self.schedule, self.steps, given, frames, exit_step, draws, with_gradient=train
            )
        return self_forcing_rollout(
            self.model, self.schedule, self.steps, given, frames, exit_step, draws, with_gradient=train,
            settings=self.plan.rollout if train else replace(self.plan.rollout, renoise_clean=False),
        )  # fmt: skip

    def route(self, recalled: Recalled) -> None:
        """Tell sparse attention, where the plan has it, how much history the next passes have."""
        if not self.plan.top:
            return
        context = recalled.context_BFCHW
        if self.routed is None:
            tokens = self.model.config.tokens_per_frame(*context.shape[-2:])
            self.routed = RoutedAttention(tokens, self.plan.top)
            for block in self.model.blocks:
                block.attention = self.routed  # type: ignore[assignment]  # a ModuleList does not say what it holds
        self.routed.history = context.shape[1]


def conditions(
    recalled: Recalled, captions: Sequence[Sequence[str]], shot: int, frames: int, text: TinyTextEncoder,
    device: torch.device,
) -> Conditioning:  # fmt: skip
    """What a shot is generated from; `captions[b][k]` is what shot k of story b is asked to show, up to `shot`."""
    routing = Routing((*recalled.flags, *[recalled.flag] * frames), (*recalled.captions, *[shot] * frames))
    context = recalled.context_BFCHW
    return encode([Condition(c, routing, list(own)) for c, own in zip(context, captions, strict=True)], text, device)


@dataclass
class Distillation:
    """Generator, teacher and critic on a batch of stories: one update's loss. It owns no optimizer."""

    student: Student
    real: Transformer
    fake: Transformer
    data: LatentStories
    vae: TinyVAE
    batch: int
    frames: int
    guidance: float

    def __post_init__(self) -> None:
        config = self.student.model.config
        self.negative = torch.zeros(1, config.text_len, config.text_dim, device=self.student.device)
        self.scored = sampled()

    def situations(
        self, rng: np.random.Generator, on_its_own: Callable[[], bool]
    ) -> Iterator[tuple[Past, list[list[str]], int]]:
        """Past, captions and shot of one update after another, without end.

        Stage 1: one shot behind true history. Stage 2: the shots of a story in turn, behind an :class:`OwnPast` to
        which the caller adds every shot that was made. All samples of a batch stand at the same shot.
        """
        while True:
            stories = rng.integers(len(self.data), size=self.batch).tolist()
            captions = draw_captions(self.data, stories, rng)
            if on_its_own():
                past = OwnPast(self.vae, self.data.plan.frames)
                for shot in range(self.data.plan.shots):
                    yield past, captions, shot
            else:
                shot = 0 if rng.random() < FIRST_SHOT else int(rng.integers(1, self.data.plan.shots))
                yield TruePast(self.data, stories, self.student.device), captions, shot

    def update(
        self, past: Past, captions: list[list[str]], shot: int, rng: np.random.Generator, generator: bool
    ) -> DmdLoss:
        """Roll a shot out and score it, for the generator's loss or for the critic's."""
        student, frames = self.student, self.frames
        draws = TorchDraws(
            torch.Generator(student.device).manual_seed(int(rng.integers(1 << 62))), device=student.device
        )
        captions = [own[: shot + 1] for own in captions]
        like = self.data.single(0, 0, 0).expand(self.batch, -1, -1, -1).to(student.device)
        exit_step = draws.exit_step(len(student.steps))
        x = student.roll_out(
            student.remember(past, shot, like), captions, shot, frames, exit_step, draws, train=generator
        )
        seen = self.scored(past, shot) if shot else blank(like, shot)
        given = conditions(seen, captions, shot, frames, student.text, student.device)
        settings = DmdSettings(guidance=self.guidance)
        if generator:
            return score_generator(
                x, self.real, self.fake, student.schedule, given, self.negative, draws, settings=settings
            )
        return score_critic(x, self.fake, student.schedule, given, draws, settings=settings)


def draw_captions(data: LatentStories, stories: Sequence[int], rng: np.random.Generator) -> list[list[str]]:
    """Captions of all shots, seven stories in ten freely worded."""
    every = list(range(data.plan.shots))
    wordings = [int(rng.integers(1 << 30)) if rng.random() < 0.7 else None for _ in stories]
    return [data.captions(s, every, w) for s, w in zip(stories, wordings, strict=True)]
