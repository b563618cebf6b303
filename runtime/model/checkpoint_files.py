"""Opens weight files and folders and gives back their tensors, memory-mapped: safetensors (also sharded) and
``torch.save`` files. It knows containers, not models: what the keys mean is ``state_dicts``' subject.

A file is judged by its first bytes, never by its name. Pickles are read with ``weights_only=True`` alone, so that
nothing in a file can run. Everything wrong with a file is one ``UserError`` sentence.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from shotstream.runtime.errors import UserError

_ZIP, _PICKLE, _GGUF, _LFS = b"PK\x03\x04", b"\x80", b"GGUF", b"version https://git-lfs"
# What a folder's weights may be called, most specific first; the second level is diffusers' and transformers' habit.
_WEIGHT_NAMES = (
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
)


@dataclass(frozen=True)
class WeightFile:
    """What a file holds: ``content`` is a dict of tensors, or of such dicts; ``metadata`` the safetensors header's."""

    path: Path
    kind: str
    """``safetensors`` or ``torch``."""
    content: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)


def resolve_weights(path: Path | str) -> Path:
    """The weights file of ``path``: itself, or the known one inside a folder (``transformer/`` is looked into)."""
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    for folder in (path, path / "transformer"):
        for name in _WEIGHT_NAMES:
            if (folder / name).is_file():
                return folder / name
    single = sorted(p for p in path.iterdir() if p.suffix in {".safetensors", ".pt", ".pth"})
    if len(single) == 1:
        return single[0]
    raise UserError(f"{path} holds {len(single) or 'no'} weight files; name one of them")


def open_weights(path: Path | str) -> WeightFile:
    """Open a weights file or folder. Tensors are memory-mapped where the container allows it (all but old pickles)."""
    path = resolve_weights(path)
    if path.name.endswith(".index.json"):
        return _open_sharded(path)
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise UserError(f"{path} is empty; fetch it again")
    if head.startswith(_LFS):
        raise UserError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` there or fetch the file")
    if head.startswith(_GGUF):
        raise UserError(f"{path} is a GGUF file, which is not supported; give safetensors or a torch checkpoint")
    if len(head) > 8 and head[8:9] == b"{":
        return _open_safetensors(path)
    if head.startswith((_ZIP, _PICKLE)):
        return _open_torch(path)
    raise UserError(f"{path} is neither a safetensors nor a torch file (it starts with {head[:8]!r})")


def _open_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # get_tensor of a CPU file gives views of the mapping: pages are read when they are used.
            content = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            return WeightFile(path, "safetensors", content, dict(file.metadata() or {}))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(_safetensors_trouble(path, str(error))) from error


def _safetensors_trouble(path: Path, reason: str) -> str:
    """Say in words what is wrong with a safetensors file that the library refuses."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, 100_000_000))
    if 8 + length > size:
        return f"{path} is truncated: its header of {length} bytes does not fit a file of {size}; fetch it again"
    try:
        entries = json.loads(header)
        end = 8 + length + max((e["data_offsets"][1] for k, e in entries.items() if k != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{path} looks like safetensors but its header is not readable; fetch it again"
    if end > size:
        return f"{path} is truncated: it has {size} of {end} bytes; fetch it again"
    return f"{path} is not a valid safetensors file ({reason}); fetch it again"


def _open_sharded(index: Path) -> WeightFile:
    try:
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{index} is not a safetensors index ({error})") from error
    content: dict[str, Any] = {}
    for name in shards:
        shard = index.parent / name
        if not shard.is_file():
            raise UserError(f"{index} names the shard {name}, which is not beside it; fetch it")
        content.update(open_weights(shard).content)
    return WeightFile(index, "safetensors", content)


def _open_torch(path: Path) -> WeightFile:
    zipped = zipfile.is_zipfile(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        what = " ".join(str(error).split())
        if "Unsupported" in what or "allowed global" in what:
            raise UserError(f"{path} holds more than tensors and plain containers and is refused for safety") from error
        raise UserError(f"{path} is not a readable torch file: {what[:160]}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, UnicodeDecodeError) as error:
        what = " ".join(str(error).split())[:160]
        raise UserError(f"{path} is truncated or not a torch checkpoint ({what}); fetch it again") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict")
    return WeightFile(path, "torch", content)


def iter_tensor_dicts(content: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
    """``(name, state dict)`` of every entry that is one; the name is empty when ``content`` is one itself."""
    if content and all(isinstance(value, torch.Tensor) for value in content.values()):
        yield "", content
        return
    for name, value in content.items():
        if isinstance(value, Mapping) and value and all(isinstance(v, torch.Tensor) for v in value.values()):
            yield str(name), value
