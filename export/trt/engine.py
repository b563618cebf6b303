"""The engines `tensorrt` and `tensorrt-rtx`: segments from the engine store, with our attention between them.

They take what was built, and never anything else: an engine that is missing, broken or of another model is a
UserError with the command that makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shotstream.export.engine_store.store import EngineStore, default_store
from shotstream.export.exporting import check_weights
from shotstream.export.fp8.products import FP8, FP8_FOLDER
from shotstream.export.graphs.step import STEP, step_signature
from shotstream.export.graphs.step_in_place import (
    CONTEXT_IN_PLACE,
    STEP_IN_PLACE,
    cache_aliases,
    step_in_place_signature,
)
from shotstream.export.manifest import Manifest, read_manifest
from shotstream.export.segments.cut import TEXT, signatures
from shotstream.export.segments.engine import NATIVE, OURS, SegmentOptions, segment_engine
from shotstream.export.segments.whole_step import in_place_engine, native_engine
from shotstream.export.trt.keys import engine_key
from shotstream.export.trt.product import RTX, TENSORRT, Product, load_product, local_gpu, unsupported
from shotstream.export.trt.runner import TrtRunner
from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.engine import GraphEngine
from shotstream.runtime.plugins import EngineRequest


@dataclass(frozen=True)
class TrtOptions(SegmentOptions):
    """folder: the export the engines were built from. store: where they lie. precision: fp8, or "" as exported.
    attention: ours, between segments, or native, the product's own in the whole step.
    """

    folder: str = ""
    store: str = ""
    precision: str = ""
    attention: str = OURS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention not in (OURS, NATIVE):
            raise UserError(f"attention of an engine is ours or native, not {self.attention!r}")
        if self.attention == NATIVE and (self.fp8 != "none" or self.precision):
            raise UserError("with the product's own attention nothing is in eight bits; leave fp8 and precision away")


def tensorrt_engine(request: EngineRequest) -> GraphEngine:
    """Factory of the engine `tensorrt`."""
    return _on_gpu(TENSORRT, request)


def tensorrt_rtx_engine(request: EngineRequest) -> GraphEngine:
    """Factory of the engine `tensorrt-rtx`."""
    return _on_gpu(RTX, request)


def stored_engine(product: Product, gpu: str, request: EngineRequest) -> GraphEngine:
    """An engine of what the store has for a GPU of architecture `gpu`."""
    options = TrtOptions.of(product.name, request.options)
    if not options.folder:
        raise UserError(f"the engine '{product.name}' needs the folder of an export; give --engine-option folder=DIR")
    manifest = _manifest(Path(options.folder), options, request)
    store = EngineStore(Path(options.store) if options.store else default_store())
    config, native = request.parts.config, options.attention == NATIVE
    named = signatures(config)
    in_place = native and STEP_IN_PLACE in manifest.graphs
    if in_place:
        whole = step_in_place_signature(config)
        named = {TEXT: named[TEXT], CONTEXT_IN_PLACE: whole, STEP_IN_PLACE: whole}
    elif native:
        named = {TEXT: named[TEXT], STEP: step_signature(config)}
    entries = {
        name: store.best(engine_key(manifest, name, product), gpu)
        for name in named  # all are there before the first is read
    }
    plans: list[tuple[str, Callable[[], bytes]]] = [
        (name, partial(store.load, entry)) for name, entry in entries.items()
    ]
    kernels = store.root / f"{product.name}-{product.version}-{gpu}.kernels"
    aliases = cache_aliases(config) if in_place else {}
    runner = TrtRunner(product, plans, named, request.device, kernels, aliases)
    if in_place:
        return in_place_engine(request, runner, capture=options.capture)
    return native_engine(request, runner) if native else segment_engine(request, runner, options)


def _on_gpu(name: str, request: EngineRequest) -> GraphEngine:
    if request.device.type != "cuda":
        raise UserError(f"the engine '{name}' runs on a GPU; choose --device cuda, or the engine onnx")
    product = load_product(name)
    gpu = local_gpu(request.device)
    known = product.architectures()
    if known and gpu not in known:
        raise UserError(unsupported(product, gpu))
    return stored_engine(product, gpu, request)


def _manifest(folder: Path, options: TrtOptions, request: EngineRequest) -> Manifest:
    """Of the export in the precision asked for; UserError if it is of another model or in another dtype."""
    if options.precision not in ("", FP8):
        raise UserError(f"precision of an engine is {FP8}, or as exported; not {options.precision!r}")
    manifest = read_manifest(folder / FP8_FOLDER if options.precision else folder)
    check_weights(folder, manifest.source, request.parts)
    dtype = str(request.dtype).removeprefix("torch.")
    exported = manifest.graph(TEXT).inputs[0].dtype
    if exported != dtype:
        raise UserError(
            f"{folder} was exported in {exported}, and the runtime uses {dtype}; choose --dtype, or export again"
        )
    return manifest
