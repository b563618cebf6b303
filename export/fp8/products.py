"""Eight-bit products in ONNX graphs: QuantizeLinear and DequantizeLinear around the blocks' matrix products.

Weights are float8_e4m3fn with a scale per output channel; activations are rounded with one scale per product, which
comes from a calibration. A strongly typed engine makes eight-bit products of that. Everything else keeps its type.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shotstream.export.segments.cut import HEAD, TAIL, TEXT, middle
from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.optional import require

FP8, FP8_FOLDER = "fp8", "float8"
FP8_MAX = 448.0
PRODUCTS = ("qkv", "o", "cross_q", "cross_o", "up", "down")
"""The products of a block that may be eight-bit."""

Product = tuple[int, str]
"""A block's number, and one of `PRODUCTS`."""

_SMALLEST = 1e-12
_DTYPES = {1: torch.float32, 10: torch.float16, 16: torch.bfloat16, 17: torch.float8_e4m3fn}
"""By ONNX's numbers for them."""
_BIASES = {
    "o": "rest.block.self_attn.o.bias",
    "cross_q": "rest.block.cross_attn.q.bias",
    "cross_o": "rest.block.cross_attn.o.bias",
    "up": "rest.block.ffn.0.bias",
    "down": "rest.block.ffn.2.bias",
}


def eight_bit_products(config: DiTConfig, exact_blocks: int = 1) -> set[Product]:
    """All products but those of the blocks at either end, so many each."""
    return {(block, kind) for block in range(exact_blocks, config.layers - exact_blocks) for kind in PRODUCTS}


def products_of(segment: str, config: DiTConfig) -> dict[str, Product]:
    """Products in a segment by kind."""
    rest = PRODUCTS[1:]
    if segment == TEXT:
        return {}
    if segment == HEAD:
        return {"qkv": (0, "qkv")}
    last = config.layers - 1
    if segment == TAIL:
        return {kind: (last, kind) for kind in rest}
    block = next(i for i in range(last) if middle(i) == segment)
    return {"qkv": (block + 1, "qkv")} | {kind: (block, kind) for kind in rest}


def quantise_graph(graph: Path, target: Path, amax: Mapping[str, float]) -> None:
    """Write a graph again, with the products named in `amax` in eight bits and weights in ``target + ".data"``.

    amax: by kind of product, the largest number that its input holds. UserError for a product that is not there.
    """
    onnx = require("onnx", "rounding graphs to eight bits", "export")
    model = onnx.load(str(graph))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found = _products(model.graph, weights)
    if lacking := sorted(set(amax) - set(found)):
        raise UserError(f"{graph} has no product {', '.join(lacking)} with constant weights; it has {', '.join(found)}")
    for kind, largest in amax.items():
        _round(onnx, model.graph, found[kind], weights, kind, largest)
    onnx.save(model, str(target), save_as_external_data=True, location=f"{target.name}.data", size_threshold=1024)
    shutil.copymode(target, target.with_name(f"{target.name}.data"))  # it would be for its owner alone


def _products(graph: Any, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Products by kind: who adds which bias says which product it is."""
    made = {output: node for node in graph.node for output in node.output}
    found = {}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        product, bias = made.get(node.input[0]), node.input[1]
        if product is None or product.op_type != "MatMul" or product.input[1] not in weights:
            continue
        kind = next((kind for kind, name in _BIASES.items() if bias == name), None)
        if kind is None and bias.startswith("start.") and bias in weights:
            kind = "qkv"
        if kind is not None:
            found[kind] = product
    return found


def weight_scales(weight_ND: Tensor) -> Tensor:
    """Scale of each output channel, float32 ``[N]``, to the precision of the weight's dtype."""
    return _kept(weight_ND.float().abs().amax(dim=1).clamp(min=_SMALLEST) / FP8_MAX, weight_ND.dtype)


def input_scale(amax: float, dtype: torch.dtype) -> float:
    """Scale of activations no larger than `amax`, to the precision of a dtype."""
    return float(_kept(torch.tensor(max(amax, _SMALLEST) / FP8_MAX), dtype))


def _kept(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A scale as the graph has it: values are rounded with the number they are read with. Never zero."""
    return scale.clamp(min=torch.finfo(dtype).tiny).to(dtype).float()


def _round(onnx: Any, graph: Any, node: Any, weights: dict[str, Any], kind: str, amax: float) -> None:
    old = weights[node.input[1]]
    dtype = _DTYPES[old.data_type]
    plain_ND = torch.from_numpy(onnx.numpy_helper.to_array(old).astype("float32")).T.to(dtype)
    scale_N = weight_scales(plain_ND)
    values_DN = (plain_ND.float().T / scale_N).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).contiguous()
    constants = {
        "w": values_DN,
        "w_scale": scale_N.to(dtype),
        "x_scale": torch.tensor(input_scale(amax, dtype), dtype=dtype),
        "zero": torch.zeros((), dtype=torch.float8_e4m3fn),
    }
    for name, tensor in constants.items():
        type_of = next(number for number, known in _DTYPES.items() if known == tensor.dtype)
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        graph.initializer.append(onnx.helper.make_tensor(f"{kind}_{name}", type_of, list(tensor.shape), raw, raw=True))
    make = onnx.helper.make_node
    added = [
        make("QuantizeLinear", [node.input[0], f"{kind}_x_scale", f"{kind}_zero"], [f"{kind}_x8"], f"{kind}_q"),
        make("DequantizeLinear", [f"{kind}_x8", f"{kind}_x_scale"], [f"{kind}_x"], f"{kind}_dq"),
        make("DequantizeLinear", [f"{kind}_w", f"{kind}_w_scale"], [f"{kind}_w_wide"], f"{kind}_dqw", axis=1),
    ]
    at = next(i for i, other in enumerate(graph.node) if other.output[:1] == node.output[:1])
    node.input[0], node.input[1] = f"{kind}_x", f"{kind}_w_wide"
    for i, new in enumerate(added):
        graph.node.insert(at + i, new)
    if not any(old.name in other.input for other in graph.node):
        index = next(i for i, other in enumerate(graph.initializer) if other.name == old.name)
        del graph.initializer[index]
