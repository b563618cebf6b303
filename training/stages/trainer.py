"""The loop that every stage shares: schedule, logs, checkpoints, slices. It knows no model and no loss.

A stage's randomness must depend on the step number only (:func:`step_generator`); a run that was killed then continues
exactly where its last checkpoint was.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from shotstream.runtime.errors import UserError
from shotstream.training.stages.curves import write_curves

log = logging.getLogger(__name__)


class Stage(Protocol):
    """What the loop asks of a stage."""

    name: str

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        """Do one optimizer step; return figures for the log."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, tensors and plain values only."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        ...

    def sample_sheet(self, path: Path) -> None:
        """Write a picture of the stage's present output."""
        ...


@dataclass(frozen=True)
class LoopConfig:
    """How long and how often. ``decay`` is the share of steps at the end over which the rate falls linearly to 2 %."""

    steps: int
    warmup: int = 50
    decay: float = 0.4
    save_every: int = 100
    log_every: int = 20
    sheet_every: int = 500


def lr_factor(step: int, config: LoopConfig) -> float:
    """Learning-rate factor of a step: linear warm-up, constant, linear decay."""
    rise = min(1.0, (step + 1) / max(1, config.warmup))
    left = (config.steps - step) / max(1.0, config.decay * config.steps)
    return rise * max(0.02, min(1.0, left))


def step_generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on the run's seed and the step alone."""
    return torch.Generator(device).manual_seed((seed * 1_000_003 + step) & 0x7FFF_FFFF_FFFF)


def save_atomically(value: Any, path: Path) -> None:
    """``torch.save`` that never leaves a half-written file under the final name."""
    scratch = path.with_suffix(path.suffix + ".tmp")
    try:
        torch.save(value, scratch)
        os.replace(scratch, path)
    except OSError as error:
        raise UserError(
            f"cannot write checkpoint {path}: {error.strerror or error}; the previous one is intact"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without unpickling anything but tensors and plain values."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise UserError(
            f"checkpoint {path} cannot be read ({type(error).__name__}); delete it to start again"
        ) from error


def run_stage(
    stage: Stage,
    config: LoopConfig,
    out: Path,
    minutes: float | None = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> bool:
    """Run or resume a stage until ``config.steps`` or for ``minutes``; True when it is finished.

    Writes ``checkpoint.pt``, ``log.jsonl``, sample sheets and loss curves into ``out``. Raises :class:`UserError` when
    a figure stops being finite; the last checkpoint stays as it was.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pt"
    first = 0
    if checkpoint.exists():
        saved = load_checkpoint(checkpoint)
        stage.load_state_dict(saved["stage"])
        first = int(saved["step"])
        log.info("%s resumes at step %d of %d", stage.name, first, config.steps)
    begin = time.monotonic()
    recent: list[dict[str, float]] = []
    step = first
    while step < config.steps:
        figures = stage.step(step, lr_factor(step, config))
        bad = [k for k, v in figures.items() if not math.isfinite(v)]
        if bad:
            raise UserError(
                f"stage {stage.name}: {', '.join(bad)} is not finite at step {step}; the last checkpoint "
                f"{checkpoint} is kept, lower the learning rate in the recipe and run again"
            )
        recent.append(figures)
        step += 1
        finished = step == config.steps
        out_of_time = minutes is not None and time.monotonic() - begin > 60 * minutes
        if step % config.log_every == 0 or finished:
            seconds = time.monotonic() - begin
            line = {"step": step, "seconds": round(seconds, 1), "steps_per_s": round((step - first) / seconds, 3)}
            line |= _mean(recent)
            with (out / "log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            if progress is not None:
                progress(step, config.steps, line)
            recent = []
        if step % config.save_every == 0 or finished or out_of_time:
            save_atomically({"step": step, "stage": stage.state_dict()}, checkpoint)
        if step % config.sheet_every == 0 or finished:
            stage.sample_sheet(out / f"sheet_{step:06d}.png")
            write_curves(out / "log.jsonl", out / "curves.png")
        if out_of_time and not finished:
            log.info("%s stops after %.1f minutes at step %d of %d", stage.name, minutes, step, config.steps)
            return False
    return True


def _mean(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            sums.setdefault(key, []).append(value)
    return {key: round(sum(values) / len(values), 5) for key, values in sums.items()}


class Ema:
    """Exponential moving average of a module's parameters, with a warm-up so that early averages are not stale."""

    def __init__(self, modules: dict[str, nn.Module], decay: float) -> None:
        self.decay = decay
        self.modules = modules
        self.shadow = {k: v.detach().clone() for k, v in self._named()}

    def _named(self) -> Iterable[tuple[str, Tensor]]:
        for name, module in self.modules.items():
            for key, value in module.named_parameters():
                yield f"{name}.{key}", value

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the present parameters."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        names, values = zip(*self._named(), strict=True)
        torch._foreach_lerp_([self.shadow[n] for n in names], list(values), weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and averages in place; call twice to come back."""
        for name, value in self._named():
            kept = value.detach().clone()
            value.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by ``module.parameter``."""
        return self.shadow

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of :meth:`state_dict`."""
        for name, value in state.items():
            self.shadow[name].copy_(value)
