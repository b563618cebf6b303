"""The loop that every stage shares: schedule, logs, checkpoints, slices. It knows no model and no loss.

A stage's randomness must depend on the step number only (:func:`step_generator`); a run that was killed then continues
exactly where its last checkpoint was. All processes of a run go through the loop in step; the first one writes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from shotstream.runtime.errors import UserError
from shotstream.training.distributed import checkpoint
from shotstream.training.distributed.flops import Work
from shotstream.training.distributed.launch import ALONE, Team
from shotstream.training.distributed.throughput import peak_tflops
from shotstream.training.stages.ema import Ema
from shotstream.training.stages.journal import Journal

__all__ = ["Ema", "LoopConfig", "Stage", "lr_factor", "run_stage", "step_generator"]

log = logging.getLogger(__name__)


class Stage(Protocol):
    """What the loop asks of a stage."""

    name: str

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        """Do one optimizer step; return figures for the log, the same ones in every process."""
        ...

    def work(self, index: int) -> Work | None:
        """What that step computes, in all processes together; None where it is not counted."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, tensors and plain values only."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        ...

    def sample_sheet(self, path: Path) -> None:
        """Write a picture of the stage's present output; all processes take part."""
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


def run_stage(
    stage: Stage,
    config: LoopConfig,
    out: Path,
    minutes: float | None = None,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
    *,
    team: Team = ALONE,
    steps: int | None = None,
) -> bool:
    """Run or resume a stage until ``config.steps``, for ``minutes`` or for ``steps`` more; True when it is finished.

    Writes checkpoints, ``log.jsonl``, TensorBoard scalars, sample sheets and loss curves into ``out``. Raises
    :class:`UserError` when a figure stops being finite; the last checkpoint stays as it was.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = checkpoint.load(out, stage.name, stage.state_dict(), team)
    first = 0
    if found is not None:
        first, state = found
        stage.load_state_dict(state)
        log.info("%s resumes at step %d of %d", stage.name, first, config.steps)
    journal = Journal(out, first) if team.first else None
    last = config.steps if steps is None else min(config.steps, first + steps)
    begin = time.monotonic()
    gauge = _Gauge(team)
    step = first
    try:
        while step < last:
            gauge.add(stage, step, lr_factor(step, config))
            step += 1
            late = minutes is not None and team.agree(time.monotonic() - begin > 60 * minutes)
            stops = step == last or late
            if step % config.log_every == 0 or stops:
                line = gauge.line(step, begin, first)
                if journal is not None:
                    journal.write(line)
                    if progress is not None:
                        progress(step, config.steps, line)
            if step % config.save_every == 0 or stops:
                checkpoint.save(out, step, stage.name, stage.state_dict(), team)
            if step % config.sheet_every == 0 or step == config.steps:
                stage.sample_sheet(out / f"sheet_{step:06d}.png")
                if journal is not None:
                    journal.draw()
            if late:
                break
    except OSError as error:  # most often a full disk
        raise UserError(
            f"stage {stage.name} stopped at step {step} ({error}); the last checkpoint is whole, make room and "
            "run again"
        ) from error
    finally:
        if journal is not None:
            journal.close()
    if step < config.steps:
        log.info("%s stops at step %d of %d", stage.name, step, config.steps)
    return step >= config.steps


class _Gauge:
    """Figures of the steps since the last line of the log, and how fast these went."""

    def __init__(self, team: Team) -> None:
        self.peak = peak_tflops(team.device)
        self.device = team.device
        self.size = team.size
        self._clear()

    def _clear(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.busy = self.tokens = self.flop = 0.0

    def add(self, stage: Stage, step: int, factor: float) -> None:
        """Do a step. Raises UserError if a figure is not finite."""
        began = time.monotonic()
        figures = stage.step(step, factor)
        self.busy += time.monotonic() - began
        for name, value in figures.items():
            if not math.isfinite(value):
                raise UserError(
                    f"stage {stage.name}: {name} is not finite at step {step + 1} ({value}); the last checkpoint is "
                    "kept, lower the learning rate in the recipe and run again"
                )
        self.rows.append(figures)
        work = stage.work(step)
        if work is not None:
            self.tokens += work.tokens
            self.flop += work.flop

    def line(self, step: int, begin: float, first: int) -> dict[str, float]:
        """A line of the log; the next one begins anew."""
        seconds = time.monotonic() - begin
        line = {"step": step, "seconds": round(seconds, 1), "steps_per_s": round((step - first) / seconds, 3)}
        if self.tokens:
            tflops = self.flop / self.busy / 1e12
            line |= {"tokens_per_s": round(self.tokens / self.busy, 1), "tflops": round(tflops, 4)}
            if self.peak is not None:
                line["of_peak"] = round(tflops / (self.peak * self.size), 4)
        if self.device.type == "cuda":
            line["peak_gib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)
        line |= _mean(self.rows)
        self._clear()
        return line


def _mean(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            sums.setdefault(key, []).append(value)
    return {key: round(sum(values) / len(values), 5) for key, values in sums.items()}
