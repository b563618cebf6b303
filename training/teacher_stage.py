"""Stage ``teacher``: the bidirectional next-shot model and the text encoder, trained together from nothing.

It runs in phases: single frames first (cheap, most of appearance and language is learnt there), then short next shots
behind six context frames, then whole shots. The loss is step 1 of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
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
from shotstream.runtime.text.tiny import TinyTextConfig, TinyTextEncoder
from shotstream.training import losses
from shotstream.training.conditioning import Conditioning, Routing, route_frames
from shotstream.training.latents import LatentStories
from shotstream.training.objectives import target_flow
from shotstream.training.optim import build_adamw, build_optimizer
from shotstream.training.sampling import sample_teacher
from shotstream.training.sheets import to_uint8, write_sheet
from shotstream.training.trainer import Ema, LoopConfig, step_generator


@dataclass(frozen=True)
class Phase:
    """``steps`` steps of ``batch`` samples whose target has ``frames`` latents, with or without context frames."""

    steps: int
    batch: int
    frames: int
    context: bool


@dataclass(frozen=True)
class TeacherRecipe:
    """Hyper-parameters of the teacher stage. ``optimizer`` is "muon" (matrices; AdamW for the rest) or "adamw";
    ``train_only`` limits training to parameters with that word in their name (the reference's ``self_attn``);
    ``init`` is a file with weights to start from. ``weighting``: "uniform", or the reference's "gaussian".
    """

    model: DiTConfig = TINY
    text: TinyTextConfig = TinyTextConfig()  # noqa: RUF009  (frozen)
    phases: tuple[Phase, ...] = (
        Phase(900, 128, 1, False),
        Phase(700, 24, 3, True),
        Phase(200, 12, 9, True),
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


@dataclass(frozen=True)
class Sample:
    """One training sample: clean target latents ``[F, C, H, W]``, context latents, routing and its list of captions."""

    target: Tensor
    context: Tensor
    routing: Routing
    captions: list[str]
    text_dropped: bool


def draw_sample(
    data: LatentStories, recipe: TeacherRecipe, phase: Phase, rng: np.random.Generator, config: DiTConfig
) -> Sample:
    """Draw a story, a shot and its history. Shot 0, dropped context and context-free phases route alike."""
    story = int(rng.integers(len(data)))
    wording = int(rng.integers(1 << 30)) if rng.random() < recipe.paraphrase else None
    text_dropped = rng.random() < recipe.text_drop
    shots = data.plan.shots
    if not phase.context:
        shot = int(rng.integers(shots))
        position = int(rng.integers(len(data.positions)))
        target = data.single(story, shot, position)[None]
        return Sample(target, target[:0], Routing((1,), (0,)), data.captions(story, [shot], wording), text_dropped)
    shot = 0 if rng.random() < recipe.first_shot else int(rng.integers(1, shots))
    target = data.clip(story, shot, phase.frames)
    if shot == 0 or rng.random() < recipe.context_drop:
        empty = target.new_zeros(config.context_frames, *target.shape[1:])
        routing = route_frames([], phase.frames, 0, 1, context_frames=config.context_frames, context_dropped=True)
        return Sample(target, empty, routing, data.captions(story, [shot], wording), text_dropped)
    context, context_shots = data.context(story, shot, config.context_frames)
    routing = route_frames(context_shots, phase.frames, shot, shot + 1, context_frames=config.context_frames)
    return Sample(target, context, routing, data.captions(story, list(range(shot + 1)), wording), text_dropped)


def batch_of(
    samples: list[Sample], rows: int | None = None
) -> tuple[Tensor, Tensor, list[str], Tensor, Tensor, Tensor]:
    """Stack samples: target, context, captions, kept-text mask ``[N, 1, 1]``, flags and caption rows.

    ``rows`` pads the caption list (with repetitions) to a fixed length, so that shapes do not change from step to step.
    """
    captions: list[str] = []
    kept: list[float] = []
    rows_of: list[list[int]] = []
    for s in samples:
        rows_of.append([len(captions) + r for r in s.routing.captions])
        captions += s.captions
        kept += [0.0 if s.text_dropped else 1.0] * len(s.captions)
    while rows is not None and len(captions) < rows:
        captions.append(captions[0])
        kept.append(0.0)
    return (
        torch.stack([s.target for s in samples]),
        torch.stack([s.context for s in samples]),
        captions,
        torch.tensor(kept)[:, None, None],
        torch.tensor([s.routing.flags for s in samples]),
        torch.tensor(rows_of),
    )


class TeacherStage:
    """State and step of the teacher stage (see :class:`shotstream.training.trainer.Stage`)."""

    name = "teacher"

    def __init__(
        self,
        recipe: TeacherRecipe,
        data: LatentStories,
        held_out: LatentStories,
        vae: TinyVAE,
        device: torch.device | str = "cpu",
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.data, self.held_out, self.vae = recipe, data, held_out, vae
        self.device = torch.device(device)
        self.model = start_model(recipe, device).to(self.device)
        self.text = TinyTextEncoder(recipe.text).to(self.device)
        self.schedule = NoiseSchedule(recipe.model.shift, self.device)
        modules: dict[str, nn.Module] = {"dit": self.model, "text": self.text}
        self.ema = Ema(modules, recipe.ema)
        named = [(f"{m}.{k}", p) for m, module in modules.items() for k, p in module.named_parameters()]
        if recipe.train_only:
            for name, parameter in named:
                parameter.requires_grad_(recipe.train_only in name)
        if recipe.optimizer == "adamw":
            self.optimizer = build_adamw(named, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay)
        else:
            self.optimizer = build_optimizer(
                named, lr=recipe.lr, adam_lr=recipe.adam_lr, weight_decay=recipe.weight_decay, betas=recipe.betas,
                adam_only=takes_adam,
            )  # fmt: skip
        self._flow = torch.compile(self._loss_of, dynamic=False) if recipe.compile else self._loss_of

    def _loss_of(
        self, target: Tensor, context: Tensor, words: Tensor, groups: Tensor, kept: Tensor, flags: Tensor, index:
        Tensor,
        noise: Tensor, t: Tensor, weight: Tensor,
    ) -> Tensor:  # fmt: skip
        rows = self.text(words, groups) * kept
        x_t = self.schedule.add_noise(target, noise, t)
        if context.shape[1] == 0:
            text_kv = self.model.embed_captions(rows)
            positions = torch.full_like(flags, self.recipe.model.context_frames)
            flow = self.model(x_t, t[:, None], text_kv, index, positions, flags)
        else:
            flow = target_flow(self.model, x_t, t, Conditioning(context, rows, flags, index))
        return losses.flow_matching_loss(flow, target, noise, weight)

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        recipe = self.recipe
        phase = recipe.phase_of(index)
        if index % 50 == 0:
            self.data.refresh()
        rng = np.random.default_rng([recipe.seed, index])
        g = step_generator(recipe.seed, index)
        samples = [draw_sample(self.data, recipe, phase, rng, recipe.model) for _ in range(phase.batch)]
        most = phase.batch * (self.data.plan.shots * 3 // 4 if phase.context else 1)
        target, context, captions, kept, flags, rows = batch_of(samples, most)
        words, groups = self.text.ids(captions)
        entry = torch.randint(1000, (phase.batch,), generator=g)
        noise = torch.randn(target.shape, generator=g)
        weight = self.schedule.loss_weights.cpu()[entry] if recipe.weighting == "gaussian" else torch.ones(phase.batch)
        t = self.schedule.timesteps.cpu()[entry]
        tensors = [x.to(self.device) for x in (target, context, words, groups, kept, flags, rows, noise, t, weight)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16):
            loss = self._flow(*tensors)
        loss.backward()
        norm = nn.utils.clip_grad_norm_([*self.model.parameters(), *self.text.parameters()], recipe.clip)
        self.optimizer.set_lr(lr_factor)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(index)
        return {f"loss_{phase.frames}{'c' if phase.context else ''}": loss.item(), "grad_norm": norm.item()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "dit": self.model.state_dict(),
            "text": self.text.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["dit"])
        self.text.load_state_dict(state["text"])
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
        noise = torch.randn(1, 3, *context.shape[1:], generator=g).to(self.device)
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
