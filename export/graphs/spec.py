"""One torch module to one ONNX file, with large weights in a data file beside it."""

from __future__ import annotations

import inspect
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from shotstream.export.files import hash_of, writing
from shotstream.export.manifest import Graph, Port
from shotstream.runtime.optional import require

if TYPE_CHECKING:
    from collections.abc import Iterator

OPSET = 20
"""What TensorRT before 10.14 reads too; from 23 on attention is one node."""
SCRATCH = ".export-"
"""How folders begin that a graph is made in; one that is left was of an export that was killed."""
_INLINE_BYTES = 1 << 20


@dataclass(frozen=True)
class GraphSpec:
    """A module and how it is called. Example inputs must be distinct tensors.

    dynamic: free dimensions by input name, then axis, by name or as a multiple of a name such as "24*frames"; ranges:
    least and largest size of each name. finish: called with the model (onnx_ir) before it is written.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    dynamic: Mapping[str, Mapping[int, str]]
    ranges: Mapping[str, tuple[int, int]]
    translations: Mapping[Any, Any] | None = None
    finish: Callable[[Any], None] | None = None


def write_graph(spec: GraphSpec, folder: Path, file: str, opset: int = OPSET) -> Graph:
    """Export to ``folder / file`` (and ``file + ".data"`` above a megabyte); an interrupted export leaves nothing.

    Raises UserError when the packages are missing or the disk is full.
    """
    require("onnx", "exporting graphs", "export")
    require("onnxscript", "exporting graphs", "export")
    target = folder / file
    target.parent.mkdir(parents=True, exist_ok=True)
    with _quiet():
        program = _program(spec, opset)
    with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
        made = Path(scratch) / target.name
        with writing(target):
            program.save(str(made), external_data=_weight_bytes(program) > _INLINE_BYTES)
            files = sorted(Path(scratch).iterdir())
            hashes = {str(Path(file).parent / path.name): hash_of(path) for path in files}
            for path in files:  # the graph last: it stands for both
                if path != made:
                    shutil.move(path, target.parent / path.name)
            shutil.move(made, target)
    return Graph(file, hashes, *_ports(spec, program))


def _program(spec: GraphSpec, opset: int) -> Any:
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in spec.ranges.items()}
    shapes = [
        {axis: _dim(dims, dim) for axis, dim in spec.dynamic.get(name, {}).items()} or None for name in spec.inputs
    ]
    program = torch.onnx.export(
        spec.module,
        tuple(spec.inputs.values()),
        dynamo=True,
        opset_version=opset,
        input_names=list(spec.inputs),
        output_names=list(spec.outputs),
        dynamic_shapes=_as_called(spec.module, shapes) if spec.dynamic else None,
        custom_translation_table=None if spec.translations is None else dict(spec.translations),
        verbose=False,
    )
    assert program is not None
    if spec.finish is not None:
        spec.finish(program.model)
    return program


def _dim(dims: Mapping[str, Any], text: str) -> Any:
    times, _, name = text.rpartition("*")
    return int(times) * dims[name] if times else dims[name]


def _as_called(module: nn.Module, shapes: list[Any]) -> tuple[Any, ...]:
    """The exporter counts what goes into ``*args`` as one argument."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(shapes)
    first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:first], tuple(shapes[first:]))


def _weight_bytes(program: Any) -> int:
    return sum(value.const_value.nbytes for value in program.model.graph.initializers.values() if value.const_value)


def _ports(spec: GraphSpec, program: Any) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    free = {}
    for name, tensor in spec.inputs.items():
        axes = spec.dynamic.get(name, {})
        shape = tuple(axes.get(axis, size) for axis, size in enumerate(tensor.shape))
        free[name] = Port(name, str(tensor.dtype).removeprefix("torch."), shape)
    outputs = tuple(
        Port(value.name, _DTYPES.get(value.dtype.name, value.dtype.name.lower()), tuple(_size(d) for d in value.shape))
        for value in program.model.graph.outputs
    )
    return tuple(free.values()), outputs


_DTYPES = {"FLOAT": "float32", "DOUBLE": "float64"}


def _size(dim: Any) -> int | str:
    return dim if isinstance(dim, int) else str(dim)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress, as far as nobody asked for it."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.onnx._internal")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
