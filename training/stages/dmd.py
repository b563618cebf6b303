"""Stages ``intra`` and ``inter``: distribution matching with self-forcing, inside a shot and across shots.

``intra`` draws one shot behind ground-truth history per step; ``inter`` makes whole stories shot by shot, each behind
the model's own decoded shots, with LoRA adapters on generator and critic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shotstream.runtime.model.context import choose_context
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.data.batches import Condition, draw_condition, encode
from shotstream.training.data.stories import TrainingStories
from shotstream.training.distributed.accumulate import Part, PartDraws, PartLoss, backward, parts_of
from shotstream.training.distributed.flops import Geometry, Work, step_work
from shotstream.training.distributed.launch import ALONE, Team
from shotstream.training.distributed.scale import Scale
from shotstream.training.distributed.sharding import load_trained, place, trained_share, trained_state
from shotstream.training.method.conditioning import Conditioning, route_frames
from shotstream.training.method.draws import TorchDraws
from shotstream.training.method.lora import inject_lora
from shotstream.training.method.objectives import DmdLoss, DmdSettings, dmd_critic_loss, dmd_generator_loss
from shotstream.training.stages.given import Codec, FrozenText, Unread
from shotstream.training.stages.optim import MuonAdamW, build_adamw, take_step
from shotstream.training.stages.student_sheet import write_student_sheet
from shotstream.training.stages.trainer import Ema, LoopConfig, step_generator

Conditions = Callable[[Part], Conditioning]


@dataclass(frozen=True)
class DmdRecipe(Scale):
    """Hyper-parameters of both stages. Every ``ratio``-th step updates the generator, the others the critic.

    ``guidance`` is the reference's scale (the usual weight is one more). ``lora_rank`` 0 trains all weights.
    """

    steps: int = 300
    batch: int = 8
    frames: int = 9
    shots: int = 4
    ratio: int = 5
    lr: float = 1e-4
    critic_lr: float = 1e-4
    guidance: float = 2.0
    clip: float = 1.0
    critic_clip: float = 1.0
    ema: float = 0.9
    lora_rank: int = 0
    context_drop: float = 0.1
    warmup: int = 10
    decay: float = 0.3
    seed: int = 2
    sheet_every: int = 100

    @property
    def loop(self) -> LoopConfig:
        """Loop settings."""
        return LoopConfig(
            self.steps, self.warmup, self.decay, save_every=20, log_every=10, sheet_every=self.sheet_every
        )


class _Dmd:
    """What both stages share: three networks, two optimizers, the alternation."""

    name: str

    def __init__(
        self, recipe: DmdRecipe, generator: Transformer, fake: Transformer, real: Transformer, text: FrozenText,
        data: TrainingStories, held_out: TrainingStories, vae: Codec, team: Team | None = None,
    ) -> None:  # fmt: skip
        self.team = team = team or replace(ALONE, device=next(generator.parameters()).device)
        self.recipe, self.data, self.held_out, self.text, self.vae = recipe, data, held_out, text, vae
        self.device = team.device
        torch.manual_seed(recipe.seed)  # adapters begin alike in every process
        self.generator, self.fake = (self._trainable(model, team) for model in (generator, fake))
        self.real = place(real.requires_grad_(False).eval(), team, recipe)
        config = generator.config
        self.schedule = NoiseSchedule(config.shift, self.device)
        self.steps = self.schedule.warp(config.nominal_steps)
        self.negative = torch.zeros(1, config.text_len, config.text_dim, device=self.device)
        self.settings = DmdSettings(guidance=recipe.guidance)
        self.share = trained_share(self.generator)
        self.optimizer = _adamw(self.generator, recipe.lr)
        self.critic_optimizer = _adamw(self.fake, recipe.critic_lr)
        self.ema = Ema({"dit": self.generator}, recipe.ema)
        self._captions = 0

    def _trainable(self, model: Transformer, team: Team) -> Transformer:
        if self.recipe.lora_rank:
            inject_lora(model, self.recipe.lora_rank, float(self.recipe.lora_rank))
        return place(model, team, self.recipe)

    def _parts(self) -> list[Part]:
        return parts_of(self.recipe.batch, self.team, self.recipe.micro_batch)

    def _update(
        self, count: int, conditions: Conditions, lr_factor: float, parts: Sequence[Part]
    ) -> tuple[dict[str, float], Tensor]:
        """One generator or critic update, by ``count``; returns figures and the latents of this process's roll-outs."""
        recipe = self.recipe
        of_generator = count % recipe.ratio == 0
        name = "generator" if of_generator else "critic"
        latents: list[Tensor] = []
        self._captions = 0

        def loss_of(part: Part) -> PartLoss:
            conditioning = conditions(part)
            self._captions += len(conditioning.captions_NLD)
            whole = TorchDraws(
                step_generator(recipe.seed, count, self.device), device=self.device,
                noise_offset=self.generator.config.noise_offset, patch=self.generator.config.patch[1:],
            )  # fmt: skip
            with recipe.autocast(self.device):
                result = self._loss(of_generator, conditioning, PartDraws(whole, part))
            latents.append(result.x0_BFCHW)
            return PartLoss(result.loss, {f"{name}_loss": result.loss}, part.share)

        figures = backward(parts, loss_of, self.team)
        if of_generator:
            norm = take_step(self.optimizer, (self.generator,), recipe.clip, lr_factor)
            self.ema.update(count // recipe.ratio)
        else:
            norm = take_step(self.critic_optimizer, (self.fake,), recipe.critic_clip, lr_factor)
        return figures | {f"{name}_norm": norm}, torch.cat(latents)

    def _loss(self, of_generator: bool, conditioning: Conditioning, draws: PartDraws) -> DmdLoss:
        frames = self.recipe.frames
        if of_generator:
            return dmd_generator_loss(
                self.generator, self.real, self.fake, self.schedule, self.steps, conditioning, self.negative, frames,
                draws, settings=self.settings,
            )  # fmt: skip
        return dmd_critic_loss(
            self.generator, self.fake, self.schedule, self.steps, conditioning, frames, draws, settings=self.settings
        )

    def _update_work(self, count: int) -> Work:
        config, recipe = self.generator.config, self.recipe
        height, width = self.data.single(0, 0, 0).shape[-2:]
        sample = Geometry(config, config.tokens_per_frame(height, width), config.context_frames, recipe.frames)
        passes = sample.generator() if count % recipe.ratio == 0 else sample.critic()
        captions = self._captions * self.team.size / recipe.batch
        return step_work(sample, passes, recipe.batch, captions=captions, trained_share=self.share)

    def state_dict(self) -> dict[str, Any]:
        return {
            "dit": trained_state(self.generator),
            "fake": trained_state(self.fake),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_trained(self.generator, state["dit"])
        load_trained(self.fake, state["fake"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])

    def sample_sheet(self, path: Path) -> None:
        """The student's next shots of held-out stories."""
        self.ema.swap()
        sheet = path if self.team.first else None
        write_student_sheet(self.generator, self.text, self.vae, self.held_out, sheet, self.recipe, self.recipe.frames)
        self.ema.swap()


def _adamw(model: Transformer, lr: float) -> MuonAdamW:
    return build_adamw(model.named_parameters(), lr=lr, betas=(0.0, 0.999), weight_decay=0.01)


class IntraStage(_Dmd):
    """Step 2.2.1: history is ground truth, one shot a step."""

    name = "intra"

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        recipe, parts = self.recipe, self._parts()
        rng = np.random.default_rng([recipe.seed, 21, index])
        unread, config = Unread(self.data), self.generator.config
        own = range(parts[0].start, parts[-1].stop)
        conditions = [
            draw_condition(
                self.data if i in own else unread, config, recipe.frames, rng, context_drop=recipe.context_drop
            )
            for i in range(recipe.batch)
        ]

        def conditioning(part: Part) -> Conditioning:
            return encode(conditions[part.rows], self.text, self.device)

        figures, _ = self._update(index, conditioning, lr_factor, parts)
        return figures

    def work(self, index: int) -> Work:
        return self._update_work(index)


class InterStage(_Dmd):
    """Step 2.2.2: a step makes whole stories; every shot is one update behind the model's own earlier shots."""

    name = "inter"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        shots = [self.data.shots(story) for story in range(len(self.data))]
        self.shots = min(self.recipe.shots, max(shots))
        self.stories = [story for story, count in enumerate(shots) if count >= self.shots]

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        recipe, parts = self.recipe, self._parts()
        rng = np.random.default_rng([recipe.seed, 22, index])
        stories = [self.stories[i] for i in rng.integers(len(self.stories), size=recipe.batch)]
        wordings = [int(w) for w in rng.integers(1 << 30, size=recipe.batch)]
        own = range(parts[0].start, parts[-1].stop)
        captions = {i: self.data.captions(stories[i], list(range(self.shots)), wordings[i]) for i in own}
        videos: list[Tensor] = []  # of this process's rows, shot by shot
        figures: dict[str, float] = {}
        for shot in range(self.shots):
            dropped = rng.random(recipe.batch) < recipe.context_drop
            conditions = {
                i: self._condition([v[i - own.start] for v in videos], captions[i], shot, bool(dropped[i])) for i in own
            }

            def conditioning(part: Part, conditions: dict[int, Condition] = conditions) -> Conditioning:
                return encode([conditions[i] for i in range(part.start, part.stop)], self.text, self.device)

            new, x0 = self._update(index * self.shots + shot, conditioning, lr_factor, parts)
            figures |= new
            with torch.no_grad():
                videos.append(self.vae.decode(x0.float()))
        return figures

    def work(self, index: int) -> Work:
        updates = [self._update_work(index * self.shots + shot) for shot in range(self.shots)]
        return Work(sum(u.tokens for u in updates), sum(u.flop for u in updates))

    @torch.no_grad()
    def _condition(self, videos: list[Tensor], captions: list[str], shot: int, dropped: bool) -> Condition:
        """Context of a story from its own decoded shots ``[T, 3, H, W]``, each chosen frame encoded alone."""
        config, frames = self.generator.config, self.recipe.frames
        if shot == 0 or dropped:
            like = self.data.single(0, 0, 0)
            empty = like.new_zeros(config.context_frames, *like.shape)
            routing = route_frames([], frames, 0, 1, context_frames=config.context_frames, context_dropped=True)
            return Condition(empty, routing, [captions[shot]])
        chosen = choose_context([len(v) for v in videos], config.context_frames)
        context = self.vae.encode_frames(torch.stack([videos[s][frame] for s, frame in chosen])).float().cpu()
        routing = route_frames([s for s, _ in chosen], frames, shot, shot + 1, context_frames=config.context_frames)
        return Condition(context, routing, captions[: shot + 1])
