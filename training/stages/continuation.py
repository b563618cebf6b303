"""Stage ``continuation``: how a shot goes on, learnt from true clips behind true history.

What the first chunk of a shot shows is a choice, which distribution matching has taught. What the chunks after it show
follows from it, so that plain regression on the data finds it, from the first step on: no teacher, no critic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.data.batches import Condition, draw_clip, encode
from shotstream.training.data.stories import TrainingStories
from shotstream.training.distributed.accumulate import Part, PartDraws, PartLoss
from shotstream.training.distributed.flops import Geometry, Pass, Work, step_work
from shotstream.training.distributed.launch import Team
from shotstream.training.distributed.sharding import place
from shotstream.training.method.clean_history import continuation_loss
from shotstream.training.stages.given import Codec, FrozenText, Unread
from shotstream.training.stages.regression import RegressionRecipe, RegressionStage
from shotstream.training.stages.trainer import LoopConfig


@dataclass(frozen=True)
class ContinuationRecipe(RegressionRecipe):
    """Hyper-parameters. At the first ``kept_steps`` of the student's noise levels, the first chunk of a shot stays as
    the student of the stage before has it, an error there counting ``kept_weight`` times; at the others its target is
    the true one too. ``blend``: the share of the trained weights in the weights that are kept, the rest being those of
    the stage before.
    """

    steps: int = 260
    batch: int = 8
    lr: float = 3e-4
    adam_lr: float = 1.5e-4
    decay: float = 0.6
    seed: int = 5
    kept_steps: int = 3
    kept_weight: float = 3.0
    blend: float = 0.5
    context_drop: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.blend <= 1:
            raise UserError(f"blend is a share above 0 and up to 1, not {self.blend}")

    @property
    def loop(self) -> LoopConfig:
        """Loop settings."""
        return LoopConfig(self.steps, self.warmup, self.decay, save_every=40, log_every=10, sheet_every=130)


class ContinuationStage(RegressionStage):
    """State and step of the regression."""

    name = "continuation"

    def __init__(
        self, recipe: ContinuationRecipe, student: Transformer, before: Transformer, text: FrozenText,
        data: TrainingStories, held_out: TrainingStories, vae: Codec, team: Team | None = None,
    ) -> None:  # fmt: skip
        super().__init__(recipe, student, text, held_out, vae, team)
        self.recipe, self.data = recipe, data
        self.before = place(before.requires_grad_(False).eval(), self.team, recipe)
        self.steps = self.schedule.warp(student.config.nominal_steps)

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        recipe, parts = self.recipe, self._parts(self.recipe.batch)
        rng = np.random.default_rng([recipe.seed, 31, index])
        clips, conditions = zip(*self._drawn(rng, range(parts[0].start, parts[-1].stop)), strict=True)
        text_dropped = bool(rng.random() < recipe.text_drop)

        def loss_of(part: Part) -> PartLoss:
            clip = torch.stack(clips[part.rows]).to(self.device)
            draws = PartDraws(self._draws(index, self.model.config.noise_offset), part)
            return self._part_loss(clip, conditions[part.rows], text_dropped, draws, part.share)

        return self._update(index, lr_factor, loss_of, parts)

    def _drawn(self, rng: np.random.Generator, own: range) -> Iterator[tuple[Tensor, Condition]]:
        """The whole batch, of which only the rows ``own`` are read."""
        unread, recipe = Unread(self.data), self.recipe
        for row in range(recipe.batch):
            data = self.data if row in own else unread
            yield draw_clip(data, self.model.config, recipe.frames, rng, context_drop=recipe.context_drop)

    def _part_loss(
        self, clip: Tensor, conditions: tuple[Condition, ...], text_dropped: bool, draws: PartDraws, weight: float
    ) -> PartLoss:
        conditioning = self._without_text(encode(conditions, self.text, self.device), text_dropped)
        with self.recipe.autocast(self.device):
            found = continuation_loss(
                self.model, self.before, self.schedule, clip, self.steps, conditioning, draws,
                kept_steps=self.recipe.kept_steps, kept_weight=self.recipe.kept_weight,
            )  # fmt: skip
        figures = {"loss": found.loss, "opening": found.opening, "continuation": found.continuation}
        return PartLoss(found.loss, figures, weight)

    def work(self, index: int) -> Work:
        config, recipe = self.model.config, self.recipe
        height, width = self.data.single(0, 0, 0).shape[-2:]
        sample = Geometry(config, config.tokens_per_frame(height, width), config.context_frames, recipe.frames)
        captions = self._captions * self.team.size / recipe.batch
        return step_work(sample, passes(sample), recipe.batch, captions=captions)


def passes(sample: Geometry) -> list[Pass]:
    """What a step computes: the regression's masked pass, and the student before on first chunks."""
    opening = replace(sample, frames=sample.config.chunk_frames)
    return [*sample.ode(clean_history=True), *(replace(one, trained=False) for one in opening.ode(clean_history=True))]
