"""`shotstream::CacheChunkAttention`: attention of some tokens over cached keys and their own, as one node of a graph.

In torch it is a custom operation. In an ONNX file it is a node whose meaning comes along as a local function of the
same name, so ONNX Runtime runs it as it is. The attributes `plugin_namespace` and `plugin_version` tell TensorRT and
TensorRT-RTX to prefer a plugin of that name; where none is registered they too take the function.

Norm and rotation of queries and keys lie in front of the node, as plain operations of the graph: rotated keys are
outputs of the graph in any case, and what remains is what attention kernels do.

q, k, v ``[L, H, K]``; k_cache, v_cache ``[S, H, K]``, S may be 0; all of one dtype. Result ``[L, H, K]``:
``softmax(scale q (k_cache, k)^T) (v_cache, v)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from onnx import FunctionProto
    from onnx.defs import OpSchema

DOMAIN, NAME, VERSION = "shotstream", "CacheChunkAttention", 1
INPUTS = ("q", "k", "v", "k_cache", "v_cache")
_ATTENTION_OPSET = 23
_TYPES = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]

_JOINED = f"""
{NAME} <scale> (q, k, v, k_cache, v_cache) => (out) {{
    keys = Concat <axis = 0> (k_cache, k)
    values = Concat <axis = 0> (v_cache, v)
"""
_AS_PRODUCTS = """
    scale_1 = Constant <value_float: float = @scale> ()
    scale_T = CastLike (scale_1, q)
    q_scaled = Mul (q, scale_T)
    q_HLK = Transpose <perm = [1, 0, 2]> (q_scaled)
    k_HKS = Transpose <perm = [1, 2, 0]> (keys)
    v_HSK = Transpose <perm = [1, 0, 2]> (values)
    scores = MatMul (q_HLK, k_HKS)
    shares = Softmax <axis = -1> (scores)
    out_HLK = MatMul (shares, v_HSK)
    out = Transpose <perm = [1, 0, 2]> (out_HLK)
}
"""
_AS_ONE_NODE = """
    first = Constant <value_ints = [0]> ()
    q_HLK = Transpose <perm = [1, 0, 2]> (q)
    k_HSK = Transpose <perm = [1, 0, 2]> (keys)
    v_HSK = Transpose <perm = [1, 0, 2]> (values)
    q_BHLK = Unsqueeze (q_HLK, first)
    k_BHSK = Unsqueeze (k_HSK, first)
    v_BHSK = Unsqueeze (v_HSK, first)
    out_BHLK = Attention <scale: float = @scale> (q_BHLK, k_BHSK, v_BHSK)
    out_HLK = Squeeze (out_BHLK, first)
    out = Transpose <perm = [1, 0, 2]> (out_HLK)
}
"""


@torch.library.custom_op("shotstream::cache_chunk_attention", mutates_args=())
def cache_chunk_attention(q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, scale: float) -> Tensor:
    """The node in torch. `scale` is ``K ** -0.5``; it is an argument so that the exported node says it."""
    q, k, v = (part.transpose(0, 1) for part in (q, torch.cat([k_cache, k]), torch.cat([v_cache, v])))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(0, 1).contiguous()


@cache_chunk_attention.register_fake
def _fake(q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, scale: float) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def translations() -> Mapping[Any, Any]:
    """How the exporter writes the operation: the bare node. The body is added afterwards, by :func:`add_body`.

    An onnxscript function in its place would be inlined at the exporter's own opset and refused.
    """
    from onnxscript.values import Opset

    inputs = dict.fromkeys(INPUTS, "T")
    register(operation_schema(NAME, inputs, ["out"], {}, "plugin_namespace", "plugin_version"))
    domain = Opset(DOMAIN, VERSION)

    def node(q: Any, k: Any, v: Any, k_cache: Any, v_cache: Any, scale: float) -> Any:
        return domain.CacheChunkAttention(
            q, k, v, k_cache, v_cache, scale=scale, plugin_namespace=DOMAIN, plugin_version=str(VERSION)
        )

    return {torch.ops.shotstream.cache_chunk_attention.default: node}


def body(opset: int) -> FunctionProto:
    """The node's meaning in operations of that opset; from 23 on attention is one of them."""
    from onnx import parser

    rest = _AS_ONE_NODE if opset >= _ATTENTION_OPSET else _AS_PRODUCTS
    return parser.parse_function(f'<opset_import: ["" : {opset}], domain: "{DOMAIN}">\n{_JOINED}{rest}')


def add_body(model: Any) -> None:
    """Give an exported model (onnx_ir) the function, in the opset of its other nodes."""
    add_function(model, body(model.opset_imports[""]))


def add_function(model: Any, function: FunctionProto) -> None:
    """Append a local function to a model (onnx_ir)."""
    from onnx_ir import serde

    made = serde.deserialize_function(function)
    model.functions[made.identifier()] = made
    model.opset_imports[function.domain] = VERSION


def register(schema: OpSchema) -> None:
    """Tell ONNX of an operation, once per process; without it the exporter cannot write its node."""
    from onnx import defs

    if not defs.has(schema.name, domain=schema.domain):
        defs.register_schema(schema)


def operation_schema(
    name: str, inputs: Mapping[str, str], outputs: Sequence[str], types: Mapping[str, list[str]], *more: str
) -> OpSchema:
    """Schema of an operation of ours: inputs by name with the name of their type, "T" being the model's, which the
    outputs are of too; `scale` and further attributes, strings.
    """
    from onnx.defs import OpSchema

    kinds, port = OpSchema.AttrType, OpSchema.FormalParameter
    return OpSchema(
        name,
        DOMAIN,
        VERSION,
        inputs=[port(each, kind) for each, kind in inputs.items()],
        outputs=[port(each, "T") for each in outputs],
        type_constraints=[(kind, allowed, "") for kind, allowed in {"T": _TYPES, **types}.items()],
        attributes=[
            OpSchema.Attribute("scale", kinds.FLOAT),
            *(OpSchema.Attribute(each, kinds.STRING) for each in more),
        ],
    )
