"""The processes of one training run: joining them, what they tell each other, and one message when one of them fails.

``torchrun`` starts the processes and ends all of them when one fails. Without it a run is one process, which needs no
communication at all.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous

from shotstream.runtime.errors import UserError
from shotstream.runtime.runtime import checked_device

log = logging.getLogger(__name__)

_WORK_ALONE = timedelta(days=14)  # rank 0 may train a codec while the others wait
_FAILED = "shotstream/failed"


@dataclass(frozen=True)
class Team:
    """One of the processes. ``mesh`` is there when weights are sharded, ``store`` when torchrun started them;
    ``neighbours`` is how many there are on this machine.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (immutable)
    mesh: DeviceMesh | None = None
    store: dist.Store | None = None
    neighbours: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def sum(self, figures: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Figures added up over all processes; every process must ask for the same ones."""
        if self.size == 1:
            return {name: float(value) for name, value in figures.items()}
        values = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=self.device) for v in figures.values()])
        dist.all_reduce(values)
        return dict(zip(figures, values.tolist(), strict=True))

    def agree(self, mine: bool) -> bool:
        """Whether any process says so."""
        return self.sum({"said": float(mine)})["said"] > 0

    def first_alone(self, name: str, work: Callable[[], bool]) -> bool:
        """The answer of ``work``, which the first process does while the others wait; ``name`` is used once a run."""
        if self.store is None:
            return work()
        key = f"shotstream/alone/{name}"
        if self.first:
            self.store.set(key, str(work()))
        else:
            self.store.wait([key], _WORK_ALONE)
        return bool(self.store.get(key) == b"True")

    def everyone(self, name: str) -> None:
        """Wait until all processes are here, however long that takes; ``name`` is used once a run."""
        if self.store is not None:
            keys = [f"shotstream/everyone/{name}/{rank}" for rank in range(self.size)]
            self.store.set(keys[self.rank], "here")
            self.store.wait(keys, _WORK_ALONE)


ALONE = Team()
"""A run of one process on the CPU."""


@contextmanager
def team_of(device: str) -> Iterator[Team]:
    """Join the processes that torchrun started, or be one process; leave them again at the end.

    What goes wrong in several processes is raised in the first that says so; the others end quietly with the same exit
    code. A process that was lost shows as a broken connection, which becomes a :class:`UserError`.
    """
    rank = os.environ.get("RANK")
    try:
        place = checked_device(device)
    except UserError:
        if rank in (None, "0"):
            raise
        raise SystemExit(2) from None
    if rank is None:
        yield Team(device=place)
        return
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    # FSDP warns of outputs that are views, which matters to operations in place only.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    store, number, size = next(iter(rendezvous("env://")))
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size)
    mesh = init_device_mesh(place.type, (size,))
    try:
        yield Team(number, size, place, mesh, store, int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    except BaseException as error:
        # No farewell to the group: it would wait for processes that are waiting elsewhere.
        if not _is_first_to_fail(store, number):
            raise SystemExit(2 if isinstance(error, UserError) else 1) from None
        if connection_lost(error):
            raise UserError(
                f"another process of this training ended ({_gist(error)}); see its last messages, then run the "
                "same command again: it goes on from the last checkpoint"
            ) from error
        raise
    dist.destroy_process_group()


def _is_first_to_fail(store: dist.Store, rank: int) -> bool:
    try:
        return store.compare_set(_FAILED, "", str(rank)) == str(rank).encode()
    except RuntimeError:  # the store went away with the process that held it
        return rank == 0


def connection_lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone; Gloo raises plain RuntimeErrors."""
    known = ("gloo", "Connection closed", "Connection reset")
    lost = isinstance(error, RuntimeError) and any(word in str(error) for word in known)
    return lost or isinstance(error, dist.DistError)


def _gist(error: BaseException) -> str:
    """The first sentence of a message, without the place in Gloo's sources that it begins with."""
    text = " ".join(str(error).split()).split("] ", 1)[-1].split(". ")[0]
    return text[:120] or type(error).__name__
