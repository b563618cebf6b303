"""Stage ``coupled``: the student draws true shots from noise that knows what the captions leave open.

Plain regression, as in stage ``continuation``, but for first chunks too: see :mod:`shotstream.training.method.coupled`.
It begins with single latents of first chunks, which cost least, and ends with whole shots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.data.batches import embed
from shotstream.training.data.stories import TrainingStories
from shotstream.training.data.teacher_data import Batch, Drawing, Phase, batch_of, draw_samples, phase_at
from shotstream.training.distributed.accumulate import Part, PartDraws, PartLoss
from shotstream.training.distributed.flops import Geometry, Pass, Work, step_work
from shotstream.training.distributed.launch import Team
from shotstream.training.method.coupled import coupled_loss
from shotstream.training.method.perceptual import PerceptualNet, perceptual_error
from shotstream.training.stages.given import Codec, FrozenText, Unread
from shotstream.training.stages.regression import RegressionRecipe, RegressionStage
from shotstream.training.stages.teacher import compile_blocks
from shotstream.training.stages.trainer import LoopConfig
from shotstream.training.world.parts import FIGURE_PARTS, PARTS

SUBJECTS = [
    [i for i, part in enumerate(PARTS) if part.rpartition(" ")[2] == subject] for subject in ("house", *FIGURE_PARTS)
]
"""What a player looks at, and what stories remember; one row of `PARTS` each, as any species has it."""
USUAL_SHARE = 0.24
"""How much of the picture they fill together, over all shots; .12 in a wide shot of one hero, .36 in a close-up."""
LEAST_SHARE = 0.004
"""A subject that fills less counts as if it filled this; a hat in a wide shot fills .005."""


def subjects_of(parts_BFHWP: Tensor) -> Tensor:
    """How much of the subjects each cell shows, ``[B, F, 1, H, W]``, from shares of `PARTS`.

    All subjects that are there count the same, however little of the picture they fill: a hat as much as a body, and a
    face in a wide shot as much as in a close-up. The mean of a sample is `USUAL_SHARE` but for subjects that fill less
    than `LEAST_SHARE`.
    """
    shares = torch.stack([parts_BFHWP[..., parts].sum(-1) for parts in SUBJECTS], dim=-1)
    means = shares.mean((1, 2, 3), keepdim=True)
    there = (means > 0).sum(-1, keepdim=True).clamp(min=1)
    return (USUAL_SHARE / there * shares / means.clamp(min=LEAST_SHARE)).sum(-1)[:, :, None]


@dataclass(frozen=True)
class CoupledRecipe(RegressionRecipe):
    """Hyper-parameters. ``offset`` is the student's ``noise_offset`` from here on (see ``DiTConfig``). Cells count
    ``subject_weight`` times more the more of a subject they show (`subjects_of`). ``motion_weight`` as in
    `coupled_loss`;
    ``played`` is the share of steps whose input the student makes itself. ``nominal_steps`` are the student's from here
    on, none: those it has. ``steered`` is the share of shots whose caption comes when another is being shown;
    ``still`` the share that is taken of the shots whose camera stands still. ``huber`` as in `coupled_loss`.
    ``perceptual`` is the weight of the error as a network sees it that knows the story world (`method.perceptual`; the
    recipe needs its stage).
    ``dim`` is the width that the student grows to before it begins (`method.widen`), 0 for the one it has.
    """

    phases: tuple[Phase, ...] = (Phase(1200, 128, 1, 2), Phase(500, 48, 3, 6), Phase(250, 16, 9, 6))
    offset: float = 0.5
    subject_weight: float = 2.0
    motion_weight: float = 3.0
    played: float = 0.5
    steered: float = 0.0
    still: float = 1.0
    huber: float = 0.0
    perceptual: float = 0.0
    nominal_steps: tuple[int, ...] = ()
    dim: int = 0
    first_shot: float = 0.3
    paraphrase: float = 0.5
    text_drop: float = 0.0
    lr: float = 2e-3
    adam_lr: float = 1e-3
    ema: float = 0.99
    warmup: int = 20
    decay: float = 0.6
    seed: int = 6
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.phases or not 0 < self.offset <= 1:
            raise UserError(f"coupled has at least one phase and an offset above 0 and up to 1, not {self.offset}")
        shares = (self.played, self.steered, self.still)
        if not (all(0 <= share <= 1 for share in shares) and self.still and min(self.huber, self.perceptual) >= 0):
            raise UserError(
                f"played, steered and still of coupled are shares from 0 to 1, still above 0, not {shares}; huber and "
                f"perceptual are 0 or more, not {self.huber} and {self.perceptual}"
            )

    def check_chunks(self, chunk: int) -> None:
        """Raises UserError for phases whose latents are neither one nor whole chunks of ``chunk``."""
        for phase in self.phases:
            if phase.frames != 1 and (phase.frames < 1 or phase.frames % chunk):
                raise UserError(
                    f"a phase of coupled has frames: {phase.frames}, and the student makes {chunk} at a time; use 1 "
                    f"or a multiple of {chunk}"
                )

    @property
    def drawing(self) -> Drawing:
        """How samples are drawn."""
        return Drawing(
            self.text_drop, 0.0, self.first_shot, self.paraphrase, choices=True, steered=self.steered, still=self.still
        )

    @property
    def loop(self) -> LoopConfig:
        """Loop settings."""
        return LoopConfig(sum(p.steps for p in self.phases), self.warmup, self.decay, save_every=40, sheet_every=400)


class CoupledStage(RegressionStage):
    """State and step of the regression. ``sources`` are training stories, those with clips first."""

    name = "coupled"

    def __init__(
        self, recipe: CoupledRecipe, student: Transformer, text: FrozenText, sources: Sequence[TrainingStories],
        held_out: TrainingStories, vae: Codec, team: Team | None = None, net: PerceptualNet | None = None,
    ) -> None:  # fmt: skip
        """``net`` is needed if the recipe's ``perceptual`` is above 0. Raises as ``check_chunks`` does."""
        recipe.check_chunks(student.config.chunk_frames)
        steps = recipe.nominal_steps or student.config.nominal_steps
        student.config = replace(student.config, noise_offset=recipe.offset, nominal_steps=steps)
        super().__init__(recipe, student, text, held_out, vae, team)
        self.recipe, self.sources = recipe, list(sources)
        self.net = net.to(self.device) if net is not None else None
        self.unread = [Unread(source) for source in self.sources]
        self.steps = self.schedule.warp(student.config.nominal_steps)
        if recipe.compile:
            compile_blocks(self.model)

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        recipe = self.recipe
        phase, config = phase_at(recipe.phases, index), self.model.config
        parts, rng = self._parts(phase.batch), np.random.default_rng([recipe.seed, 37, index])
        played = bool(rng.random() < recipe.played)
        samples = draw_samples(self.sources, self.unread, recipe.drawing, phase, rng, config, parts)

        def loss_of(part: Part) -> PartLoss:
            own = samples[part.rows]
            batch = batch_of(own, len(own) if recipe.compile else 1)
            return self._part_loss(phase, batch, PartDraws(self._draws(index), part), played, part.share)

        return self._update(index, lr_factor, loss_of, parts)

    def _part_loss(self, phase: Phase, batch: Batch, draws: PartDraws, played: bool, weight: float) -> PartLoss:
        self._captions += len(batch.captions)
        assert batch.choices is not None
        subjects = subjects_of(batch.parts.to(self.device).float() / 255)
        asked = batch.asked[:, :, None, None, None].to(self.device)
        with self.recipe.autocast(self.device):
            rows = embed(batch.captions, self.text) * batch.kept.to(self.device)
            found = coupled_loss(
                self.model, self.schedule, batch.target.to(self.device), self.steps, batch.conditioning(rows),
                batch.choices.to(self.device), asked * (1 + self.recipe.subject_weight * subjects), draws,
                motion_weight=self.recipe.motion_weight, played=played, huber=self.recipe.huber,
                also=self._perceived if self.recipe.perceptual else None,
            )  # fmt: skip
        kind = f"{phase.context}+{phase.frames}{'' if found.exit_step is None else f'_exit{found.exit_step}'}"
        figures = {f"picture_{kind}": found.picture, f"motion_{kind}": found.motion}
        if found.also is not None:
            figures[f"perceptual_{kind}"] = found.also / self.recipe.perceptual
        return PartLoss(found.loss, figures, weight)

    def _perceived(self, found_BFCHW: Tensor, true_BFCHW: Tensor, weight_BF1HW: Tensor) -> Tensor:
        assert self.net is not None
        return self.recipe.perceptual * perceptual_error(self.net, found_BFCHW, true_BFCHW, weight_BF1HW)

    def work(self, index: int) -> Work:
        phase, config = phase_at(self.recipe.phases, index), self.model.config
        per_frame = config.tokens_per_frame(*self.held_out.single(0, 0, 0).shape[-2:])
        captions = self._captions * self.team.size / phase.batch
        sample = Geometry(config, per_frame, phase.context, phase.frames)
        return step_work(sample, passes(sample, self.recipe.played), phase.batch, captions=captions)


def passes(sample: Geometry, played: float) -> list[Pass]:
    """What a step computes: the history, the regression's pass, and the expected number before it that make its
    input. The network of ``perceptual`` is left out; with `tiny` it adds a twentieth.
    """
    before = played * (len(sample.config.nominal_steps) - 1) / 2
    return [sample.history(), sample.behind(), sample.behind(times=before, trained=False)]
