"""Stage ``teacher``: the bidirectional next-shot model, trained from nothing behind the frozen text encoder.

It runs in phases: single frames first (cheap; most of appearance is learnt there), then single frames behind a few
context frames (memory), then short next shots, then whole ones. The loss is step 1 of the paper, and beside it where
the parts of the scene are (:class:`PartHead`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shotstream.runtime.config import TINY, DiTConfig
from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.model.attention import Attention, matmul_softmax, sdpa
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.state_dicts import load_dit
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.text.tiny import TinyTextEncoder
from shotstream.training.data.latents import LatentStories
from shotstream.training.data.teacher_data import Batch, Drawing, Phase, batch_of, draw_sample
from shotstream.training.method import losses
from shotstream.training.method.conditioning import Conditioning, route_frames
from shotstream.training.method.draws import shot_noise
from shotstream.training.method.objectives import target_flow
from shotstream.training.method.sampling import sample_teacher
from shotstream.training.stages.optim import build_adamw, build_optimizer
from shotstream.training.stages.sheets import to_uint8, write_sheet
from shotstream.training.stages.trainer import Ema, LoopConfig, step_generator
from shotstream.training.world.parts import PARTS


@dataclass(frozen=True)
class TeacherRecipe:
    """Hyper-parameters of the teacher stage. ``optimizer`` is "muon" (matrices; AdamW for the rest) or "adamw";
    ``train_only`` limits training to parameters with that word in their name (the reference's ``self_attn``);
    ``init`` is a file with weights to start from. ``weighting``: "uniform", or the reference's "gaussian".
    ``parts_weight`` is the weight of the second loss, 0 for none, read from block ``parts_layer``; ``motion_weight``
    that of :func:`losses.motion_loss`. ``noise_share`` replaces the model's.
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
    noise_share: float = 0.0
    optimizer: str = "muon"
    betas: tuple[float, float] = (0.9, 0.99)
    train_only: str = ""
    init: str = ""
    warmup: int = 100
    decay: float = 0.35
    seed: int = 0
    compile: bool = False
    bf16: bool = True

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
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]


