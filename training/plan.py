"""What a stage of a recipe is going to cost: how its batch is cut, tokens and operations of a step, memory.

Printed by ``--explain`` and compared with the machine before a stage starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.wan import WanSizes
from shotstream.training.data.prepared import INFO, read_info
from shotstream.training.data.teacher_data import Phase
from shotstream.training.distributed.accumulate import parts_of
from shotstream.training.distributed.flops import Geometry, Pass, Work, step_work
from shotstream.training.distributed.launch import Team
from shotstream.training.distributed.memory import Need, Network, adapter_parameters, available, estimate, parameters
from shotstream.training.distributed.scale import Scale
from shotstream.training.method.widen import wider
from shotstream.training.recipe import REGRESSIONS, SHARED_STAGES, Recipe
from shotstream.training.stages.continuation import passes as continuation_passes
from shotstream.training.stages.coupled import passes as coupled_passes

_PIXELS = 8  # rendered ones, to a side of a latent of the tiny codec


@dataclass(frozen=True)
class Step:
    """One kind of step of a stage: ``rows`` of ``batch`` samples are computed at once, ``rounds`` times."""

    label: str
    batch: int
    rows: int
    rounds: int
    passes: tuple[Pass, ...]
    work: Work


@dataclass(frozen=True)
class StagePlan:
    """A stage on ``size`` processes: its kinds of steps, and what a process needs for the largest."""

    stage: str
    size: int
    steps: tuple[Step, ...]
    needs: tuple[Need, ...]

    @property
    def bytes(self) -> float:
        """Memory of a process."""
        return sum(need.bytes for need in self.needs)


def plan_stage(stage: str, recipe: Recipe, team: Team) -> StagePlan:
    """The plan of a stage that trains the transformer. UserError if its batch does not split over the processes."""
    config, part = recipe.teacher.model, _part(recipe, stage)
    per_frame = config.tokens_per_frame(*latent_size(recipe))
    share, networks = _networks(stage, recipe)
    steps = []
    for label, batch, sample, passes in _kinds(stage, recipe, per_frame):
        parts = parts_of(batch, team, part.micro_batch)
        rows = max(p.stop - p.start for p in parts)
        work = step_work(sample, passes, batch, trained_share=share)
        steps.append(Step(label, batch, rows, len(parts), tuple(passes), work))
    device = team.device.type
    found = [
        estimate(networks, step.passes, step.rows, part, team.size, device, regression=stage in REGRESSIONS)
        for step in steps
    ]
    needs = max(found, key=lambda rows: sum(need.bytes for need in rows))
    return StagePlan(stage, team.size, tuple(steps), tuple(needs))


def _part(recipe: Recipe, stage: str) -> Scale:
    found: Scale = getattr(recipe, stage)
    return found


def latent_size(recipe: Recipe) -> tuple[int, int]:
    """Height and width of a latent frame: of the prepared videos, or as the model makes them."""
    folder = Path(recipe.videos)
    if recipe.source == "world":
        return recipe.latents.height // _PIXELS, recipe.latents.width // _PIXELS
    if recipe.videos and (folder / INFO).exists():
        return read_info(folder).latent[1:]
    return WanSizes().latent_size


def _kinds(stage: str, recipe: Recipe, per_frame: int) -> Sequence[tuple[str, int, Geometry, list[Pass]]]:
    config = _model(stage, recipe)
    if stage == "teacher":
        kinds = []
        for phase in recipe.teacher.phases:
            sample = Geometry(config, per_frame, min(phase.context, config.context_frames), phase.frames)
            passes = [sample.everything(trained=True)]
            kinds.append((_label(phase), phase.batch, sample, passes))
        return kinds
    if stage == "ode":
        sample = Geometry(config, per_frame, config.context_frames, recipe.ode.frames)
        return [("regression", recipe.ode.batch, sample, sample.ode(recipe.ode.history == "clean"))]
    if stage == "continuation" and recipe.continuation is not None:
        sample = Geometry(config, per_frame, config.context_frames, recipe.continuation.frames)
        return [("regression", recipe.continuation.batch, sample, continuation_passes(sample))]
    if stage == "coupled" and recipe.coupled is not None:
        recipe.coupled.check_chunks(config.chunk_frames)
        kinds = []
        for phase in recipe.coupled.phases:
            sample = Geometry(config, per_frame, min(phase.context, config.context_frames), phase.frames)
            kinds.append((_label(phase), phase.batch, sample, coupled_passes(sample, recipe.coupled.played)))
        return kinds
    part = recipe.intra if stage == "intra" else recipe.inter
    sample = Geometry(config, per_frame, config.context_frames, part.frames)
    name = "" if stage == "intra" else ", a shot"
    return [
        (f"generator{name}", part.batch, sample, sample.generator()),
        (f"critic{name}", part.batch, sample, sample.critic()),
    ]


def _model(stage: str, recipe: Recipe) -> DiTConfig:
    config = recipe.teacher.model
    return wider(config, recipe.coupled.dim) if stage == "coupled" and recipe.coupled and recipe.coupled.dim else config


def _label(phase: Phase) -> str:
    return f"{phase.context}+{phase.frames} latents"


def _networks(stage: str, recipe: Recipe) -> tuple[float, list[Network]]:
    """The share of the blocks that trains, and the networks that a process holds, the trained one first."""
    config = _model(stage, recipe)
    every = parameters(config)
    if stage not in ("intra", "inter"):
        part = getattr(recipe, stage)
        trained = parameters(config, part.train_only) if stage == "teacher" else every
        state = 1.0 if part.optimizer == "muon" else 2.0  # Muon keeps one number, and leaves little to AdamW
        before = [Network("student before", config, 0)] if stage == "continuation" else []
        return trained / every, [Network("model", config, trained, state, bool(part.ema)), *before]
    dmd = recipe.intra if stage == "intra" else recipe.inter
    trained = adapter_parameters(config, dmd.lora_rank) if dmd.lora_rank else every
    generator = Network("generator", config, trained, ema=bool(dmd.ema))
    return min(1.0, trained / every), [generator, Network("critic", config, trained), Network("teacher", config, 0)]


def check_memory(plan: StagePlan, team: Team) -> None:
    """Refuse a stage that cannot fit, before anything is loaded."""
    there = available(team.device, team.neighbours)
    if plan.bytes > there:
        largest = sorted(plan.needs, key=lambda need: -need.bytes)[:3]
        parts = ", ".join(f"{need.what} {_size(need.bytes)}" for need in largest)
        raise UserError(
            f"stage {plan.stage} needs about {_size(plan.bytes)} in each of {plan.size} processes ({parts}), and there "
            f"is {_size(there)}; set micro_batch: 1 and checkpointing: true in the recipe, or use more processes"
        )


def explain_plans(recipe: Recipe, stages: Sequence[str], team: Team) -> str:
    """The plans of those stages among ``stages`` that train the transformer, as comments behind a recipe."""
    where = f"{_processes(team.size)} on {team.device.type}"
    lines = [f"estimates for {where} (weights, activations; not codec and data)"]
    for stage in stages:
        if stage in SHARED_STAGES and stage in recipe.stages:
            plan = plan_stage(stage, recipe, team)
            lines += [f"stage {stage}", *_step_lines(plan), *_need_lines(plan)]
    return "".join(f"# {line}\n" for line in lines)


def _step_lines(plan: StagePlan) -> list[str]:
    return [
        f"  {step.label}: batch {step.batch} = {_processes(plan.size)} x {step.rounds} rounds x {step.rows} samples; "
        f"{step.work.tokens:,} tokens and {_flop(step.work.flop)} a step"
        for step in plan.steps
    ]


def _need_lines(plan: StagePlan) -> list[str]:
    rows = [*plan.needs, Need("in all, per process", plan.bytes, False)]
    return [f"  {_size(n.bytes):>10}  {n.what}{' (sharded)' if n.sharded and plan.size > 1 else ''}" for n in rows]


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _flop(count: float) -> str:
    return f"{count / 1e15:.2f} PFLOP" if count >= 1e15 else f"{count / 1e12:.3g} TFLOP"
