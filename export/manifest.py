"""What an export leaves behind: a folder of ONNX graphs and `manifest.json`, which says what they are of.

The manifest is written after every graph, so a folder always says what it holds, and an interrupted export goes on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from shotstream.export.files import hash_of, json_of, writing
from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Port:
    """An input or output of a graph. dtype: of torch, without "torch."; shape: sizes, or names of free ones."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Graph:
    """One ONNX file with its data file, if any; paths relative to the folder. sha256: hex, of each file."""

    file: str
    sha256: Mapping[str, str]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class Source:
    """What graphs were made of; graphs of two different sources never lie in one folder.

    weights_hash: as of `ModelParts`. config: the transformer's, as of `plain_config`. precision: float32, float16,
    bfloat16, float8 or int8. versions: of the packages that made them.
    """

    model: str
    weights_hash: str
    config: Mapping[str, Any]
    latent_shape: tuple[int, int, int]
    precision: str
    opset: int
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name for a folder of its graphs among those of others: what differs in anything lies elsewhere."""
        digest = hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()
        return f"{self.model}-{self.precision}-{digest[:16]}"


@dataclass(frozen=True)
class Manifest:
    """Contents of `manifest.json`."""

    source: Source
    graphs: Mapping[str, Graph] = field(default_factory=dict)
    format: int = FORMAT

    def with_graph(self, name: str, graph: Graph) -> Manifest:
        """A copy that has one graph more."""
        return replace(self, graphs={**self.graphs, name: graph})

    def graph(self, name: str) -> Graph:
        """A graph by name; UserError if there is none."""
        if name not in self.graphs:
            raise UserError(
                f"the export of '{self.source.model}' has no graph '{name}'; it has {', '.join(self.graphs) or 'none'}"
            )
        return self.graphs[name]


def plain_config(config: DiTConfig) -> dict[str, Any]:
    """As json has it, so that a source that was read equals one that was made."""
    made: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(asdict(config)))
    return made


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the folder's manifest in one move."""
    scratch = folder / f".{MANIFEST}.{os.getpid()}"
    with writing(folder / MANIFEST):
        try:
            scratch.write_bytes(json_of(manifest))
            scratch.replace(folder / MANIFEST)
        finally:
            scratch.unlink(missing_ok=True)


def read_manifest(folder: Path) -> Manifest:
    """The folder's manifest; UserError if it is missing, not ours or of another version."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"there is no {MANIFEST} in {folder}; make one with: shotstream export onnx --out {folder}"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        found = msgspec.json.decode(data)
        version = found["format"]
        if version != FORMAT:
            raise UserError(f"{path} has format {version}, and this version reads {FORMAT}; export again")
        return msgspec.convert(found, Manifest)
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a manifest of an export: {error}") from None


def check_files(folder: Path, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """UserError if a graph's file is missing or not what was exported."""
    for name in manifest.graphs if names is None else names:
        for file, expected in manifest.graph(name).sha256.items():
            path = folder / file
            if not path.is_file():
                raise UserError(f"{path} of graph '{name}' is missing; export again into this folder to make it anew")
            if hash_of(path) != expected:
                raise UserError(
                    f"{path} of graph '{name}' is not the file that was exported; export again into this folder to "
                    f"make it anew"
                )
