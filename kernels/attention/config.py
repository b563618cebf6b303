"""Block sizes, warps and stages of the kernels, chosen offline: one json file per architecture in ``tuning/``.

A file holds ``{"note": ..., "configs": {KEY: {field: value}}}`` with keys ``PATH/HEAD_DIM/DTYPE``, such as
``descriptor/128/bfloat16``. Nothing is tuned while a session runs; `tune` writes such a file on a GPU.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources
from typing import Literal

import torch

Path_ = Literal["pointer", "descriptor"]

HEAD_DIMS = (64, 128)
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn)
"""Dtypes of keys and values."""


@dataclass(frozen=True)
class Config:
    """How one kernel is launched."""

    path: Path_
    block_q: int
    block_k: int
    warps: int
    stages: int
    specialise: bool = False
    """Warps specialised into loading and computing; with descriptors only."""
    persistent: bool = False
    """One program per multiprocessor for whole tiles; with descriptors only."""


def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def key(path: str, head_dim: int, dtype: torch.dtype) -> str:
    """The name of a configuration in a tuning file."""
    return f"{path}/{head_dim}/{dtype_name(dtype)}"


def architectures() -> list[int]:
    """Compute capabilities (times ten) that have a tuning file, ascending."""
    folder = resources.files("shotstream.kernels.attention") / "tuning"
    names = [file.name for file in folder.iterdir() if file.name.startswith("sm_") and file.name.endswith(".json")]
    return sorted(int(name[3:-5]) for name in names)


def nearest_architecture(capability: tuple[int, int]) -> int | None:
    """The newest architecture with a file that is not newer than the GPU; None where the GPU is older than all."""
    number = capability[0] * 10 + capability[1]
    return max((arch for arch in architectures() if arch <= number), default=None)


@cache
def configs_of(arch: int) -> dict[str, Config]:
    """All configurations of one architecture by `key`; raises ValueError for a file that does not fit `Config`."""
    file = resources.files("shotstream.kernels.attention") / "tuning" / f"sm_{arch}.json"
    known = {field.name for field in fields(Config)}
    found = {}
    for name, values in json.loads(file.read_text())["configs"].items():
        unknown = set(values) - known
        if unknown or values.get("path") != name.split("/")[0]:
            raise ValueError(f"sm_{arch}.json: '{name}' does not fit: {sorted(unknown) or values.get('path')}")
        found[name] = Config(**values)
    return found


def dump(configs: dict[str, Config], note: str) -> str:
    """The text of a tuning file."""
    return json.dumps({"note": note, "configs": {name: asdict(c) for name, c in configs.items()}}, indent=1) + "\n"
