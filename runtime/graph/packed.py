"""A transformer's weights as the fused passes read them: q, k, v in one piece, products in the precision asked for.

The module keeps its parameters, as views of the pieces: nothing is held twice, except what is made eight-bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shotstream.runtime.graph.linear import Dense, EightBit, product


@dataclass(frozen=True)
class PackedBlock:
    """One block's products and the vectors of its norms."""

    qkv: Dense | EightBit
    kv: Dense | EightBit
    """`qkv` without the queries: for the last layer of a pass that only fills the cache."""
    norm_q_D: Tensor
    norm_k_D: Tensor
    o: Dense | EightBit
    norm3_weight_D: Tensor
    norm3_bias_D: Tensor
    cross_q: Dense | EightBit
    cross_norm_q_D: Tensor
    cross_o: Dense | EightBit
    up: Dense | EightBit
    down: Dense | EightBit


def pack(block: Any, eight_bit: bool) -> PackedBlock:
    """Pack one `Block`; its q, k and v become views of one tensor."""
    attn, cross = block.self_attn, block.cross_attn
    weight = _joined([attn.q.weight, attn.k.weight, attn.v.weight])
    bias = _joined([attn.q.bias, attn.k.bias, attn.v.bias])
    width = attn.q.weight.shape[0]
    for i, part in enumerate((attn.q, attn.k, attn.v)):
        part.weight = nn.Parameter(weight[i * width : (i + 1) * width], requires_grad=False)
        part.bias = nn.Parameter(bias[i * width : (i + 1) * width], requires_grad=False)
    qkv = product(weight, bias, eight_bit)
    return PackedBlock(
        qkv=qkv,
        kv=qkv.outputs_from(width),
        norm_q_D=attn.norm_q.weight.detach(),
        norm_k_D=attn.norm_k.weight.detach(),
        o=_of(attn.o, eight_bit),
        norm3_weight_D=block.norm3.weight.detach(),
        norm3_bias_D=block.norm3.bias.detach(),
        cross_q=_of(cross.q, eight_bit),
        cross_norm_q_D=cross.norm_q.weight.detach(),
        cross_o=_of(cross.o, eight_bit),
        up=_of(block.ffn[0], eight_bit),
        down=_of(block.ffn[2], eight_bit),
    )


def _of(layer: nn.Linear, eight_bit: bool) -> Dense | EightBit:
    return product(layer.weight.detach(), layer.bias.detach(), eight_bit)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.detach() for part in parts]).contiguous()
