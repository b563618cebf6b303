"""Training of one row within its budget. Short on purpose: a row is made in one go, and made again if it was killed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.text.tiny import TinyTextEncoder
from shotstream.training.data.latents import LatentStories
from shotstream.training.method.clean_history import clean_history_ode_loss, continuation_loss
from shotstream.training.method.draws import TorchDraws
from shotstream.training.stages.optim import MuonAdamW, build_optimizer
from shotstream.training.stages.teacher import takes_adam, training_attention
from shotstream.training.table.bidirectional import Task
from shotstream.training.table.budget import Budget
from shotstream.training.table.methods import Method
from shotstream.training.table.pairs import Trajectories
from shotstream.training.table.past import OwnPast, TruePast
from shotstream.training.table.students import (
    FIRST_SHOT,
    Distillation,
    Student,
    StudentPlan,
    conditions,
    draw_captions,
)
from shotstream.training.weights import load_dit_weights

KEPT_STEPS = 3  # see `ContinuationRecipe`
Progress = Callable[[float, dict[str, float]], None]
"""Called with (share of the budget that is spent, figures of an update)."""


@dataclass(frozen=True)
class Parts:
    """What all rows start from: a run's folder and what was loaded from it; `config` is the student's."""

    run: Path
    text: TinyTextEncoder
    vae: TinyVAE
    data: LatentStories
    pairs: Trajectories
    config: DiTConfig
    device: torch.device

    def model(self, stage: str) -> Transformer:
        """A fresh copy of a stage's weights."""
        return self.ready(load_dit_weights(self.run / stage / "dit.safetensors", stage))

    def ready(self, model: Transformer) -> Transformer:
        """The model on the device, with the attention that training uses."""
        for block in model.blocks:
            block.attention = training_attention(self.device)  # type: ignore[assignment]  # ModuleList hides its kind
        return model.to(self.device)


@dataclass(frozen=True)
class TrainSettings:
    """The same for every row. tflop: budget. adapt: share of a student's budget for regression under its own memory;
    the rest is distillation. rates: of matrices in flow matching and regression (Muon), and of distillation (AdamW).
    """

    tflop: float = 15.0
    batch: int = 4
    frames: int = 9
    adapt: float = 0.4
    rate: float = 5e-4
    dmd_rate: float = 1e-4
    ratio: int = 3
    guidance: float = 1.5
    seed: int = 0


def train(method: Method, parts: Parts, settings: TrainSettings, progress: Progress) -> tuple[Transformer, Budget]:
    """The row's trained model and what it cost; raises UserError when a loss is not finite."""
    budget = Budget(settings.tflop)
    rng = np.random.default_rng([settings.seed, 31])
    torch.manual_seed(settings.seed)
    if not isinstance(method.plan, StudentPlan):
        model = parts.model("teacher")
        _match_flow(method, Task(model, parts.text, parts.data, settings.batch, settings.frames), settings, budget, rng,
                    progress)  # fmt: skip
        return model.eval(), budget
    model = parts.model("ode")
    student = Student(method.plan, model, parts.text)
    _adapt(student, parts, settings, budget, rng, progress)
    _distil(student, parts, settings, budget, rng, progress)
    _continue(student, parts, settings, budget, rng, progress)
    return model.eval(), budget


def _match_flow(
    method: Method, task: Task, settings: TrainSettings, budget: Budget, rng: np.random.Generator, progress: Progress
) -> None:  # fmt: skip
    optimizer = _optimizer(task.model, settings.rate)
    while budget.share < 1:
        with budget.charge("flow"), _autocast(task.device):
            loss = method.plan.loss(task, rng)  # type: ignore[union-attr]  # the caller has told students apart
            loss.backward()
        optimizer.set_lr(_fade(budget.share))
        _step(optimizer, task.model)
        progress(budget.share, {"flow": _finite(loss)})


