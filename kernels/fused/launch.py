"""How rows are laid over blocks, and the configurations that were chosen for a GPU by measuring.

``tuning/*.json`` hold one file per GPU, named by its compute capability (``sm_90.json``): kernel name to warps of a
block. Nothing is tuned while a film is being made; what no file names gets :func:`default_warps`.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

import torch

_LANES_PER_WARP = 32
_LANES_PER_THREAD = 16
"""16 bytes per load of a thread in 16 bits are 8 lanes; two such loads in flight hide more than one."""


def block_lanes(width: int) -> int:
    """Smallest power of two that a row of this width fits in."""
    return 1 << max(width - 1, 1).bit_length()


def default_warps(lanes: int) -> int:
    """Warps for a row of so many lanes: 1 for short rows, 4 for 1536 channels, at most 16."""
    return max(1, min(16, lanes // (_LANES_PER_WARP * _LANES_PER_THREAD)))


def warps(kernel: str, width: int, device: torch.device) -> int:
    """Warps of one block of this kernel on rows of this width, from the GPU's tuning file or by default."""
    chosen = tuned(device).get(f"{kernel}/{width}")
    return default_warps(block_lanes(width)) if chosen is None else chosen


@cache
def tuned(device: torch.device) -> dict[str, int]:
    """``KERNEL/WIDTH`` to warps for this GPU, empty where nobody has measured; the benchmark tries others in it."""
    return _read(architecture(device))


def architecture(device: torch.device) -> str:
    """``sm_90`` and the like; empty for what is no GPU."""
    if device.type != "cuda":
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _read(name: str) -> dict[str, int]:
    file = resources.files("shotstream.kernels.fused") / "tuning" / f"{name}.json"
    if not name or not file.is_file():
        return {}
    return dict(json.loads(file.read_text())["warps"])
