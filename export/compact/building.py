"""Building graphs without weights: exported and quantised as for a cache, then every initializer that comes from a
weight is taken out, with a note of which one and how.

Which weight it is, is found by its numbers: segments are exported with random ones, so that no two are the same and
nothing in a file depends on what the model has learned.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shotstream.export.compact.loading import (
    FILE,
    MIDDLE,
    Compact,
    CompactGraph,
    Filling,
    Form,
    decoder_hash,
    eight_bit,
)
from shotstream.export.exporting import versions_of
from shotstream.export.files import hash_of, json_of, writing
from shotstream.export.graphs.decoder_stream import STEP
from shotstream.export.graphs.decoders import decoder_specs
from shotstream.export.graphs.segments import segment_spec
from shotstream.export.graphs.spec import write_graph
from shotstream.export.graphs.tiny_vae import TinyVAEGraph
from shotstream.export.manifest import Graph, plain_config
from shotstream.export.onnx_runtime.int8 import quantise_graph
from shotstream.export.onnx_runtime.int8_decoder import quantise_step
from shotstream.export.segments.cut import TEXT, cut, middle, signatures
from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import ModelParts

_NOWHERE = "weights"
"""Of initializers that lie in no file."""
_MOST_SIZES = 8
"""Different numbers in an initializer that is a shape or a constant."""
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")


def build_compact(parts: ModelParts, folder: Path, tell: Callable[[str], None] = lambda name: None) -> Compact:
    """Write a model's eight-bit segments and its decoder's step into `folder`, with `compact.json`; weights in float32
    on a CPU. UserError: a decoder other than `tiny-vae`, a missing package, or a full disk.
    """
    decoder = parts.decoder
    if not isinstance(decoder, TinyVAE):
        raise UserError(f"graphs without weights are for the decoder tiny-vae, not for {type(decoder).__name__}")
    config = parts.config
    others = {middle(layer) for layer in range(1, config.layers - 1)}
    names = {MIDDLE if name == middle(0) else name: name for name in signatures(config) if name not in others}
    modules = cut(scrambled(parts.transformer), parts.latent_shape)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".compact-", dir=folder) as scratch:
            segments = {}
            for name, segment in names.items():
                tell(name)
                spec = segment_spec(segment, modules[segment], config, parts.latent_shape, torch.float32)
                made = write_graph(spec, Path(scratch), f"{name}.onnx")
                quantise = None if name == TEXT else quantise_graph
                segments[name] = _stripped(made, Path(scratch), folder, modules[segment], quantise)
                _check_empty(folder / segments[name].file)
            tell(STEP)
            made = write_graph(decoder_specs(decoder, parts.latent_shape[1:])[STEP](), Path(scratch), f"{STEP}.onnx")
            graph = TinyVAEGraph(decoder)
            step = _stripped(made, Path(scratch), folder, graph, quantise_step)
        compact = Compact(
            plain_config(config),
            parts.latent_shape,
            segments,
            step,
            decoder_hash(graph),
            versions_of(_PACKAGES),
        )
        (folder / FILE).write_bytes(json_of(compact))
    return compact


def scrambled(model: nn.Module) -> nn.Module:
    """A copy with random weights."""
    made, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.1, generator=generator)
    return made


def _stripped(
    graph: Graph, scratch: Path, folder: Path, module: nn.Module, quantise: Callable[[Path, Path], None] | None
) -> CompactGraph:
    import onnx

    path = scratch / graph.file
    if quantise is not None:
        path = scratch / f"int8-{graph.file}"
        quantise(scratch / graph.file, path)
    model = onnx.load(path)
    fillings = take_weights(model, module)
    target = folder / graph.file
    target.write_bytes(model.SerializeToString(deterministic=True))
    return CompactGraph(graph.file, hash_of(target), graph.inputs, graph.outputs, fillings)


def _check_empty(path: Path) -> None:
    """A weight that was not found would stay what it was when the graph was built, whatever is loaded."""
    from onnx import TensorProto, load_model, numpy_helper

    for initializer in load_model(path, load_external_data=False).graph.initializer:
        if initializer.data_location == TensorProto.EXTERNAL:
            continue
        if len(np.unique(numpy_helper.to_array(initializer))) > _MOST_SIZES:
            raise RuntimeError(f"{initializer.name} of {path} is made of weights in a way that is not known here")


def take_weights(model: Any, module: nn.Module) -> dict[str, Filling]:
    """Take out of an ONNX model what comes from a module's weights, and the exporter's remarks; what was taken."""
    from onnx import TensorProto, numpy_helper

    candidates, fillings = _candidates(module), {}
    for initializer in model.graph.initializer:
        found = candidates.get(_print(numpy_helper.to_array(initializer)))
        if found is None:
            continue
        fillings[initializer.name] = found
        kept = TensorProto(name=initializer.name, data_type=initializer.data_type, dims=initializer.dims)
        kept.data_location = TensorProto.EXTERNAL
        kept.external_data.add(key="location", value=_NOWHERE)
        initializer.CopyFrom(kept)
    # Shapes of values in between stay: ONNX Runtime optimises by them, and would round a little differently.
    remarked = [model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info]
    for part in [*remarked, *model.graph.input, *model.graph.output]:
        del part.metadata_props[:]
        part.doc_string = ""
    return fillings


Print = tuple[str, tuple[int, ...], bytes]


def _print(array: np.ndarray) -> Print:
    return str(array.dtype), array.shape, np.ascontiguousarray(array).tobytes()


def _candidates(module: nn.Module) -> dict[Print, Filling]:
    """All that an initializer may be made of, by its numbers; what comes first counts."""
    made: dict[Print, Filling] = {}
    for name, tensor in _tensors(module):
        weight = tensor.detach().contiguous().numpy()
        forms: dict[Form, np.ndarray] = {"exact": weight}
        if weight.ndim > 1:
            forms["int8"], forms["scale"] = eight_bit(weight)
        for form, array in forms.items():
            made.setdefault(_print(array), Filling(name, form))
            if array.ndim > 1:
                flat = array.reshape(len(array), -1)
                made.setdefault(_print(flat.T), Filling(name, form, transposed=True))
    return made


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers, and the tensors of attributes that are no modules, with where they are."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            inner: Mapping[str, Any] = getattr(value, "__dict__", {})
            if isinstance(value, nn.Module | Tensor) or attribute.startswith("_"):
                continue
            for key, tensor in inner.items():
                if isinstance(tensor, Tensor):
                    yield ".".join(filter(None, (name, attribute, key))), tensor
