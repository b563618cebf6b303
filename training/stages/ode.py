"""Stage ``ode``: pairs from the teacher's sampler, then the causal initialisation of the student by regression.

The pairs are shards in a folder, made once; a killed run makes the missing ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.schedule import NoiseSchedule, shift_sigma
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.text.tiny import TinyTextEncoder
from shotstream.training.data.batches import Condition, draw_condition, encode
from shotstream.training.data.latents import LatentStories
from shotstream.training.method.clean_history import clean_history_ode_loss
from shotstream.training.method.conditioning import Conditioning, Routing
from shotstream.training.method.draws import TorchDraws, shot_noise
from shotstream.training.method.objectives import TRAJECTORY_STEPS, ode_loss
from shotstream.training.method.sampling import sample_teacher
from shotstream.training.stages.optim import build_adamw, build_optimizer
from shotstream.training.stages.student_sheet import write_student_sheet
from shotstream.training.stages.teacher import takes_adam
from shotstream.training.stages.trainer import Ema, LoopConfig, step_generator

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OdeRecipe:
    """Hyper-parameters. ``substeps`` Euler steps lie between two neighbouring student steps, so that the saved states
    have
    exactly the student's noise levels; 0 means the reference's 50 uniform steps, which have them at 0, 13, 25 and 37.
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
    bf16: bool = True
    history: str = "mixed"

    def __post_init__(self) -> None:
        if self.history not in ("mixed", "clean"):
            raise UserError(f"history is 'mixed' or 'clean', not {self.history!r}")

    @property
    def loop(self) -> LoopConfig:
        """Loop settings of the regression."""
        return LoopConfig(self.steps, self.warmup, self.decay, save_every=40, log_every=10, sheet_every=120)


def sampler_sigmas(schedule: NoiseSchedule, nominal: tuple[int, ...], substeps: int) -> Tensor:
    """Noise levels from 1 to 0 that pass through the student's, with ``substeps`` Euler steps between neighbours.

    0 means the reference's 50 uniform steps.
    """
    if substeps == 0:
        return schedule.euler_sigmas(50)
    levels = [n / 1000 for n in nominal] + [0.0]
    u = [torch.linspace(a, b, substeps + 1)[:-1] for a, b in pairwise(levels)]
    return shift_sigma(torch.cat([*u, torch.zeros(1)]), schedule.shift)


