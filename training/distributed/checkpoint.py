"""Checkpoints of a stage: every process writes its shards, any number of processes reads them again.

A checkpoint is a folder ``checkpoint-000120``: safetensors written by ``torch.distributed.checkpoint`` and
``state.json`` with the step, every tensor's name and shape, and all plain values. It is made under another name and
renamed when it is whole; only then the one before is deleted. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from shotstream.runtime.errors import UserError
from shotstream.training.distributed.launch import Team, connection_lost
from shotstream.training.distributed.sharding import copy_whole

FORMAT = "shotstream.checkpoint.1"
LEGACY = "checkpoint.pt"
_NAME = re.compile(r"checkpoint-(\d{6,})")
_FILE_BYTES = 2**31  # of one file; a file is serialised in memory
_RENAMED = {"mean": "exp_avg", "square": "exp_avg_sq"}


def save(out: Path, step: int, stage: str, state: Mapping[str, Any], team: Team) -> Path:
    """Write a checkpoint whole or not at all, and delete older ones; all processes must call this.

    Raises UserError if it cannot be written; the one before is then untouched.
    """
    tensors: dict[str, Tensor] = {}
    plain = _split(state, "", tensors)
    final = out / f"checkpoint-{step:06d}"
    part = final.with_suffix(".part")
    if team.first:
        shutil.rmtree(part, ignore_errors=True)
    with _explained(f"cannot write checkpoint {final}", "the previous one is intact; make room and run again"):
        writer = dcp.HuggingFaceStorageWriter(str(part), _files(tensors), save_distributed=True)
        dcp.save(tensors, storage_writer=writer, no_dist=team.mesh is None)
        if team.first:
            shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
            header = {"format": FORMAT, "stage": stage, "step": step, "shapes": shapes, "values": plain}
            _write_json(part / "state.json", header)
            part.rename(final)
            _sweep(out, keep=final)
    return final


def load(out: Path, stage: str, state: Mapping[str, Any], team: Team) -> tuple[int, dict[str, Any]] | None:
    """Step and state of the newest whole checkpoint; None where there is none.

    ``state`` is the stage's present state: its tensors are filled in place, sharded as they are, and its optimizers'
    groups stay. Raises UserError if the checkpoint is damaged, or of another stage or of a model of other sizes.
    """
    folder = newest(out)
    if folder is None:
        legacy = out / LEGACY
        return _load_legacy(legacy, state) if legacy.exists() else None
    tensors: dict[str, Tensor] = {}
    _split(state, "", tensors)
    advice = "delete it to begin the stage again"
    with _explained(f"checkpoint {folder} cannot be read", advice):
        header = json.loads((folder / "state.json").read_text("utf-8"))
        if header.get("format") != FORMAT:
            raise ValueError(f"its format is {header.get('format')!r}, not {FORMAT!r}")
    _check(header, folder, stage, {name: list(tensor.shape) for name, tensor in tensors.items()})
    with _explained(f"checkpoint {folder} cannot be read", advice):
        reader = dcp.HuggingFaceStorageReader(str(folder))
        dcp.load(tensors, storage_reader=reader, no_dist=team.mesh is None)
    if team.first:
        _sweep(out, keep=folder)
    return int(header["step"]), _with_groups_of(state, _join(header["values"], tensors))


def newest(out: Path) -> Path | None:
    """The folder of the last whole checkpoint in ``out``."""
    found = [path for path in out.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return max(found, key=lambda path: int(path.name.split("-")[1]), default=None)


def _sweep(out: Path, keep: Path) -> None:
    """Delete older checkpoints and what a killed run left half-written."""
    for path in [*out.glob("checkpoint-*"), out / LEGACY]:
        if path == keep:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _check(header: Mapping[str, Any], folder: Path, stage: str, shapes: Mapping[str, list[int]]) -> None:
    if header["stage"] != stage:
        raise UserError(f"{folder} is a checkpoint of stage {header['stage']}, not of {stage}; choose another --out")
    theirs: Mapping[str, list[int]] = header["shapes"]
    # A parameter says more than a number of the optimizer's state.
    for name in sorted(theirs.keys() | shapes.keys(), key=lambda name: ("optimizer" in name, name)):
        if theirs.get(name) != shapes.get(name):
            raise UserError(
                f"checkpoint {folder} is of another recipe: its {name} is {theirs.get(name, 'not there')}, this "
                f"recipe's {shapes.get(name, 'not there')}; use the recipe it was made with, or another --out"
            )


@contextmanager
def _explained(what: str, advice: str) -> Iterator[None]:
    """Turn whatever goes wrong with files, in any process, into one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            yield
    except UserError:
        raise
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise UserError(f"{what} ({_reason(reason)}); {advice}") from error
    except Exception as error:  # safetensors, json and torch have many names for a broken file
        if connection_lost(error):
            raise
        raise UserError(f"{what} ({_reason(error)}); {advice}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Which file, from 1 on, every tensor goes to."""
    number, size = 1, 0
    files = {}
    for name, tensor in tensors.items():
        size += tensor.numel() * tensor.element_size()
        if size > _FILE_BYTES and name != next(iter(tensors)):
            number, size = number + 1, tensor.numel() * tensor.element_size()
        files[name] = number
    return files


def _split(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Plain values as json takes them, with the names of tensors in place of the tensors."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, Mapping):
        return {str(key): _split(v, f"{name}/{key}" if name else str(key), tensors) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
    return value


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverse of :func:`_split`; keys that are numbers, as in the state of an optimizer, are numbers again."""
    if isinstance(value, dict):
        if "$tensor" in value:
            return tensors[value["$tensor"]]
        return {int(key) if key.isdigit() else key: _join(v, tensors) for key, v in value.items()}
    return [_join(v, tensors) for v in value] if isinstance(value, list) else value


def _with_groups_of(now: Any, saved: Any) -> Any:
    """What was saved, but with the present groups of optimizers: rates are the recipe's, which may have changed."""
    if not isinstance(saved, dict):
        return saved
    return {k: now[k] if k == "param_groups" else _with_groups_of(now[k], value) for k, value in saved.items()}


def _load_legacy(path: Path, state: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """The single file of earlier versions."""
    with _explained(f"checkpoint {path} cannot be read", "delete it to begin the stage again"):
        saved = torch.load(path, weights_only=True, map_location="cpu")
        return int(saved["step"]), _overlaid(state, saved["stage"])


def _overlaid(now: Any, old: Any) -> Any:
    """The present state with the old one's numbers; groups of the optimizer are the recipe's."""
    if isinstance(now, Tensor):
        if now.shape != old.shape:
            raise ValueError(f"a tensor is {tuple(old.shape)}, this recipe's {tuple(now.shape)}")
        copy_whole(now, old)
        return now
    if isinstance(now, Mapping):
        return {
            key: value if key == "param_groups" else _overlaid(value, old[_RENAMED[key] if key not in old else key])
            for key, value in now.items()
        }
    return type(now)(old) if isinstance(now, (int, float)) else old
