"""Stage ``continuation``: how a shot goes on, learnt from true clips behind true history.

What the first chunk of a shot shows is a choice, which distribution matching has taught. What the chunks after it show
follows from it, so that plain regression on the data finds it, from the first step on: no teacher, no critic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.data.batches import Condition, draw_clip, encode
from shotstream.training.data.stories import TrainingStories
from shotstream.training.distributed.accumulate import Part, PartDraws, PartLoss, backward, parts_of
from shotstream.training.distributed.flops import Geometry, Pass, Work, step_work
from shotstream.training.distributed.launch import ALONE, Team
from shotstream.training.distributed.scale import Scale
from shotstream.training.distributed.sharding import load_trained, place, trained_state
from shotstream.training.method.clean_history import continuation_loss
from shotstream.training.method.draws import TorchDraws
from shotstream.training.stages.given import Codec, FrozenText, Unread
from shotstream.training.stages.optim import stage_optimizer, take_step
from shotstream.training.stages.student_sheet import write_student_sheet
from shotstream.training.stages.teacher import takes_adam
from shotstream.training.stages.trainer import Ema, LoopConfig, step_generator


@dataclass(frozen=True)
class ContinuationRecipe(Scale):
    """Hyper-parameters. At the first ``kept_steps`` of the student's noise levels, the first chunk of a shot stays as
    the student of the stage before has it, an error there counting ``kept_weight`` times; at the others its target is
    the true one too. ``blend``: the share of the trained weights in the weights that are kept, the rest being those of
    the stage before.
    """

    steps: int = 260
    batch: int = 8
    frames: int = 9
    kept_steps: int = 3
    kept_weight: float = 3.0
    blend: float = 0.5
    lr: float = 3e-4
    adam_lr: float = 1.5e-4
    ema: float = 0.98
    clip: float = 1.0
    text_drop: float = 0.1
    context_drop: float = 0.1
    optimizer: str = "muon"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 10
    decay: float = 0.6
    seed: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.blend <= 1:
            raise UserError(f"blend is a share above 0 and up to 1, not {self.blend}")

    @property
    def loop(self) -> LoopConfig:
        """Loop settings."""
        return LoopConfig(self.steps, self.warmup, self.decay, save_every=40, log_every=10, sheet_every=130)


class ContinuationStage:
    """State and step of the regression (see :class:`shotstream.training.stages.trainer.Stage`)."""

    name = "continuation"

    def __init__(
        self, recipe: ContinuationRecipe, student: Transformer, before: Transformer, text: FrozenText,
        data: TrainingStories, held_out: TrainingStories, vae: Codec, team: Team | None = None,
    ) -> None:  # fmt: skip
        self.team = team = team or replace(ALONE, device=next(student.parameters()).device)
        self.recipe, self.text, self.data = recipe, text, data
        self.held_out, self.vae = held_out, vae
        self.device = team.device
        self.model = place(student, team, recipe)
        self.before = place(before.requires_grad_(False).eval(), team, recipe)
        self.schedule = NoiseSchedule(student.config.shift, self.device)
        self.steps = self.schedule.warp(student.config.nominal_steps)
        self.ema = Ema({"dit": student}, recipe.ema)
        self.optimizer = stage_optimizer({"dit": student}, recipe, takes_adam)
        self._captions = 0

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        recipe, parts = self.recipe, parts_of(self.recipe.batch, self.team, self.recipe.micro_batch)
        rng = np.random.default_rng([recipe.seed, 31, index])
        clips, conditions = zip(*self._drawn(rng, range(parts[0].start, parts[-1].stop)), strict=True)
        text_dropped = bool(rng.random() < recipe.text_drop)
        self._captions = 0

        def loss_of(part: Part) -> PartLoss:
            draws = TorchDraws(step_generator(recipe.seed, index, self.device), device=self.device)
            clip = torch.stack(clips[part.rows]).to(self.device)
            return self._part_loss(clip, conditions[part.rows], text_dropped, PartDraws(draws, part), part.share)

        figures = backward(parts, loss_of, self.team)
        norm = take_step(self.optimizer, (self.model,), recipe.clip, lr_factor)
        self.ema.update(index)
        return figures | {"grad_norm": norm}

    def _drawn(self, rng: np.random.Generator, own: range) -> Iterator[tuple[Tensor, Condition]]:
        """The whole batch, of which only the rows ``own`` are read."""
        unread, recipe = Unread(self.data), self.recipe
        for row in range(recipe.batch):
            data = self.data if row in own else unread
            yield draw_clip(data, self.model.config, recipe.frames, rng, context_drop=recipe.context_drop)

    def _part_loss(
        self, clip: Tensor, conditions: tuple[Condition, ...], text_dropped: bool, draws: PartDraws, weight: float
    ) -> PartLoss:
        conditioning = encode(conditions, self.text, self.device)
        self._captions += len(conditioning.captions_NLD)
        if text_dropped:
            conditioning = replace(conditioning, captions_NLD=torch.zeros_like(conditioning.captions_NLD))
        with self.recipe.autocast(self.device):
            found = continuation_loss(
                self.model, self.before, self.schedule, clip, self.steps, conditioning, draws,
                kept_steps=self.recipe.kept_steps, kept_weight=self.recipe.kept_weight,
            )  # fmt: skip
        figures = {"loss": found.loss, "opening": found.opening, "continuation": found.continuation}
        return PartLoss(found.loss, figures, weight)

    def work(self, index: int) -> Work:
        recipe = self.recipe
        height, width = self.data.single(0, 0, 0).shape[-2:]
        sample = Geometry(
            self.model.config, self.model.config.tokens_per_frame(height, width), self.model.config.context_frames,
            recipe.frames,
        )  # fmt: skip
        captions = self._captions * self.team.size / recipe.batch
        return step_work(sample, passes(sample), recipe.batch, captions=captions)

    def state_dict(self) -> dict[str, Any]:
        return {
            "dit": trained_state(self.model), "ema": self.ema.state_dict(), "optimizer": self.optimizer.state_dict()
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_trained(self.model, state["dit"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])

    def sample_sheet(self, path: Path) -> None:
        """The student's own next shots of held-out stories, rolled out chunk by chunk."""
        self.ema.swap()
        sheet = path if self.team.first else None
        write_student_sheet(self.model, self.text, self.vae, self.held_out, sheet, self.recipe, self.recipe.frames)
        self.ema.swap()


def passes(sample: Geometry) -> list[Pass]:
    """What a step computes: the regression's masked pass, and the student before on first chunks."""
    opening = replace(sample, frames=sample.config.chunk_frames)
    return [sample.ode(clean_history=True), replace(opening.ode(clean_history=False), trained=False)]