def _adapt(
    student: Student, parts: Parts, settings: TrainSettings, budget: Budget, rng: np.random.Generator,
    progress: Progress,
) -> None:  # fmt: skip
    """Regression on the teacher's trajectories behind clean history, as stage `ode` does it, under the own memory."""
    if not student.plan.rollout.local_cache:
        return  # its chunks see no history; all of its budget is distillation
    model, pairs, device = student.model, parts.pairs, parts.device
    optimizer = _optimizer(model, settings.rate)
    taught = parts.config.nominal_steps
    states_at = [taught.index(n) for n in model.config.nominal_steps]
    steps = torch.cat([student.schedule.warp([taught[i] for i in states_at]), torch.zeros(1, device=device)])
    shots, weights = list(pairs.of_shot), np.array([len(v) for v in pairs.of_shot.values()], float)
    while budget.share < settings.adapt:
        shot = int(rng.choice(shots, p=weights / weights.sum()))
        picks = rng.choice(pairs.of_shot[shot], settings.batch).tolist()
        past = TruePast(parts.data, [pairs.stories[i] for i in picks], device)
        recalled = student.remember(past, shot, past.single(0, 0))
        given = conditions(recalled, [pairs.captions[i] for i in picks], shot, settings.frames, parts.text, device)
        states = torch.stack([pairs.states[i][[*states_at, -1]] for i in picks]).float().to(device)
        draws = TorchDraws(torch.Generator(device).manual_seed(int(rng.integers(1 << 62))), device=device)
        student.route(recalled)
        with budget.charge(f"adapt {shot}"), _autocast(device):
            loss = clean_history_ode_loss(model, student.schedule, states, steps, given, draws).loss
            loss.backward()
        optimizer.set_lr(_fade(budget.share / settings.adapt))
        _step(optimizer, model)
        progress(budget.share, {"adapt": _finite(loss)})


def _distil(
    student: Student, parts: Parts, settings: TrainSettings, budget: Budget, rng: np.random.Generator,
    progress: Progress,
) -> None:  # fmt: skip
    """Distribution matching: stage 1 behind true history, then stage 2 behind the student's own."""
    real = parts.model("teacher").requires_grad_(False).eval()
    fake = copy.deepcopy(real).requires_grad_(True).train()
    work = Distillation(student, real, fake, parts.data, parts.vae, settings.batch, settings.frames, settings.guidance)
    models = {True: student.model, False: fake}
    optimizers = {who: torch.optim.AdamW(m.parameters(), settings.dmd_rate, (0.0, 0.999)) for who, m in models.items()}
    begin, end = budget.share, 1 - student.plan.continued

    def on_its_own() -> bool:
        return (budget.share - begin) / (end - begin) >= 1 - student.plan.own_history

    for count, (past, captions, shot) in enumerate(work.situations(rng, on_its_own)):
        generator = count % settings.ratio == 0
        with budget.charge(f"dmd {generator} {shot}"), _autocast(parts.device):
            result = work.update(past, captions, shot, rng, generator)
            result.loss.backward()
            if isinstance(past, OwnPast):
                past.add(result.x0_BFCHW)
        for group in optimizers[generator].param_groups:
            group["lr"] = settings.dmd_rate * _fade(budget.share / end)
        _step(optimizers[generator], models[generator])
        progress(budget.share, {"generator" if generator else "critic": _finite(result.loss)})
        if budget.share >= end:
            return


def _continue(
    student: Student, parts: Parts, settings: TrainSettings, budget: Budget, rng: np.random.Generator,
    progress: Progress,
) -> None:  # fmt: skip
    """How a shot goes on after its first chunk, from true clips; the first chunk stays as distillation has left it."""
    if budget.share >= 1:
        return
    model, before, data, device = student.model, copy.deepcopy(student.model), parts.data, parts.device
    before.requires_grad_(False).eval()
    optimizer, begin = _optimizer(model, settings.rate), budget.share
    while budget.share < 1:
        shot = 0 if rng.random() < FIRST_SHOT else int(rng.integers(1, data.plan.shots))
        stories = rng.integers(len(data), size=settings.batch).tolist()
        past = TruePast(data, stories, device)
        captions = [own[: shot + 1] for own in draw_captions(data, stories, rng)]
        recalled = student.remember(past, shot, past.single(0, 0))
        given = conditions(recalled, captions, shot, settings.frames, parts.text, device)
        clip = past.clip(shot)[:, : settings.frames]
        draws = TorchDraws(torch.Generator(device).manual_seed(int(rng.integers(1 << 62))), device=device)
        with budget.charge(f"continue {shot}"), _autocast(device):
            loss = continuation_loss(
                model, before, student.schedule, clip, student.steps, given, draws, kept_steps=KEPT_STEPS
            ).loss
            loss.backward()
        optimizer.set_lr(_fade((budget.share - begin) / (1 - begin)))
        _step(optimizer, model)
        progress(budget.share, {"continuation": _finite(loss)})


def _optimizer(model: nn.Module, rate: float) -> MuonAdamW:
    return build_optimizer(model.named_parameters(), lr=rate, adam_lr=rate / 2, adam_only=takes_adam)


def _step(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _fade(share: float) -> float:
    """Learning-rate factor: constant, over the second half falling to a twentieth."""
    return max(0.05, min(1.0, 2 * (1 - share)))


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16)


def _finite(loss: Tensor) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise UserError("the loss is not finite; lower the rates of the table")
    return value
