"""Trajectories of the teacher's sampler, as the regression learns from them: made once into shards, read when needed.

A killed run makes the missing shards. Several processes make every so many-th each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.runtime.model.schedule import NoiseSchedule, shift_sigma
from shotstream.runtime.model.state_dicts import write_safetensors
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.data.batches import Condition, draw_condition, encode
from shotstream.training.data.stories import TrainingStories
from shotstream.training.distributed.launch import ALONE, Team
from shotstream.training.method.conditioning import Routing
from shotstream.training.method.objectives import TRAJECTORY_STEPS
from shotstream.training.method.sampling import sample_teacher
from shotstream.training.stages.given import FrozenText
from shotstream.training.stages.trainer import step_generator

if TYPE_CHECKING:
    from shotstream.training.stages.ode import OdeRecipe

T = TypeVar("T")


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
    text: FrozenText,
    data: TrainingStories,
    recipe: OdeRecipe,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    team: Team = ALONE,
) -> None:
    """Write the missing shards of teacher trajectories, ``pair_batch`` samples each; ``teacher`` is not sharded."""
    out.mkdir(parents=True, exist_ok=True)
    config = teacher.config
    device = next(teacher.parameters()).device
    schedule = NoiseSchedule(config.shift, device)
    sigmas = sampler_sigmas(schedule, config.nominal_steps, recipe.substeps)
    saved = list(TRAJECTORY_STEPS)
    if recipe.substeps:
        saved = [i * recipe.substeps for i in range(len(config.nominal_steps))]
    shards = -(-recipe.pairs // recipe.pair_batch)
    for shard in range(team.rank, shards, team.size):
        path = out / f"pairs_{shard:05d}.safetensors"
        if path.exists():
            continue
        rng = np.random.default_rng([recipe.seed, 11, shard])
        conditions = [
            draw_condition(data, config, recipe.frames, rng, context_drop=0.0) for _ in range(recipe.pair_batch)
        ]
        conditioning = encode(conditions, text, device)
        shape = (recipe.pair_batch, recipe.frames, *conditions[0].context.shape[1:])
        noise = torch.randn(shape, generator=step_generator(recipe.seed, shard)).to(device)
        negative = torch.zeros(1, config.text_len, config.text_dim, device=device)
        with recipe.autocast(device):
            made = sample_teacher(
                teacher, schedule, noise, conditioning, negative, guidance=recipe.guidance, save=saved, sigmas=sigmas
            )
        states = torch.stack([*(made.states[i] for i in saved), made.x0_BFCHW], dim=1)
        _write_shard(path, states, conditions)
        if progress is not None:
            progress(shard + 1, shards)
    team.everyone("pairs")


def _write_shard(path: Path, states: Tensor, conditions: list[Condition]) -> None:
    tensors = {
        "states": states.half().cpu().contiguous(),
        "context": torch.stack([c.context for c in conditions]).half().contiguous(),
        "flags": torch.tensor([c.routing.flags for c in conditions]),
        "rows": torch.tensor([c.routing.captions for c in conditions]),
    }
    captions = {f"captions_{i}": json.dumps(c.captions) for i, c in enumerate(conditions)}
    try:
        write_safetensors(path, tensors, captions)
    except UserError as error:
        raise UserError(f"{error}; make room and run again, finished shards are kept") from error


class Rows(Sequence[T], Generic[T]):
    """Things that are read when they are asked for."""

    def __init__(self, count: int, read: Callable[[int], T]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> T:  # type: ignore[override]  # no slices
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._read(index)


class Pairs:
    """All trajectory shards of a folder, on disk: ``states[i]`` is ``[states, F, C, H, W]`` float16, and what it was
    made behind is ``conditions[i]``.
    """

    def __init__(self, folder: Path) -> None:
        self._places: list[tuple[Path, int]] = []
        self._routings: list[Routing] = []
        self._captions: list[list[str]] = []
        for path in sorted(folder.glob("pairs_*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    captions = file.metadata()
                    flags, rows = file.get_tensor("flags").tolist(), file.get_tensor("rows").tolist()
            except SafetensorError as error:
                raise UserError(f"{path} is damaged ({error}); delete it and run 'shotstream train ode'") from error
            for i in range(len(flags)):
                self._places.append((path, i))
                self._routings.append(Routing(tuple(flags[i]), tuple(rows[i])))
                self._captions.append(_captions(captions[f"captions_{i}"]))
        if not self._places:
            raise UserError(f"no trajectory shards in {folder}; run 'shotstream train ode' from the beginning")
        self.states = Rows(len(self._places), lambda i: self._tensor(i, "states"))
        self.conditions = Rows(len(self._places), self._condition)

    def _tensor(self, index: int, name: str) -> Tensor:
        path, row = self._places[index]
        with safe_open(path, "pt") as file:
            return file.get_slice(name)[row]

    def _condition(self, index: int) -> Condition:
        context = self._tensor(index, "context").float()
        return Condition(context, self._routings[index], self._captions[index])


def _captions(text: str) -> list[str]:
    """A json list; lines in shards of earlier versions."""
    return json.loads(text) if text.startswith("[") else text.split("\n")