class PartHead(nn.Module):
    """A linear look at a middle block's features: which parts of the scene fill each cell of a token.

    It exists only while the teacher trains. Middle layers that must know where an ear is, learn what an ear is sooner
    than the flow alone teaches them (after Yu et al., "Representation alignment for generation", 2024, with the world's
    own knowledge in place of a pretrained network's).
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.patch = config.patch[1:]
        self.linear = nn.Linear(config.dim, self.patch[0] * self.patch[1] * len(PARTS))

    def forward(self, x_BFTD: Tensor, parts_BFHWP: Tensor) -> Tensor:
        """Mean cross entropy against shares in 255ths of the same frames."""
        rows, columns = self.patch
        cells = parts_BFHWP.unflatten(3, (-1, columns)).unflatten(2, (-1, rows)).permute(0, 1, 2, 4, 3, 5, 6)
        target = cells.flatten(4, 5).flatten(2, 3).float() / 255
        logits = self.linear(x_BFTD).float().unflatten(-1, (rows * columns, len(PARTS)))
        return -(target * logits.log_softmax(-1)).sum(-1).mean()


class TeacherStage:
    """State and step of the teacher stage (see :class:`shotstream.training.stages.trainer.Stage`).

    ``sources`` are training stories, those with clips first; ``text`` is frozen.
    """

    name = "teacher"

    def __init__(
        self,
        recipe: TeacherRecipe,
        sources: Sequence[LatentStories],
        held_out: LatentStories,
        text: TinyTextEncoder,
        vae: TinyVAE,
        device: torch.device | str = "cpu",
    ) -> None:
        torch.manual_seed(recipe.seed)
        recipe = replace(recipe, model=replace(recipe.model, noise_share=recipe.noise_share))
        self.recipe, self.sources, self.held_out, self.vae = recipe, list(sources), held_out, vae
        self.device = torch.device(device)
        self.model = start_model(recipe, device).to(self.device)
        self.text = text.eval().requires_grad_(False).to(self.device)
        self.parts = PartHead(recipe.model).to(self.device)
        self.schedule = NoiseSchedule(recipe.model.shift, self.device)
        self.ema = Ema({"dit": self.model}, recipe.ema)
        named = [(f"dit.{k}", p) for k, p in self.model.named_parameters()]
        if recipe.train_only:
            for name, parameter in named:
                parameter.requires_grad_(recipe.train_only in name)
        if recipe.parts_weight:
            named += [(f"parts.{k}", p) for k, p in self.parts.named_parameters()]
        if recipe.optimizer == "adamw":
            self.optimizer = build_adamw(named, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay)
        else:
            self.optimizer = build_optimizer(
                named, lr=recipe.lr, adam_lr=recipe.adam_lr, weight_decay=recipe.weight_decay, betas=recipe.betas,
                adam_only=takes_adam,
            )  # fmt: skip
        self._middle: Tensor | None = None
        blocks: Any = self.model.blocks  # a ModuleList does not say what it holds
        if recipe.parts_weight:
            blocks[recipe.parts_layer].register_forward_hook(self._keep_middle)
        if recipe.compile:
            # Block by block: one small graph serves all eight, where the whole step compiles for minutes.
            for block in blocks:
                block.forward = torch.compile(block.forward, dynamic=False)

    def _keep_middle(self, block: nn.Module, inputs: Any, output: Tensor) -> None:
        self._middle = output

    def _losses(self, batch: Batch, rows_NLD: Tensor, noise: Tensor, t_B: Tensor, weight: Tensor) -> dict[str, Tensor]:
        target = batch.target.to(self.device)
        conditioning = Conditioning(
            batch.context.to(self.device), rows_NLD, batch.flags.to(self.device), batch.rows.to(self.device),
            batch.positions.to(self.device),
        )  # fmt: skip
        flow = target_flow(self.model, self.schedule.add_noise(target, noise, t_B), t_B, conditioning)
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
        rng = np.random.default_rng([recipe.seed, index])
        g = step_generator(recipe.seed, index)
        samples = [draw_sample(self.sources, recipe.drawing, phase, rng, recipe.model) for _ in range(phase.batch)]
        batch = batch_of(samples, phase.batch if recipe.compile else 1)
        words, groups = self.text.ids(batch.captions)
        entry = torch.randint(1000, (phase.batch,), generator=g)
        noise = shot_noise(tuple(batch.target.shape), recipe.model.noise_share, g).to(self.device)
        weight = self.schedule.loss_weights.cpu()[entry] if recipe.weighting == "gaussian" else torch.ones(phase.batch)
        t = self.schedule.timesteps.cpu()[entry].to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
            with torch.no_grad():
                rows = self.text(words.to(self.device), groups.to(self.device)) * batch.kept.to(self.device)
            found = self._losses(batch, rows, noise, t, weight.to(self.device))
        total = found["flow"]
        for name, share in (("parts", recipe.parts_weight), ("motion", recipe.motion_weight)):
            if name in found:
                total = total + share * found[name]
        total.backward()
        norm = nn.utils.clip_grad_norm_([*self.model.parameters(), *self.parts.parameters()], recipe.clip)
        self.optimizer.set_lr(lr_factor)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(index)
        figures = {f"{name}_{phase.context}+{phase.frames}": loss.item() for name, loss in found.items()}
        return figures | {"grad_norm": norm.item()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "dit": self.model.state_dict(),
            "parts": self.parts.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["dit"])
        self.parts.load_state_dict(state["parts"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def sample_sheet(self, path: Path) -> None:
        """Held-out stories: last history frame, three generated frames, the true last frame."""
        self.ema.swap()
        try:
            rows = []
            for story in range(min(6, len(self.held_out))):
                rows.append(self._sample_row(story, 1 + story % 4))
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
        g = step_generator(7, story)
        noise = shot_noise((1, 3, *context.shape[1:]), c.noise_share, g).to(self.device)
        made = sample_teacher(
            self.model, self.schedule, noise, conditioning, torch.zeros_like(rows[:1]), steps=16, guidance=3.0
        ).x0_BFCHW
        history = to_uint8(self.vae.decode(context[None, -1:].to(self.device)))[0, 0]
        truth = to_uint8(self.vae.decode(data.clip(story, shot, 3)[None].to(self.device)))[0]
        video = to_uint8(self.vae.decode(made))[0]
        return captions[-1], [history, video[0], video[4], video[8], truth[8]]


def training_attention(device: torch.device | str) -> Attention:
    """The attention to differentiate through: torch's fused kernel, except on CPU where its backward is slow."""
    return matmul_softmax if torch.device(device).type == "cpu" else sdpa


def start_model(recipe: TeacherRecipe, device: torch.device | str) -> Transformer:
    """The transformer to train: fresh, or the weights of ``recipe.init`` in any layout that ``convert`` reads."""
    model = Transformer(recipe.model, training_attention(device))
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
