"""Stages ``intra`` and ``inter``: distribution matching with self-forcing, inside a shot and across shots.

``intra`` draws one shot behind ground-truth history per step; ``inter`` makes whole stories shot by shot, each behind
the
model's own decoded shots, with LoRA adapters on generator and critic.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.model.context import choose_context
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.text.tiny import TinyTextEncoder
from shotstream.training.data.batches import Condition, draw_condition, encode
from shotstream.training.data.latents import LatentStories
from shotstream.training.method.conditioning import Conditioning, route_frames
from shotstream.training.method.draws import TorchDraws
from shotstream.training.method.lora import inject_lora
from shotstream.training.method.objectives import DmdSettings, dmd_critic_loss, dmd_generator_loss
from shotstream.training.stages.student_sheet import write_student_sheet
from shotstream.training.stages.trainer import Ema, LoopConfig, step_generator


@dataclass(frozen=True)
class DmdRecipe:
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
    bf16: bool = True
    sheet_every: int = 100

    @property
    def loop(self) -> LoopConfig:
        """Loop settings."""
        return LoopConfig(
            self.steps, self.warmup, self.decay, save_every=20, log_every=10, sheet_every=self.sheet_every
        )


class _Dmd:
    """What both stages share: three networks, two optimizers, the alternation."""

    def __init__(
        self, recipe: DmdRecipe, generator: Transformer, fake: Transformer, real: Transformer, text: TinyTextEncoder,
        data: LatentStories, held_out: LatentStories, vae: TinyVAE,
    ) -> None:  # fmt: skip
        self.recipe, self.data, self.held_out, self.text, self.vae = recipe, data, held_out, text, vae
        self.generator, self.fake, self.real = generator, fake, real.requires_grad_(False).eval()
        config = generator.config
        self.device = next(generator.parameters()).device
        self.schedule = NoiseSchedule(config.shift, self.device)
        self.steps = self.schedule.warp(config.nominal_steps)
        self.negative = torch.zeros(1, config.text_len, config.text_dim, device=self.device)
        self.settings = DmdSettings(guidance=recipe.guidance)
        own, critic = self._trainable(generator), self._trainable(fake)
        self.optimizer = torch.optim.AdamW(own, lr=recipe.lr, betas=(0.0, 0.999), weight_decay=0.01)
        self.critic_optimizer = torch.optim.AdamW(critic, lr=recipe.critic_lr, betas=(0.0, 0.999), weight_decay=0.01)
        self.ema = Ema({"dit": generator}, recipe.ema)

    def _trainable(self, model: Transformer) -> list[nn.Parameter]:
        if self.recipe.lora_rank:
            return inject_lora(model, self.recipe.lora_rank, float(self.recipe.lora_rank))
        return list(model.parameters())

    def _update(self, count: int, conditioning: Conditioning, lr_factor: float) -> tuple[dict[str, float], Tensor]:
        """One generator or critic update, by ``count``; returns figures and the roll-out's latents."""
        recipe = self.recipe
        draws = TorchDraws(
            step_generator(recipe.seed, count, self.device), device=self.device,
            noise_share=self.generator.config.noise_share,
        )  # fmt: skip
        of_generator = count % recipe.ratio == 0
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
            if of_generator:
                result = dmd_generator_loss(
                    self.generator, self.real, self.fake, self.schedule, self.steps, conditioning, self.negative,
                    recipe.frames, draws, settings=self.settings,
                )  # fmt: skip
            else:
                result = dmd_critic_loss(
                    self.generator, self.fake, self.schedule, self.steps, conditioning, recipe.frames, draws,
                    settings=self.settings,
                )  # fmt: skip
        result.loss.backward()
        optimizer, rate = (self.optimizer, recipe.lr) if of_generator else (self.critic_optimizer, recipe.critic_lr)
        clip = recipe.clip if of_generator else recipe.critic_clip
        norm = nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip)
        for group in optimizer.param_groups:
            group["lr"] = rate * lr_factor
        optimizer.step()
        optimizer.zero_grad()
        if of_generator:
            self.ema.update(count // recipe.ratio)
        name = "generator" if of_generator else "critic"
        return {f"{name}_loss": result.loss.item(), f"{name}_norm": norm.item()}, result.x0_BFCHW

    def state_dict(self) -> dict[str, Any]:
        return {
            "dit": self.generator.state_dict(),
            "fake": self.fake.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["dit"])
        self.fake.load_state_dict(state["fake"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])

    def sample_sheet(self, path: Path) -> None:
        """The student's next shots of held-out stories."""
        self.ema.swap()
        write_student_sheet(self.generator, self.text, self.vae, self.held_out, path, self.recipe.frames)
        self.ema.swap()


class IntraStage(_Dmd):
    """Step 2.2.1: history is ground truth, one shot a step."""

    name = "intra"

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, 21, index])
        config = self.generator.config
        conditions = [
            draw_condition(self.data, config, recipe.frames, rng, context_drop=recipe.context_drop)
            for _ in range(recipe.batch)
        ]
        figures, _ = self._update(index, encode(conditions, self.text, self.device), lr_factor)
        return figures


class InterStage(_Dmd):
    """Step 2.2.2: a step makes whole stories; every shot is one update behind the model's own earlier shots."""

    name = "inter"

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, 22, index])
        stories = rng.integers(len(self.data), size=recipe.batch)
        wordings = [int(w) for w in rng.integers(1 << 30, size=recipe.batch)]
        shots = min(recipe.shots, self.data.plan.shots)
        captions = [self.data.captions(int(s), list(range(shots)), w) for s, w in zip(stories, wordings, strict=True)]
        videos: list[Tensor] = []
        figures: dict[str, float] = {}
        for shot in range(shots):
            conditions = self._conditions(videos, captions, shot, rng.random(recipe.batch) < recipe.context_drop)
            conditioning = encode(conditions, self.text, self.device)
            new, x0 = self._update(index * shots + shot, conditioning, lr_factor)
            figures |= new
            with torch.no_grad():
                videos.append(self.vae.decode(x0.float()))
        return figures

    @torch.no_grad()
    def _conditions(
        self, videos: list[Tensor], captions: list[list[str]], shot: int, dropped: np.ndarray
    ) -> list[Condition]:
        """Context of every story from its own decoded shots, each chosen frame encoded alone."""
        config, recipe = self.generator.config, self.recipe
        chosen = choose_context([v.shape[1] for v in videos], config.context_frames)
        conditions = []
        for i in range(recipe.batch):
            if shot == 0 or dropped[i]:
                like = self.data.single(0, 0, 0)
                empty = like.new_zeros(config.context_frames, *like.shape)
                routing = route_frames(
                    [], recipe.frames, 0, 1, context_frames=config.context_frames, context_dropped=True
                )
                conditions.append(Condition(empty, routing, [captions[i][shot]]))
                continue
            frames = torch.stack([videos[s][i, frame] for s, frame in chosen])
            context = self.vae.encode_frames(frames).float().cpu()
            routing = route_frames(
                [s for s, _ in chosen], recipe.frames, shot, shot + 1, context_frames=config.context_frames
            )
            conditions.append(Condition(context, routing, captions[i][: shot + 1]))
        return conditions
