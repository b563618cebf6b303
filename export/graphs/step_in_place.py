"""The whole step over caches that are written in place: every size is fixed, and what changes lies in device memory.

TensorRT and TensorRT-RTX make `TensorScatter` a KVCacheUpdate, whose input and output are bound to one address, and
attend over as many keys as a number on the device says. They read that number from their own `TRT_Attention` only: the
same input of ONNX's `Attention` they leave out without an error. So the node's body is either in ONNX's words, for ONNX
Runtime, or in theirs.

Against `graphs.step`: caches ``[1, heads, S, head_dim]`` with all S slots; `slot` int32 ``[1]``, where the pass's
tokens go (a chunk never lies across the ring's seam), and `length` int32 ``[1]``, how many slots are seen, those of the
pass among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shotstream.export.graphs.cache_chunk_attention import DOMAIN, VERSION, add_function, operation_schema, register
from shotstream.export.graphs.spec import GraphSpec
from shotstream.export.graphs.step import COMMON, PER_LAYER, StepGraph, example_step_inputs
from shotstream.export.segments.cut import Signature
from shotstream.runtime.config import DiTConfig

if TYPE_CHECKING:
    from onnx import FunctionProto

STEP_IN_PLACE, CONTEXT_IN_PLACE = "step_in_place", "context_in_place"
"""Names of the graph over a chunk with one caption, and over the context frames with a caption each."""
OPSET = 24
"""The first that has `TensorScatter`."""
NAME = "UpdateCacheAttention"
INPUTS = ("q", "k", "v", "k_cache", "v_cache", "slot", "length")
OUTPUTS = ("out", "k_cache_out", "v_cache_out")
_SHARED = ("slot", "length")

_BODY = f"""
<opset_import: ["" : {OPSET}, "trt": 1], domain: "{DOMAIN}">
{NAME} <scale> (q, k, v, k_cache, v_cache, slot, length) => (out, k_cache_out, v_cache_out) {{{{
    first = Constant <value_ints = [0]> ()
    q_HLK = Transpose <perm = [1, 0, 2]> (q)
    k_HLK = Transpose <perm = [1, 0, 2]> (k)
    v_HLK = Transpose <perm = [1, 0, 2]> (v)
    q_BHLK = Unsqueeze (q_HLK, first)
    k_BHLK = Unsqueeze (k_HLK, first)
    v_BHLK = Unsqueeze (v_HLK, first)
    slot_64 = Cast <to = 7> (slot)
    k_cache_out = TensorScatter <axis = -2, mode = "linear"> (k_cache, k_BHLK, slot_64)
    v_cache_out = TensorScatter <axis = -2, mode = "linear"> (v_cache, v_BHLK, slot_64)
    {{attention}}
    out_HLK = Squeeze (out_BHLK, first)
    out = Transpose <perm = [1, 0, 2]> (out_HLK)
}}}}
"""
_ATTENTION = {
    "onnx": """
    length_64 = Cast <to = 7> (length)
    out_BHLK = Attention <scale: float = @scale> (q_BHLK, k_cache_out, v_cache_out, , , , length_64)""",
    "tensorrt": """
    out_BHLK = trt.TRT_Attention <scale: float = @scale> (q_BHLK, k_cache_out, v_cache_out, , , length)""",
}


@torch.library.custom_op("shotstream::update_cache_attention", mutates_args=())
def update_cache_attention(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot: Tensor, length: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The node in torch, where nothing is in place. q, k, v ``[L, H, K]``, caches ``[1, H, S, K]``."""
    slots = slot.long() + torch.arange(q.shape[0])
    caches = [cache.index_copy(2, slots, new.transpose(0, 1)[None]) for cache, new in ((k_cache, k), (v_cache, v))]
    keys, values = (cache[0, :, : int(length)] for cache in caches)
    out = F.scaled_dot_product_attention(q.transpose(0, 1), keys, values, scale=scale).transpose(0, 1).contiguous()
    return out, caches[0], caches[1]


