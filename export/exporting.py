"""Exporting many graphs into one folder: resumable, one source per folder, one process at a time."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from filelock import FileLock

from shotstream.export.graphs.spec import OPSET, SCRATCH, GraphSpec, write_graph
from shotstream.export.manifest import (
    MANIFEST,
    Manifest,
    Source,
    check_files,
    plain_config,
    read_manifest,
    write_manifest,
)
from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import ModelParts

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Tell(Protocol):
    """Hears of an export's progress."""

    def __call__(self, name: str, done: int, total: int) -> None:
        """`name` is about to be made, `done` of `total` graphs are there."""
        ...


def dtype_of(precision: str) -> torch.dtype:
    """By its name; UserError for one that nothing is exported in."""
    if precision not in PRECISIONS:
        raise UserError(f"there is no precision '{precision}' here; there is {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def source_of(parts: ModelParts, precision: str, opset: int = OPSET) -> Source:
    """What graphs of a model are made of."""
    return Source(
        parts.name,
        parts.weights_hash,
        plain_config(parts.config),
        parts.latent_shape,
        precision,
        opset,
        versions_of(("torch", "onnx", "onnxscript", "shotstream")),
    )


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """By name; "missing" for one that is not installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def check_weights(folder: Path, source: Source, parts: ModelParts) -> None:
    """UserError if an export is of other weights than a model has, or for latents of another size."""
    again = "export again, into another folder"
    if source.latent_shape != parts.latent_shape:
        raise UserError(
            f"{folder} is an export for latents of {source.latent_shape}, and those of '{parts.name}' are "
            f"{parts.latent_shape}; {again}"
        )
    if source.weights_hash != parts.weights_hash:
        raise UserError(
            f"{folder} is an export of other weights of '{parts.name}' ({source.weights_hash[:12]}) than are loaded "
            f"({parts.weights_hash[:12]}); {again}"
        )


def cache_folder() -> Path:
    """Where exports lie that nobody gave a folder for; any of them may be deleted."""
    return Path.home() / ".cache" / "shotstream" / "onnx"


def export_graphs(
    folder: Path, source: Source, specs: Mapping[str, Callable[[], GraphSpec]], tell: Tell | None = None
) -> Manifest:
    """Make the graphs that are not there yet, ``folder/NAME.onnx`` each, and return the manifest of all.

    specs: by graph name, each made only when its turn comes. Raises UserError when the folder holds graphs of something
    else, or cannot be written.
    """
    with locked(folder):
        for left in folder.glob(f"{SCRATCH}*"):
            shutil.rmtree(left, ignore_errors=True)
        manifest = _begin(folder, source)
        missing = [name for name in specs if not _intact(folder, manifest, name)]
        for done, name in enumerate(missing, start=len(specs) - len(missing)):
            if tell is not None:
                tell(name, done, len(specs))
            graph = write_graph(specs[name](), folder, f"{name}.onnx", source.opset)
            manifest = manifest.with_graph(name, graph)
            write_manifest(folder, manifest)
        return manifest


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes; they wait."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            yield
    except PermissionError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror}; choose another folder") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder} is a file; choose another folder") from error


def _begin(folder: Path, source: Source) -> Manifest:
    if not (folder / MANIFEST).exists():
        return Manifest(source)
    manifest = read_manifest(folder)
    if different := _differences(manifest.source, source):
        raise UserError(
            f"{folder} holds graphs that differ in {', '.join(different)}; choose another folder, or delete this one"
        )
    if manifest.source.versions != source.versions:
        log.warning("%s was begun with other versions of packages; the graphs that are there are kept", folder)
        manifest = replace(manifest, source=source)
    return manifest


def _differences(there: Source, wanted: Source) -> list[str]:
    names = (field.name for field in fields(Source) if field.name != "versions")
    return [name.replace("_", " ") for name in names if getattr(there, name) != getattr(wanted, name)]


def _intact(folder: Path, manifest: Manifest, name: str) -> bool:
    if name not in manifest.graphs:
        return False
    try:
        check_files(folder, manifest, [name])
    except UserError as error:
        log.warning("%s", error)
        return False
    return True
