"""Graphs whose products with weights run in eight-bit integers: ONNX Runtime's dynamic quantisation, for CPUs.

Weights get a scale per channel, activations one per product, found anew in every run. Products of two activations and
everything else stay in float32.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from shotstream.export.exporting import Tell, locked
from shotstream.export.files import hash_of, writing
from shotstream.export.manifest import Graph, Manifest, Source, check_files, read_manifest, write_manifest
from shotstream.runtime.errors import UserError
from shotstream.runtime.optional import require

INT8 = "int8"
_PRODUCTS = ["MatMul", "Gemm"]


def eight_bit_source(source: Source) -> Source:
    """What eight-bit copies of an export's graphs are made of. UserError without ONNX Runtime, which makes them."""
    ort = require("onnxruntime", "quantising graphs", "export")
    return replace(source, precision=INT8, versions={**source.versions, "onnxruntime": ort.__version__})


def quantise_export(
    folder: Path, names: Sequence[str], target: Path, source: Source, exact: Collection[str], tell: Tell | None = None
) -> None:
    """Write eight-bit copies of an export's graphs into `target`, unless they are there.

    source: as of `eight_bit_source`. exact: graphs that are copied as they are. Raises UserError when a
    package is missing or the disk is full.
    """
    require("onnx", "quantising graphs", "export")
    require("onnxruntime", "quantising graphs", "export")
    with locked(target):
        if holds(target, source, names):
            return
        manifest, made = read_manifest(folder), Manifest(source)
        for done, name in enumerate(names):
            if tell is not None:
                tell(name, done, len(names))
            graph = manifest.graph(name)
            with writing(target):
                made = made.with_graph(name, _copied(graph, folder, target, exact=name in exact))
        write_manifest(target, made)


def holds(folder: Path, source: Source, names: Sequence[str]) -> bool:
    """Whether a folder has these graphs of this source, unharmed."""
    try:
        manifest = read_manifest(folder)
        check_files(folder, manifest, names)
    except UserError:
        return False
    return manifest.source == source


def _copied(graph: Graph, folder: Path, target: Path, *, exact: bool) -> Graph:
    (target / graph.file).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".int8-") as scratch:
        if exact:
            files = list(graph.sha256)
            for file in files:
                shutil.copyfile(folder / file, Path(scratch) / Path(file).name)
        else:
            files = [graph.file]
            quantise_graph(folder / graph.file, Path(scratch) / Path(graph.file).name)
        hashes = {file: hash_of(Path(scratch) / Path(file).name) for file in files}
        for file in files:
            (Path(scratch) / Path(file).name).replace(target / file)
    return Graph(graph.file, hashes, graph.inputs, graph.outputs)


def quantise_graph(path: Path, target: Path) -> None:
    """Write an eight-bit copy of one graph, in one file."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    model = onnx.load(path)
    add_pre_process_metadata(model)  # exports are folded and have their shapes, which is all that it stands for
    quantize_dynamic(model, target, op_types_to_quantize=_PRODUCTS, per_channel=True, weight_type=QuantType.QInt8)