@update_cache_attention.register_fake
def _fake(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot: Tensor, length: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    return out, torch.empty_like(k_cache), torch.empty_like(v_cache)


class StepInPlace(StepGraph):
    """As the module says; returns flow, then of each layer the caches as they have become."""

    def attend(self, q_LHK: Tensor, k_LHK: Tensor, v_LHK: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        return update_cache_attention(q_LHK, k_LHK, v_LHK, *cache, self.config.head_dim**-0.5)


def step_in_place_signature(config: DiTConfig) -> Signature:
    """Names of the graph's inputs and outputs, in order."""
    layers = range(config.layers)
    inputs = tuple(f"{what}_{layer}" for layer in layers for what in PER_LAYER)
    outputs = tuple(f"{what}_cache_out_{layer}" for layer in layers for what in "kv")
    return Signature((*COMMON, *_SHARED, *inputs), ("flow", *outputs))


def cache_aliases(config: DiTConfig) -> dict[str, str]:
    """Which input each cache that comes out is, by name: both are to lie at one address."""
    layers = range(config.layers)
    return {f"{what}_cache_out_{layer}": f"{what}_cache_{layer}" for layer in layers for what in "kv"}


def step_in_place_spec(
    model: Any,
    latent_shape: tuple[int, int, int],
    dtype: torch.dtype = torch.float32,
    *,
    attention: str = "onnx",
    frames: int | None = None,
    captions: int = 1,
) -> GraphSpec:
    """The graph of passes over so many frames (a chunk's unless told), to be written in :data:`OPSET`.

    attention: whose words the body is in, "onnx" or "tensorrt".
    """
    config: DiTConfig = model.config
    return GraphSpec(
        StepInPlace(model, latent_shape).eval(),
        example_in_place_inputs(config, latent_shape, dtype, frames, captions),
        step_in_place_signature(config).outputs,
        {},
        {},
        translations(),
        partial(add_function, function=body(attention)),
    )


def example_in_place_inputs(
    config: DiTConfig,
    latent_shape: tuple[int, int, int],
    dtype: torch.dtype,
    frames: int | None = None,
    captions: int = 1,
    slot_frame: int = 2,
) -> dict[str, Tensor]:
    """Random inputs from a fixed seed, in the order of the signature; the pass's frames follow `slot_frame` others.

    The caches are zeros and only read: each is one number in memory, since the exporter copies what it is given.
    """
    frames = config.chunk_frames if frames is None else frames
    tokens = config.tokens_per_frame(*latent_shape[1:])
    made = example_step_inputs(config, latent_shape, dtype, frames, cached_frames=0)
    made["caption"] = made["caption"] % captions
    made["slot"] = torch.tensor([slot_frame * tokens], dtype=torch.int32)
    made["length"] = torch.tensor([(slot_frame + frames) * tokens], dtype=torch.int32)
    cache = (1, config.heads, (config.context_frames + config.local_frames) * tokens, config.head_dim)
    for name, value in made.items():
        if "_cache_" in name:
            made[name] = torch.zeros((), dtype=dtype).expand(cache)
        elif name.startswith("ctx_"):
            made[name] = value[:1].repeat(captions, 1, 1, 1)
    return {name: made[name] for name in step_in_place_signature(config).inputs}


def translations() -> Mapping[Any, Any]:
    """How the exporter writes the operation: the bare node, as in `cache_chunk_attention`."""
    from onnxscript.values import Opset

    number = ["tensor(int32)"]
    register(operation_schema(NAME, dict.fromkeys(INPUTS, "T") | dict.fromkeys(_SHARED, "I"), OUTPUTS, {"I": number}))
    domain = Opset(DOMAIN, VERSION)

    def node(q: Any, k: Any, v: Any, k_cache: Any, v_cache: Any, slot: Any, length: Any, scale: float) -> Any:
        return domain.UpdateCacheAttention(q, k, v, k_cache, v_cache, slot, length, scale=scale)

    return {torch.ops.shotstream.update_cache_attention.default: node}


def body(attention: str) -> FunctionProto:
    """The node's meaning."""
    from onnx import parser

    return parser.parse_function(_BODY.format(attention=_ATTENTION[attention].strip()))