@torch.no_grad()
def make_pairs(
    teacher: Transformer,
    text: TinyTextEncoder,
    data: LatentStories,
    recipe: OdeRecipe,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the missing shards of teacher trajectories, ``pair_batch`` samples each."""
    out.mkdir(parents=True, exist_ok=True)
    config = teacher.config
    device = next(teacher.parameters()).device
    schedule = NoiseSchedule(config.shift, device)
    sigmas = sampler_sigmas(schedule, config.nominal_steps, recipe.substeps)
    saved = list(TRAJECTORY_STEPS)
    if recipe.substeps:
        saved = [i * recipe.substeps for i in range(len(config.nominal_steps))]
    shards = -(-recipe.pairs // recipe.pair_batch)
    for shard in range(shards):
        path = out / f"pairs_{shard:05d}.safetensors"
        if path.exists():
            continue
        rng = np.random.default_rng([recipe.seed, 11, shard])
        conditions = [
            draw_condition(data, config, recipe.frames, rng, context_drop=0.0) for _ in range(recipe.pair_batch)
        ]
        conditioning = encode(conditions, text, device)
        shape = (recipe.pair_batch, recipe.frames, *conditions[0].context.shape[1:])
        noise = shot_noise(shape, config.noise_share, step_generator(recipe.seed, shard)).to(device)
        negative = torch.zeros(1, config.text_len, config.text_dim, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
            made = sample_teacher(
                teacher, schedule, noise, conditioning, negative, guidance=recipe.guidance, save=saved, sigmas=sigmas
            )
        states = torch.stack([*(made.states[i] for i in saved), made.x0_BFCHW], dim=1)
        _write_shard(path, states, conditions)
        if progress is not None:
            progress(shard + 1, shards)


def _write_shard(path: Path, states: Tensor, conditions: list[Condition]) -> None:
    tensors = {
        "states": states.half().cpu().contiguous(),
        "context": torch.stack([c.context for c in conditions]).half().contiguous(),
        "flags": torch.tensor([c.routing.flags for c in conditions]),
        "rows": torch.tensor([c.routing.captions for c in conditions]),
    }
    captions = {f"captions_{i}": "\n".join(c.captions) for i, c in enumerate(conditions)}
    scratch = path.with_suffix(".tmp")
    save_file(tensors, scratch, metadata=captions)
    scratch.replace(path)


class Pairs:
    """All trajectory shards of a folder in memory."""

    def __init__(self, folder: Path) -> None:
        self.states: list[Tensor] = []
        self.conditions: list[Condition] = []
        for path in sorted(folder.glob("pairs_*.safetensors")):
            with safe_open(path, "pt") as file:
                captions = file.metadata()
                states, context = file.get_tensor("states"), file.get_tensor("context")
                flags, rows = file.get_tensor("flags").tolist(), file.get_tensor("rows").tolist()
            for i in range(len(states)):
                self.states.append(states[i])
                routing = Routing(tuple(flags[i]), tuple(rows[i]))
                self.conditions.append(Condition(context[i].float(), routing, captions[f"captions_{i}"].split("\n")))
        if not self.states:
            raise UserError(f"no trajectory shards in {folder}; run 'shotstream train ode' from the beginning")


class OdeStage:
    """State and step of the regression (see :class:`shotstream.training.stages.trainer.Stage`)."""

    name = "ode"

    def __init__(
        self, recipe: OdeRecipe, student: Transformer, text: TinyTextEncoder, pairs: Pairs, held_out: LatentStories,
        vae: TinyVAE,
    ) -> None:  # fmt: skip
        self.recipe, self.model, self.text, self.pairs = recipe, student, text, pairs
        self.held_out, self.vae = held_out, vae
        self.device = next(student.parameters()).device
        self.schedule = NoiseSchedule(student.config.shift, self.device)
        self.steps = torch.cat([self.schedule.warp(student.config.nominal_steps), torch.zeros(1, device=self.device)])
        self.ema = Ema({"dit": student}, recipe.ema)
        if recipe.optimizer == "adamw":
            self.optimizer = build_adamw(
                student.named_parameters(), lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
            )
        else:
            self.optimizer = build_optimizer(
                student.named_parameters(), lr=recipe.lr, adam_lr=recipe.adam_lr, weight_decay=recipe.weight_decay,
                betas=recipe.betas, adam_only=takes_adam,
            )  # fmt: skip

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, 12, index])
        picks = rng.integers(len(self.pairs.states), size=recipe.batch)
        conditioning = encode([self.pairs.conditions[i] for i in picks], self.text, self.device)
        if rng.random() < recipe.text_drop:
            conditioning = Conditioning(
                conditioning.context_BFCHW, torch.zeros_like(conditioning.captions_NLD),
                conditioning.flags_BF, conditioning.caption_index_BF,
            )  # fmt: skip
        states = torch.stack([self.pairs.states[i] for i in picks]).float().to(self.device)
        draws = TorchDraws(step_generator(recipe.seed, index, self.device), device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
            loss = clean_history_ode_loss if recipe.history == "clean" else ode_loss
            result = loss(self.model, self.schedule, states, self.steps, conditioning, draws)
        result.loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimizer.set_lr(lr_factor)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(index)
        return {"loss": result.loss.item(), "grad_norm": norm.item()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "dit": self.model.state_dict(), "ema": self.ema.state_dict(), "optimizer": self.optimizer.state_dict()
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["dit"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])

    def sample_sheet(self, path: Path) -> None:
        """The student's own next shots of held-out stories, rolled out chunk by chunk."""
        self.ema.swap()
        write_student_sheet(self.model, self.text, self.vae, self.held_out, path, self.recipe.frames)
        self.ema.swap()
