"""The engine `onnx`: the segments on ONNX Runtime, with our attention between them.

Without a folder of graphs it takes those of the package, which there are for `tiny` in eight bits; of other models and
precisions it exports the segments itself, once, into the user's cache folder.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from shotstream.export.compact.loading import DoesNotFit, read_compact, segment_runner, shipped
from shotstream.export.exporting import PRECISIONS, cache_folder, check_weights, dtype_of, export_graphs, source_of
from shotstream.export.graphs.contents import SEGMENTS, Specs, graph_specs
from shotstream.export.graphs.step import STEP, step_spec
from shotstream.export.manifest import Manifest, plain_config, read_manifest
from shotstream.export.onnx_runtime.int8 import INT8, eight_bit_source, holds, quantise_export
from shotstream.export.onnx_runtime.runner import OnnxRunner, SessionRunner, SessionSettings, check_provider
from shotstream.export.segments.cut import TEXT, signatures
from shotstream.export.segments.engine import NATIVE, OURS, SegmentOptions, segment_engine
from shotstream.export.segments.whole_step import native_engine
from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.engine import GraphEngine
from shotstream.runtime.optional import require
from shotstream.runtime.plugins import EngineRequest, ModelParts

log = logging.getLogger(__name__)

NAME = "onnx"


@dataclass(frozen=True)
class OnnxOptions(SegmentOptions):
    """folder: an export; None: the package's, or our own in the user's cache folder. precision: float32, float16,
    bfloat16 or int8; None: the runtime's. threads: of ONNX Runtime on a CPU; None: as many as torch has. provider: cpu
    or cuda; None: where the runtime works. attention: ours, or native, ONNX's own.
    """

    folder: str | None = None
    precision: str | None = None
    threads: int | None = None
    provider: str | None = None
    attention: str = OURS
    capture: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision not in (None, INT8, *PRECISIONS):
            raise UserError(f"the precision of the engine 'onnx' is {', '.join(PRECISIONS)} or int8")
        if self.threads is not None and (not isinstance(self.threads, int) or self.threads < 1):
            raise UserError(f"the threads of the engine 'onnx' are a whole number from 1 on, not {self.threads!r}")
        if self.attention not in (OURS, NATIVE):
            raise UserError(f"the attention of the engine 'onnx' is ours or native, not {self.attention!r}")


def onnx_engine(request: EngineRequest) -> GraphEngine:
    """Factory of the engine `onnx`. UserError: no ONNX Runtime, or a folder that is not of this model."""
    options = OnnxOptions.of(NAME, request.options)
    settings = SessionSettings(request.device, options.threads, options.provider or request.device.type)
    check_provider(require("onnxruntime", "the engine 'onnx'", "export"), settings)
    precision = _precision(request, options.precision)
    native = options.attention == NATIVE
    if native and options.fp8 != "none":
        raise UserError("ONNX's own attention reads keys and values as they are; leave the option fp8 away")
    names = [TEXT, STEP] if native else list(signatures(request.parts.config))
    if options.folder is None and precision == INT8 and not native:
        ready = _from_package(request.parts, settings)
        if ready is not None:
            return segment_engine(request, ready, options)
    if options.folder is None:
        folder = own_export(request, precision, names)
    else:
        folder = Path(options.folder).expanduser()
        check_source(folder, read_manifest(folder), request.parts, precision if options.precision else None)
    runner = OnnxRunner(folder, names, settings)
    return native_engine(request, runner) if native else segment_engine(request, runner, options)


def _from_package(parts: ModelParts, settings: SessionSettings) -> SessionRunner | None:
    """The eight-bit segments that come with the package; None if there are none for this model."""
    folder = shipped(parts.name)
    if folder is None or settings.provider != "cpu":
        return None
    try:
        return segment_runner(folder, read_compact(folder), parts, settings)
    except DoesNotFit as error:
        log.info("%s", error)
        return None


def check_source(folder: Path, manifest: Manifest, parts: ModelParts, precision: str | None = None) -> None:
    """UserError if an export is not of this model and these weights, or (given one) of another precision."""
    source, again = manifest.source, "export again, into another folder"
    if source.model != parts.name:
        raise UserError(f"{folder} is an export of the model '{source.model}', not of '{parts.name}'; {again}")
    if (source.config, source.latent_shape) != (plain_config(parts.config), parts.latent_shape):
        raise UserError(f"{folder} is an export of '{parts.name}' in other sizes than it has now; {again}")
    check_weights(folder, source, parts)
    if precision is not None and source.precision != precision:
        raise UserError(f"{folder} holds graphs in {source.precision}, not in {precision}; {again}")


def own_export(request: EngineRequest, precision: str, names: Sequence[str]) -> Path:
    """The folder of a model's graphs in the user's cache folder, made first if need be.

    It is named by weights, sizes, precision, opset and versions: what differs in any of them lies elsewhere. Processes
    that want the same one wait for each other; an interrupted export goes on.
    """
    parts, root = request.parts, cache_folder()
    source = source_of(parts, "float32" if precision == INT8 else precision)
    wanted = eight_bit_source(source) if precision == INT8 else source
    target = root / wanted.folder
    if holds(target, wanted, names):
        return target
    request.say(f"making ONNX graphs of '{parts.name}' for the engine onnx, once; they are kept in {target}")

    def tell(name: str, done: int, total: int) -> None:
        request.say(f"ONNX graphs of '{parts.name}': {done} of {total} ...")

    folder = root / source.folder
    export_graphs(folder, source, _specs(parts, dtype_of(source.precision), names), tell)
    if precision == INT8:
        quantise_export(folder, names, target, wanted, exact=[TEXT], tell=tell)
    return target


def _specs(parts: ModelParts, dtype: torch.dtype, names: Sequence[str]) -> Specs:
    found = graph_specs(parts, dtype, (SEGMENTS,))
    found[STEP] = partial(step_spec, parts.transformer, parts.latent_shape, dtype)
    return {name: found[name] for name in names}


def _precision(request: EngineRequest, wanted: str | None) -> str:
    """The precision to run in; UserError for one that does not go with the runtime's."""
    runs_in = str(request.dtype).removeprefix("torch.")
    precision = wanted or runs_in
    if request.device.type == "cpu" and runs_in != "float32":
        raise UserError(f"ONNX Runtime computes in float32 or int8 on a CPU, not in {runs_in}; leave --dtype away")
    if precision != runs_in and (precision, runs_in) != (INT8, "float32"):
        raise UserError(f"the runtime computes in {runs_in}, and graphs in {precision} do not go with that")
    return precision
