"""Memory: a plan by item before a model is loaded, whether it fits, and what was taken in the end. It knows no model.

A plan holds exact items (they follow from sizes) and estimated ones. What Python, torch and a CUDA context take by
themselves is in no plan: on a CPU the growth of this process since before loading is held against it, on a GPU what
torch has allocated. Torch is imported only where a GPU is asked.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shotstream.runtime.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PlanItem:
    """One thing that takes memory."""

    name: str
    nbytes: int
    exact: bool = True


@dataclass(frozen=True)
class Plan:
    """What a runtime with one session needs on its device; a further session takes its caches once more."""

    items: list[PlanItem]

    @property
    def total(self) -> int:
        """All items together, in bytes."""
        return sum(item.nbytes for item in self.items)

    def item(self, name: str) -> int:
        """Bytes of one item; 0 where there is none of that name."""
        return sum(item.nbytes for item in self.items if item.name == name)

    def largest_first(self) -> list[PlanItem]:
        """The items by size."""
        return sorted(self.items, key=lambda item: -item.nbytes)

    def sentence(self) -> str:
        """``17.9 GB: text encoder 11.4 GB, key-value caches 7.8 GB, ...``, largest first; ``~`` marks estimates."""
        named = (f"{item.name} {'' if item.exact else '~'}{size(item.nbytes)}" for item in self.largest_first())
        return f"{size(self.total)}: {', '.join(named)}"


@dataclass(frozen=True)
class GpuMemory:
    """What torch has allocated on the GPU, in MB (10^6 bytes). The CUDA context is not in it."""

    after_load_mb: float
    load_peak_mb: float
    """The most while loading."""
    peak_mb: float
    """The most while shots were made, warm-up included."""
    reserved_peak_mb: float
    """The most that torch held from the driver, free blocks included."""
    after_shot_mb: list[float]
    free_before_mb: float
    free_after_mb: float


@dataclass(frozen=True)
class MemoryUse:
    """Memory beside its plan, in MB (10^6 bytes); all but `gpu` is the resident set of this process."""

    plan: Plan | None
    before_load_mb: float
    """Python and torch, with nothing of the model."""
    after_load_mb: float
    after_shot_mb: list[float]
    peak_mb: float
    """The most of this process so far, loading included; where the system does not tell, the most after a shot."""
    gpu: GpuMemory | None = None

    @property
    def taken_mb(self) -> float:
        """What stands beside the plan: on a GPU torch's peak, else how much the peak is above `before_load_mb`."""
        if self.gpu is None:
            return self.peak_mb - self.before_load_mb
        return max(self.gpu.load_peak_mb, self.gpu.peak_mb)

    @property
    def of_plan(self) -> float | None:
        """What was taken over what was planned."""
        return None if self.plan is None else 1e6 * self.taken_mb / self.plan.total


class MemoryWatch:
    """Notes memory at the moments that matter: make it before loading, then call its methods in their order."""

    def __init__(self, device: torch.device, plan: Plan | None = None) -> None:
        self.plan = plan
        self._before = self._loaded = resident_mb()
        self._after_shot: list[float] = []
        self._gpu = _GpuWatch(device) if device.type == "cuda" else None

    def loaded(self) -> None:
        """The model is loaded, and no session has made anything yet."""
        self._loaded = resident_mb()
        if self._gpu is not None:
            self._gpu.loaded()

    def shot_made(self) -> None:
        """One more shot is over."""
        self._after_shot.append(round(resident_mb(), 1))
        if self._gpu is not None:
            self._gpu.shot_made()

    def finish(self) -> MemoryUse:
        """The story is over; everything until now counts."""
        return MemoryUse(
            plan=self.plan,
            before_load_mb=round(self._before, 1),
            after_load_mb=round(self._loaded, 1),
            after_shot_mb=list(self._after_shot),
            peak_mb=round(max(peak_resident_mb(), self._loaded, *self._after_shot), 1),
            gpu=None if self._gpu is None else self._gpu.finish(),
        )


class _GpuWatch:
    """The same for torch's allocations on a GPU."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._cuda, self._device = torch.cuda, device
        torch.cuda.init()  # there are no statistics to reset before
        self._free = self._free_mb()
        self._load = self._load_peak = 0.0
        self._after_shot: list[float] = []
        self._cuda.reset_peak_memory_stats(device)

    def loaded(self) -> None:
        self._load, self._load_peak = self._allocated_mb(), self._peak_mb()
        self._cuda.reset_peak_memory_stats(self._device)

    def shot_made(self) -> None:
        self._after_shot.append(self._allocated_mb())

    def finish(self) -> GpuMemory:
        reserved = round(self._cuda.max_memory_reserved(self._device) / 1e6, 1)
        return GpuMemory(
            self._load, self._load_peak, self._peak_mb(), reserved, self._after_shot, self._free, self._free_mb()
        )

    def _allocated_mb(self) -> float:
        return round(self._cuda.memory_allocated(self._device) / 1e6, 1)

    def _peak_mb(self) -> float:
        return round(self._cuda.max_memory_allocated(self._device) / 1e6, 1)

    def _free_mb(self) -> float:
        return round(self._cuda.mem_get_info(self._device)[0] / 1e6, 1)


def check_room(plan: Plan, device: torch.device) -> None:
    """Refuse with a sentence what would end in an out-of-memory error minutes later."""
    free = available_bytes(device)
    if free is not None and plan.total > free:
        raise UserError(f"{device} has {size(free)} left, but the model needs {plan.sentence()}")


def available_bytes(device: torch.device) -> int | None:
    """Memory that can still be taken on a device; None where nobody tells."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    told = [found for found in (_proc_bytes("/proc/meminfo", "MemAvailable"), left_in_group()) if found is not None]
    return min(told, default=None)


def left_in_group(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's limit leaves, where there is one (cgroup version 2); its file cache can be taken back."""
    try:
        limit, used = (root / "memory.max").read_text().strip(), int((root / "memory.current").read_text())
        rows = (line.split() for line in (root / "memory.stat").read_text().splitlines())
        cache = next((int(row[1]) for row in rows if row[0] == "inactive_file"), 0)
        return None if limit == "max" else max(0, int(limit) - used + cache)
    except (OSError, ValueError, IndexError):
        return None


def resident_mb() -> float:
    """Resident memory of this process in MB (10^6 bytes)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, ValueError, AttributeError):
        return peak_resident_mb()


def peak_resident_mb() -> float:
    """The most that was ever resident of this process, in MB; 0.0 where the system does not tell."""
    told = _proc_bytes("/proc/self/status", "VmHWM")
    if told is not None:
        return told / 1e6
    try:
        import resource  # not on Windows
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if platform.system() == "Darwin" else peak * 1024 / 1e6


def size(nbytes: float) -> str:
    """Bytes for people: ``7.8 GB``, ``24 MB`` or ``1.7 MB``."""
    if nbytes >= 1e9:
        return f"{nbytes / 1e9:.1f} GB"
    return f"{nbytes / 1e6:.{0 if nbytes >= 1e7 else 1}f} MB"


def _proc_bytes(file: str, name: str) -> int | None:
    """A figure that Linux gives in kB."""
    try:
        lines = Path(file).read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
    except (OSError, ValueError, IndexError):
        return None
