"""Stage ``ode``: the causal initialisation of the student, by regression on the teacher's trajectories (``pairs``)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.data.batches import encode
from shotstream.training.data.stories import TrainingStories
from shotstream.training.distributed.accumulate import Part, PartDraws, PartLoss, backward, parts_of
from shotstream.training.distributed.flops import Geometry, Work, step_work
from shotstream.training.distributed.launch import ALONE, Team
from shotstream.training.distributed.scale import Scale
from shotstream.training.distributed.sharding import load_trained, place, trained_state
from shotstream.training.method.clean_history import clean_history_ode_loss
from shotstream.training.method.draws import TorchDraws
from shotstream.training.method.objectives import ode_loss
from shotstream.training.stages.given import Codec, FrozenText
from shotstream.training.stages.optim import stage_optimizer, take_step
from shotstream.training.stages.pairs import Pairs
from shotstream.training.stages.student_sheet import write_student_sheet
from shotstream.training.stages.teacher import takes_adam
from shotstream.training.stages.trainer import Ema, LoopConfig, step_generator


@dataclass(frozen=True)
class OdeRecipe(Scale):
    """Hyper-parameters. ``substeps`` Euler steps lie between two neighbouring student steps, so that the saved states
    have exactly the student's noise levels; 0 means the reference's 50 uniform steps, which have them at 0, 13, 25 and
    37.
    ``history``: what a block sees of those before it: "mixed" (the reference: any noise level), "clean" (as it plays).
    """

    pairs: int = 480
    frames: int = 9
    substeps: int = 3
    guidance: float = 3.0
    pair_batch: int = 8
    steps: int = 240
    batch: int = 8
    lr: float = 4e-4
    adam_lr: float = 2e-4
    ema: float = 0.98
    clip: float = 1.0
    text_drop: float = 0.1
    optimizer: str = "muon"
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 10
    decay: float = 0.5
    seed: int = 1
    history: str = "mixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history not in ("mixed", "clean"):
            raise UserError(f"history is 'mixed' or 'clean', not {self.history!r}")

    @property
    def loop(self) -> LoopConfig:
        """Loop settings of the regression."""
        return LoopConfig(self.steps, self.warmup, self.decay, save_every=40, log_every=10, sheet_every=120)


class OdeStage:
    """State and step of the regression (see :class:`shotstream.training.stages.trainer.Stage`)."""

    name = "ode"

    def __init__(
        self, recipe: OdeRecipe, student: Transformer, text: FrozenText, pairs: Pairs, held_out: TrainingStories,
        vae: Codec, team: Team | None = None,
    ) -> None:  # fmt: skip
        device = next(student.parameters()).device
        self.team = team = team or replace(ALONE, device=device)
        self.recipe, self.text, self.pairs = recipe, text, pairs
        self.held_out, self.vae = held_out, vae
        self.model = place(student, team, recipe)
        self.device = team.device
        self.schedule = NoiseSchedule(student.config.shift, self.device)
        self.steps = torch.cat([self.schedule.warp(student.config.nominal_steps), torch.zeros(1, device=self.device)])
        self.ema = Ema({"dit": student}, recipe.ema)
        self.optimizer = stage_optimizer({"dit": student}, recipe, takes_adam)
        self._captions = 0

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, 12, index])
        picks = rng.integers(len(self.pairs.states), size=recipe.batch)
        text_dropped = bool(rng.random() < recipe.text_drop)
        noisy = self._noisy_blocks(index)
        self._captions = 0

        def loss_of(part: Part) -> PartLoss:
            chosen = [int(i) for i in picks[part.rows]]
            # The mean goes over noisy frames, of which parts have different numbers.
            weight = float(noisy[part.rows].sum() / noisy.sum().clamp(min=1))
            return self._part_loss(chosen, text_dropped, PartDraws(self._draws(index), part), weight)

        figures = backward(parts_of(recipe.batch, self.team, recipe.micro_batch), loss_of, self.team)
        norm = take_step(self.optimizer, (self.model,), recipe.clip, lr_factor)
        self.ema.update(index)
        return figures | {"grad_norm": norm}

    def _draws(self, index: int) -> TorchDraws:
        return TorchDraws(step_generator(self.recipe.seed, index, self.device), device=self.device)

    def _noisy_blocks(self, index: int) -> Tensor:
        """How many blocks of every sample of the whole batch will be noisy, [batch]."""
        blocks, entries = self.recipe.frames // self.model.config.chunk_frames, len(self.steps)
        if self.recipe.history == "clean":
            return torch.full((self.recipe.batch,), blocks)
        return (self._draws(index).block_index(self.recipe.batch, blocks, entries) != entries - 1).sum(1)

    def _part_loss(self, chosen: list[int], text_dropped: bool, draws: PartDraws, weight: float) -> PartLoss:
        conditioning = encode([self.pairs.conditions[i] for i in chosen], self.text, self.device)
        self._captions += len(conditioning.captions_NLD)
        if text_dropped:
            conditioning = replace(conditioning, captions_NLD=torch.zeros_like(conditioning.captions_NLD))
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
        return step_work(sample, [sample.ode(recipe.history == "clean")], recipe.batch, captions=captions)

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
