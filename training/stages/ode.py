"""Stage ``ode``: the causal initialisation of the student, by regression on the teacher's trajectories (``pairs``)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.data.batches import encode
from shotstream.training.data.stories import TrainingStories
from shotstream.training.distributed.accumulate import Part, PartDraws, PartLoss
from shotstream.training.distributed.flops import Geometry, Work, step_work
from shotstream.training.distributed.launch import Team
from shotstream.training.method.clean_history import clean_history_ode_loss
from shotstream.training.method.objectives import ode_loss
from shotstream.training.stages.given import Codec, FrozenText
from shotstream.training.stages.pairs import Pairs
from shotstream.training.stages.regression import RegressionRecipe, RegressionStage
from shotstream.training.stages.trainer import LoopConfig


@dataclass(frozen=True)
class OdeRecipe(RegressionRecipe):
    """Hyper-parameters. ``substeps`` Euler steps lie between two neighbouring student steps, so that the saved states
    have exactly the student's noise levels; 0 means the reference's 50 uniform steps, which have them at 0, 13, 25 and
    37.
    ``history``: what a block sees of those before it: "mixed" (the reference: any noise level), "clean" (as it plays).
    """

    steps: int = 240
    batch: int = 8
    pairs: int = 480
    substeps: int = 3
    guidance: float = 3.0
    pair_batch: int = 8
    history: str = "mixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history not in ("mixed", "clean"):
            raise UserError(f"history is 'mixed' or 'clean', not {self.history!r}")

    @property
    def loop(self) -> LoopConfig:
        """Loop settings of the regression."""
        return LoopConfig(self.steps, self.warmup, self.decay, save_every=40, log_every=10, sheet_every=120)


class OdeStage(RegressionStage):
    """State and step of the regression."""

    name = "ode"

    def __init__(
        self, recipe: OdeRecipe, student: Transformer, text: FrozenText, pairs: Pairs, held_out: TrainingStories,
        vae: Codec, team: Team | None = None,
    ) -> None:  # fmt: skip
        super().__init__(recipe, student, text, held_out, vae, team)
        self.recipe, self.pairs = recipe, pairs
        self.steps = torch.cat([self.schedule.warp(student.config.nominal_steps), torch.zeros(1, device=self.device)])

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, 12, index])
        picks = rng.integers(len(self.pairs.states), size=recipe.batch)
        text_dropped = bool(rng.random() < recipe.text_drop)
        noisy = self._noisy_blocks(index)

        def loss_of(part: Part) -> PartLoss:
            chosen = [int(i) for i in picks[part.rows]]
            # The mean goes over noisy frames, of which parts have different numbers.
            weight = float(noisy[part.rows].sum() / noisy.sum().clamp(min=1))
            return self._part_loss(chosen, text_dropped, PartDraws(self._draws(index), part), weight)

        return self._update(index, lr_factor, loss_of, self._parts(recipe.batch))

    def _noisy_blocks(self, index: int) -> Tensor:
        """How many blocks of every sample of the whole batch will be noisy, [batch]."""
        blocks, entries = self.recipe.frames // self.model.config.chunk_frames, len(self.steps)
        if self.recipe.history == "clean":
            return torch.full((self.recipe.batch,), blocks)
        return (self._draws(index).block_index(self.recipe.batch, blocks, entries) != entries - 1).sum(1)

    def _part_loss(self, chosen: list[int], text_dropped: bool, draws: PartDraws, weight: float) -> PartLoss:
        conditioning = encode([self.pairs.conditions[i] for i in chosen], self.text, self.device)
        conditioning = self._without_text(conditioning, text_dropped)
        states = torch.stack([self.pairs.states[i] for i in chosen]).float().to(self.device)
        with self.recipe.autocast(self.device):
            loss = clean_history_ode_loss if self.recipe.history == "clean" else ode_loss
            result = loss(self.model, self.schedule, states, self.steps, conditioning, draws)
        return PartLoss(result.loss, {"loss": result.loss}, weight)

    def work(self, index: int) -> Work:
        recipe, config = self.recipe, self.model.config
        height, width = self.pairs.states[0].shape[-2:]
        sample = Geometry(config, config.tokens_per_frame(height, width), config.context_frames, recipe.frames)
        captions = self._captions * self.team.size / recipe.batch
        return step_work(sample, sample.ode(recipe.history == "clean"), recipe.batch, captions=captions)
