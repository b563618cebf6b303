"""A step's whole batch, cut into parts and added up again: the one way from draws to a gradient that all stages share.

1. Every random number of a step is drawn for the whole batch, by every process alike and again for every part, from
   the step's own generator (:class:`PartDraws`).
2. Every process cuts out its rows, and of these its micro-batches (:func:`parts_of`), and loads data for them only.
3. A part's loss, a mean over the part, counts with its weight in the whole batch (:func:`backward`).

So a sample has the same numbers, and a step the same gradient, on any number of processes and for any micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.training.distributed.launch import Team
from shotstream.training.method.draws import Draws, Shape


@dataclass(frozen=True)
class Part:
    """Rows ``start`` to ``stop`` of a whole batch of ``batch`` samples: what one process computes at once."""

    start: int
    stop: int
    batch: int

    @property
    def rows(self) -> slice:
        """Its rows of a whole batch's tensor."""
        return slice(self.start, self.stop)

    @property
    def share(self) -> float:
        """Its share of the samples."""
        return (self.stop - self.start) / self.batch


def parts_of(batch: int, team: Team, micro_batch: int = 0) -> list[Part]:
    """This process's parts of a batch, as many and as large as every other process's.

    Raises UserError if the batch is not a multiple of the number of processes.
    """
    if batch % team.size:
        raise UserError(
            f"a batch of {batch} does not split evenly over {team.size} processes; "
            "change the recipe's batch or --nproc-per-node so that it is a multiple"
        )
    own = batch // team.size
    first, step = team.rank * own, micro_batch or own
    return [Part(start, min(start + step, first + own), batch) for start in range(first, first + own, step)]


class PartDraws:
    """The draws of a part: those of the whole batch, cut. ``whole`` must be fresh for every part."""

    def __init__(self, whole: Draws, part: Part) -> None:
        self._whole, self._part = whole, part

    def _shape(self, shape: Shape) -> Shape:
        return (self._part.batch, *shape[1:])

    def shot_noise(self, shape: Shape) -> Tensor:
        return self._whole.shot_noise(self._shape(shape))[self._part.rows]

    def renoise(self, shape: Shape, chunk: int, step: int) -> Tensor:
        return self._whole.renoise(self._shape(shape), chunk, step)[self._part.rows]

    def clean_noise(self, shape: Shape, chunk: int) -> Tensor:
        return self._whole.clean_noise(self._shape(shape), chunk)[self._part.rows]

    def target_noise(self, shape: Shape) -> Tensor:
        return self._whole.target_noise(self._shape(shape))[self._part.rows]

    def offset(self, shape: Shape) -> Tensor:
        return self._whole.offset(self._shape(shape))[self._part.rows]

    def timestep_index(self, batch: int, entries: int) -> Tensor:
        return self._whole.timestep_index(self._part.batch, entries)[self._part.rows]

    def exit_step(self, steps: int) -> int:
        return self._whole.exit_step(steps)

    def block_index(self, batch: int, blocks: int, entries: int) -> Tensor:
        return self._whole.block_index(self._part.batch, blocks, entries)[self._part.rows]

    def dropped(self, batch: int, probability: float) -> Tensor:
        return self._whole.dropped(self._part.batch, probability)[self._part.rows]


@dataclass(frozen=True)
class PartLoss:
    """``loss`` to differentiate and ``figures`` for the log, both means over a part, and the part's ``weight``: its
    share of what the whole batch's mean counts.
    """

    loss: Tensor
    figures: Mapping[str, Tensor]
    weight: float


def backward(parts: Sequence[Part], loss_of: Callable[[Part], PartLoss], team: Team) -> dict[str, float]:
    """Leave the whole batch's gradient in the parameters; returns its figures, the same in every process."""
    sums: dict[str, Tensor] = {}
    for part in parts:
        found = loss_of(part)
        # Sharded gradients are averaged over the processes, and what is wanted is their sum.
        (found.loss * (found.weight * team.size)).backward()
        for name, figure in found.figures.items():
            value = found.weight * figure.detach().double()
            sums[name] = sums[name] + value if name in sums else value
    return team.sum(sums)
