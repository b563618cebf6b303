"""Graphs without weights: ONNX files of some kilobytes that are filled from the model in torch when they are loaded.

Loading needs ONNX Runtime and nothing of what exports. The files and `compact.json`, which says what goes where, are
made by `compact.building`; those of `tiny` are part of the package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from torch import Tensor, nn

from shotstream.export.files import hash_of
from shotstream.export.graphs.decoder_stream import STEP
from shotstream.export.graphs.tiny_vae import TinyVAEGraph
from shotstream.export.manifest import Port, plain_config
from shotstream.export.onnx_runtime.runner import LoadedGraph, SessionRunner, SessionSettings, load_graph
from shotstream.export.segments.cut import cut, middle, signatures
from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import ModelParts
from shotstream.runtime.presets import hash_weights

FILE = "compact.json"
FORMAT = 1
MIDDLE = "mid"
"""The one graph of all segments between two blocks."""
Form = Literal["exact", "int8", "scale"]


class DoesNotFit(UserError):
    """Graphs are of another model than is loaded, or calibrated for other weights; it can still be exported."""


@dataclass(frozen=True)
class Filling:
    """What an initializer is made of.

    tensor: where it is in a graph's module, such as "rest.block.ffn.0.weight". form: its numbers, those in eight bits,
    or the latter's scales, one per row. transposed: as a matrix, its rows becoming columns.
    """

    tensor: str
    form: Form
    transposed: bool = False

    def array(self, module: nn.Module) -> np.ndarray:
        """The initializer for these weights, in order in memory."""
        weight: Tensor = attrgetter(self.tensor)(module)
        made = weight.detach().cpu().numpy()
        if self.form != "exact":
            rows, scales = eight_bit(made)
            made = rows if self.form == "int8" else scales
        return np.ascontiguousarray(made.reshape(len(made), -1).T if self.transposed else made)


@dataclass(frozen=True)
class CompactGraph:
    """One file. fillings: by initializer."""

    file: str
    sha256: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    fillings: Mapping[str, Filling]


@dataclass(frozen=True)
class Compact:
    """Contents of `compact.json`.

    config: the transformer's, on which `segments` depend and on nothing else. latent_shape: of both. decoder: with the
    ranges of its activations, which go with the weights of decoder_hash only. versions: of the packages that made them.
    """

    config: Mapping[str, Any]
    latent_shape: tuple[int, int, int]
    segments: Mapping[str, CompactGraph]
    decoder: CompactGraph
    decoder_hash: str
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT


def eight_bit(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric numbers in eight bits with a scale per row, to the bit as ONNX Runtime's quantiser makes them."""
    most = np.abs(weight.reshape(len(weight), -1)).max(1).astype(np.float64)
    scale = most / 127
    scale = np.where(scale < np.finfo(np.float32).tiny, 1.0, scale).astype(np.float32)
    rows = (weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).round()
    return rows.clip(-127, 127).astype(np.int8), scale


def shipped(model: str) -> Path | None:
    """The folder of a model's graphs in the package; None if there is none."""
    folder = Path(str(resources.files("shotstream.runtime"))) / "weights" / model / "onnx"
    return folder if (folder / FILE).is_file() else None


def read_compact(folder: Path) -> Compact:
    """UserError if there is no such folder, or a file in it is not what was built."""
    path, remedy = folder / FILE, "install shotstream again, or build it with: shotstream export compact"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Compact)
        if found.format != FORMAT:
            raise UserError(f"{path} has format {found.format}, and this version reads {FORMAT}; {remedy}")
        for graph in (*found.segments.values(), found.decoder):
            if hash_of(folder / graph.file) != graph.sha256:
                raise UserError(f"{folder / graph.file} is not the file that was built; {remedy}")
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; {remedy}") from error
    except msgspec.MsgspecError as error:
        raise UserError(f"{path} does not describe graphs: {error}; {remedy}") from None
    return found


def decoder_hash(graph: TinyVAEGraph) -> str:
    """Of all that the graph reads."""
    return hash_weights({"decoder": graph})


def segment_runner(folder: Path, compact: Compact, parts: ModelParts, settings: SessionSettings) -> SessionRunner:
    """The segments with a model's weights in float32. DoesNotFit if the model has other sizes."""
    if compact.config != plain_config(parts.config) or compact.latent_shape != parts.latent_shape:
        raise DoesNotFit(
            f"the graphs in {folder} are of other sizes than '{parts.name}' has; build them anew with: shotstream "
            f"export compact --out {folder}"
        )
    modules = cut(parts.transformer, parts.latent_shape)
    layers = {middle(layer) for layer in range(parts.config.layers - 1)}
    graphs = {
        name: _filled(folder, compact.segments[MIDDLE if name in layers else name], modules[name], settings)
        for name in signatures(parts.config)
    }
    return SessionRunner(graphs, settings.device)


def decoder_runner(
    folder: Path, compact: Compact, decoder: Any, latent_size: tuple[int, int], settings: SessionSettings
) -> SessionRunner:
    """The decoder's step with its weights in float32. DoesNotFit if it was calibrated for others, or sizes differ."""
    graph = TinyVAEGraph(decoder) if isinstance(decoder, TinyVAE) else None
    if graph is None or (compact.decoder_hash, compact.latent_shape[1:]) != (decoder_hash(graph), latent_size):
        raise DoesNotFit(
            f"the decoder's graph in {folder} was calibrated for other weights or sizes than are loaded; build it anew "
            f"with: shotstream export compact --out {folder}"
        )
    return SessionRunner({STEP: _filled(folder, compact.decoder, graph, settings)}, settings.device)


def total_bytes(folder: Path, compact: Compact) -> int:
    """Of all files."""
    files: Iterable[str] = (FILE, compact.decoder.file, *(graph.file for graph in compact.segments.values()))
    return sum((folder / file).stat().st_size for file in files)


def _filled(folder: Path, graph: CompactGraph, module: nn.Module, settings: SessionSettings) -> LoadedGraph:
    weights = {name: filling.array(module) for name, filling in graph.fillings.items()}
    return load_graph(folder / graph.file, graph.inputs, graph.outputs, settings, weights)
