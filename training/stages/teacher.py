"""Stage ``teacher``: the bidirectional next-shot model, trained from nothing behind the frozen text encoder.

It runs in phases: single frames first (cheap; most of appearance is learnt there), then single frames behind a few
context frames (memory), then short next shots, then whole ones. The loss is step 1 of the paper, and beside it where
the parts of the scene are (:class:`PartHead`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shotstream.runtime.config import TINY, DiTConfig
from shotstream.runtime.model.attention import Attention, Spans, matmul_softmax, sdpa
from shotstream.runtime.model.cache import KeyStore
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.state_dicts import load_dit
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.data.stories import TrainingStories
from shotstream.training.data.teacher_data import Batch, Drawing, Phase, Sample, batch_of, draw_samples, phase_at
from shotstream.training.distributed.accumulate import Part, PartLoss, backward, parts_of
from shotstream.training.distributed.flops import Geometry, Work, step_work
from shotstream.training.distributed.launch import ALONE, Team
from shotstream.training.distributed.scale import Scale
from shotstream.training.distributed.sharding import (
    load_trained,
    place,
    place_part,
    trained_share,
    trained_state,
)
from shotstream.training.method import losses
from shotstream.training.method.conditioning import Conditioning, route_frames
from shotstream.training.method.objectives import target_flow
from shotstream.training.method.sampling import sample_teacher
from shotstream.training.stages.given import Codec, FrozenText, Unread
from shotstream.training.stages.optim import stage_optimizer, take_step
from shotstream.training.stages.part_head import PartHead
from shotstream.training.stages.sheets import shown, to_uint8, write_sheet
from shotstream.training.stages.trainer import Ema, LoopConfig, step_generator

RANDOM = "random"
"""In place of a file of weights: every block takes part from the first step, for dry runs and measurements."""


@dataclass(frozen=True)
class TeacherRecipe(Scale):
    """Hyper-parameters of the teacher stage. ``optimizer`` is "muon" (matrices; AdamW for the rest) or "adamw";
    ``train_only`` limits training to parameters with that word in their name (the reference's ``self_attn``);
    ``init`` is a file with weights to start from, "random" for the model's own random start, or nothing for one that
    suits training. ``weighting``: "uniform", or the reference's "gaussian".
    ``parts_weight`` is the weight of the second loss, 0 for none, read from block ``parts_layer``; ``motion_weight``
    that of :func:`losses.motion_loss`.
    """

    model: DiTConfig = TINY
    phases: tuple[Phase, ...] = (
        Phase(900, 128, 1, 0),
        Phase(900, 48, 1, 2),
        Phase(700, 24, 3, 6),
        Phase(200, 12, 9, 6),
    )
    lr: float = 2e-3
    adam_lr: float = 1.5e-3
    weight_decay: float = 0.02
    ema: float = 0.998
    clip: float = 1.0
    text_drop: float = 0.1
    context_drop: float = 0.1
    first_shot: float = 0.2
    paraphrase: float = 0.7
    weighting: str = "uniform"
    parts_weight: float = 0.25
    parts_layer: int = 3
    motion_weight: float = 0.0
    optimizer: str = "muon"
    betas: tuple[float, float] = (0.9, 0.99)
    train_only: str = ""
    init: str = ""
    warmup: int = 100
    decay: float = 0.35
    seed: int = 0
    compile: bool = False

    @property
    def drawing(self) -> Drawing:
        """How samples are drawn."""
        return Drawing(self.text_drop, self.context_drop, self.first_shot, self.paraphrase)

    @property
    def loop(self) -> LoopConfig:
        """Loop settings of the whole stage."""
        return LoopConfig(sum(p.steps for p in self.phases), self.warmup, self.decay)

    def phase_of(self, step: int) -> Phase:
        """The phase that a step belongs to."""
        return phase_at(self.phases, step)


class TeacherStage:
    """State and step of the teacher stage (see :class:`shotstream.training.stages.trainer.Stage`).

    ``sources`` are training stories, those with clips first; ``text`` is frozen.
    """

    name = "teacher"

    def __init__(
        self,
        recipe: TeacherRecipe,
        sources: Sequence[TrainingStories],
        held_out: TrainingStories,
        text: FrozenText,
        vae: Codec,
        device: torch.device | str = "cpu",
        team: Team | None = None,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.team = team = team or replace(ALONE, device=torch.device(device))
        self.recipe, self.sources, self.held_out, self.vae = recipe, list(sources), held_out, vae
        self.unread = [Unread(source) for source in self.sources]
        self.device = team.device
        self.model = start_model(recipe, self.device)
        self.parts = PartHead(recipe.model)
        if recipe.train_only:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(recipe.train_only in name)
        self.parts.requires_grad_(bool(recipe.parts_weight))
        self.share = trained_share(self.model)
        self.model = place(self.model, team, recipe)
        place_part(self.parts, team, recipe)
        self.text = text
        self.schedule = NoiseSchedule(recipe.model.shift, self.device)
        self.ema = Ema({"dit": self.model}, recipe.ema)
        self.optimizer = stage_optimizer({"dit": self.model, "parts": self.parts}, recipe, takes_adam)
        self._middle: Tensor | None = None
        self._listens = False
        self._captions = 0
        blocks: Any = self.model.blocks  # a ModuleList does not say what it holds
        if recipe.parts_weight:
            blocks[recipe.parts_layer].register_forward_hook(self._keep_middle)
        if recipe.compile:
            compile_blocks(self.model)

    def _keep_middle(self, block: nn.Module, inputs: Any, output: Tensor) -> None:
        if self._listens:  # and not when checkpointing computes the block again
            self._middle = output

    def _losses(self, batch: Batch, rows_NLD: Tensor, noise: Tensor, t_B: Tensor, weight: Tensor) -> dict[str, Tensor]:
        target = batch.target.to(self.device)
        conditioning = batch.conditioning(rows_NLD)
        self._listens = True
        flow = target_flow(self.model, self.schedule.add_noise(target, noise, t_B), t_B, conditioning)
        self._listens = False
        found = {"flow": losses.flow_matching_loss(flow, target, noise, weight)}
        if self.recipe.motion_weight and target.shape[1] > 1:
            found["motion"] = losses.motion_loss(flow, target, noise, t_B / 1000)
        if self._middle is not None:
            found["parts"] = self.parts(self._middle[:, conditioning.context_frames :], batch.parts.to(self.device))
            self._middle = None
        return found

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        recipe = self.recipe
        phase = recipe.phase_of(index)
        parts = parts_of(phase.batch, self.team, recipe.micro_batch)
        rng = np.random.default_rng([recipe.seed, index])
        samples = draw_samples(self.sources, self.unread, recipe.drawing, phase, rng, recipe.model, parts)
        g = step_generator(recipe.seed, index)
        entry = torch.randint(1000, (phase.batch,), generator=g)
        shape = (phase.batch, *samples[parts[0].start].target.shape)
        noise = torch.randn(shape, generator=g)
        self._captions = 0

        def loss_of(part: Part) -> PartLoss:
            return self._part_loss(phase, samples[part.rows], entry[part.rows], noise[part.rows], part)

        figures = backward(parts, loss_of, self.team)
        norm = take_step(self.optimizer, (self.model, self.parts), recipe.clip, lr_factor)
        self.ema.update(index)
        return figures | {"grad_norm": norm}

    def _part_loss(self, phase: Phase, samples: list[Sample], entry: Tensor, noise: Tensor, part: Part) -> PartLoss:
        recipe = self.recipe
        batch = batch_of(samples, len(samples) if recipe.compile else 1)
        self._captions += len(batch.captions)
        gaussian = recipe.weighting == "gaussian"
        weight = self.schedule.loss_weights.cpu()[entry] if gaussian else torch.ones(len(samples))
        t = self.schedule.timesteps.cpu()[entry].to(self.device)
        with recipe.autocast(self.device):
            rows = self.text.encode(batch.captions) * batch.kept.to(self.device)
            found = self._losses(batch, rows, noise.to(self.device), t, weight.to(self.device))
        total = found["flow"]
        for name, share in (("parts", recipe.parts_weight), ("motion", recipe.motion_weight)):
            if name in found:
                total = total + share * found[name]
        figures = {f"{name}_{phase.context}+{phase.frames}": loss for name, loss in found.items()}
        return PartLoss(total, figures, part.share)

    def work(self, index: int) -> Work:
        phase, config = self.recipe.phase_of(index), self.recipe.model
        height, width = self.held_out.single(0, 0, 0).shape[-2:]
        sample = Geometry(config, config.tokens_per_frame(height, width), phase.context, phase.frames)
        captions = self._captions * self.team.size / phase.batch
        return step_work(
            sample, [sample.everything(trained=True)], phase.batch, captions=captions, trained_share=self.share
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "dit": trained_state(self.model),
            "parts": trained_state(self.parts),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_trained(self.model, state["dit"])
        load_trained(self.parts, state["parts"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def sample_sheet(self, path: Path) -> None:
        """Held-out stories: last history frame, three generated frames, the true last frame."""
        self.ema.swap()
        try:
            rows = [self._sample_row(story, shot) for story, shot in shown(self.held_out, 6)]
            if self.team.first:
                write_sheet(rows, path)
        finally:
            self.ema.swap()

    def _sample_row(self, story: int, shot: int) -> tuple[str, list[np.ndarray]]:
        data, c = self.held_out, self.recipe.model
        context, shots = data.context(story, shot, c.context_frames)
        routing = route_frames(shots, 3, shot, shot + 1, context_frames=c.context_frames)
        captions = data.captions(story, list(range(shot + 1)), None)
        rows = self.text.encode(captions).clone()
        conditioning = Conditioning(
            context[None].to(self.device), rows,
            torch.tensor([routing.flags], device=self.device), torch.tensor([routing.captions], device=self.device),
        )  # fmt: skip
        noise = torch.randn(1, 3, *context.shape[1:], generator=step_generator(7, story)).to(self.device)
        with self.recipe.autocast(self.device):
            made = sample_teacher(
                self.model, self.schedule, noise, conditioning, torch.zeros_like(rows[:1]), steps=16, guidance=3.0
            ).x0_BFCHW
        if not self.team.first:
            return captions[-1], []
        history = to_uint8(self.vae.decode(context[None, -1:].to(self.device)))[0, 0]
        truth = to_uint8(self.vae.decode(data.clip(story, shot, 3)[None].to(self.device)))[0]
        video = to_uint8(self.vae.decode(made.float()))[0]
        return captions[-1], [history, video[0], video[4], video[8], truth[8]]


def training_attention(device: torch.device | str) -> Attention:
    """The attention to differentiate through: torch's fused kernel, except on CPU where its backward is slow."""
    return matmul_softmax if torch.device(device).type == "cpu" else sdpa


def compile_blocks(model: Transformer) -> None:
    """Block by block: one small graph serves all, where the whole step compiles for minutes."""
    # every layer, phase, number of captions and gradient mode is a graph of its own; torch gives up on all after eight
    torch._dynamo.config.recompile_limit = 64
    blocks: Any = model.blocks  # a ModuleList does not say what it holds
    for block in blocks:
        block.forward = _compiled(block.forward)


def _compiled(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A block's forward pass, compiled but for roll-outs: their caches grow, and every length would be a graph."""
    quick = torch.compile(plain, dynamic=False)

    def forward(
        x: Tensor, e0: Tensor, rope: Any, text_kv: Any, index: Tensor | None, keys: KeyStore | None, layer: int,
        mask: Tensor | Spans | None, kv_only: bool,
    ) -> Any:  # fmt: skip
        grows = keys is not None and not isinstance(mask, Spans)
        return (plain if grows else quick)(x, e0, rope, text_kv, index, keys, layer, mask, kv_only)

    return forward


def start_model(recipe: TeacherRecipe, device: torch.device | str) -> Transformer:
    """The transformer to train: fresh, or the weights of ``recipe.init`` in any layout that ``convert`` reads."""
    model = Transformer(recipe.model, training_attention(device))
    if recipe.init == RANDOM:
        return model
    if recipe.init:
        model.load_state_dict(load_dit(Path(recipe.init), recipe.model))
        return model
    return initialise(model)


def takes_adam(name: str) -> bool:
    """Embeddings, tables, heads and the patch projection are no maps between hidden features: AdamW's share."""
    parts = ("word.", "group.", "position", "modulation", "patch_embedding", "head.head", "time_embedding.0")
    return any(part in name for part in parts)


def initialise(model: Transformer) -> Transformer:
    """Every block starts as the identity and the head at zero, so that the loss starts at the data's variance."""
    with torch.no_grad():
        blocks: Any = model.blocks  # a ModuleList does not say what it holds
        for block in blocks:
            for linear in (block.self_attn.o, block.cross_attn.o, block.ffn[2]):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
            block.modulation.normal_(std=0.02)
            block.modulation[:, [2, 5]] += 1.0
        nn.init.zeros_(model.head.head.weight)
        nn.init.zeros_(model.head.head.bias)
        projection: Any = model.time_projection[1]
        nn.init.zeros_(projection.weight)
        nn.init.zeros_(projection.bias)
        model.head.modulation.normal_(std=0.02)
    return model
