"""What every kernel of this folder computes, in plain torch and float32. Slow, obvious, and runs anywhere.

Inputs of any floating dtype are widened first and nothing is rounded in between: the kernels round once, at their
store, and are compared with these functions rounded once. The transformer itself rounds after every operation when it
runs in 16 bits, so there the kernels are nearer to float32 than to it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from shotstream.runtime.graph.ops import FP8, FP8_MAX

_SMALLEST_AMAX = 1e-12
"""A row of zeros gets a scale that can still be divided by."""


def layer_norm(
    x: Tensor,
    eps: float,
    weight_D: Tensor | None = None,
    bias_D: Tensor | None = None,
    scale_ND: Tensor | None = None,
    shift_ND: Tensor | None = None,
) -> Tensor:
    """``(norm(x) * weight + bias) * (1 + scale) + shift`` of rows ``[..., D]``, float32, every part optional.

    Rows are shared out evenly over the N modulation vectors, in order: with one vector per latent frame, the tokens of
    a frame are neighbours.
    """
    weight = None if weight_D is None else weight_D.float()
    bias = None if bias_D is None else bias_D.float()
    y = F.layer_norm(x.float(), (x.shape[-1],), weight, bias, eps)
    if scale_ND is not None:
        y = y * (1 + per_row(scale_ND, y))
    if shift_ND is not None:
        y = y + per_row(shift_ND, y)
    return y


def per_row(vectors: Tensor, x: Tensor) -> Tensor:
    """Repeat ``[..., D]`` vectors, flattened to N, over the rows of x; shape and order of x, float32."""
    vectors_ND = vectors.reshape(-1, x.shape[-1]).float()
    rows = x.numel() // x.shape[-1]
    return vectors_ND.repeat_interleave(rows // len(vectors_ND), dim=0).view(x.shape)


def gated_residual(x: Tensor, y: Tensor, gate_ND: Tensor | None = None) -> Tensor:
    """``x + gate * y`` in float32; without a gate ``x + y``."""
    gated = y.float() if gate_ND is None else per_row(gate_ND, y) * y.float()
    return x.float() + gated


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, bias_D: Tensor | None = None) -> Tensor:
    """``(x + bias) / rms * weight`` over the last axis, float32."""
    x = x.float() if bias_D is None else x.float() + bias_D.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight_D.float()


def gelu_tanh(x: Tensor, bias_D: Tensor | None = None) -> Tensor:
    """Tanh form of GELU of ``x + bias``, float32."""
    x = x.float() if bias_D is None else x.float() + bias_D.float()
    return F.gelu(x, approximate="tanh")


def rotate(x_BLHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring channels ``(2i, 2i + 1)`` by the table's angle; tables ``[B or 1, L, 1, K/2]``; float32."""
    re, im = x_BLHK.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((re * cos - im * sin, re * sin + im * cos), dim=-1).flatten(-2)


def cache_slots(start: int, tokens: int, capacity: int, ring_begin: int | None) -> Tensor:
    """Where a chunk's tokens go, int64 ``[tokens]``; -1 for a token that has no slot.

    `start` counts on past the end of the buffer; slots past it come again from `ring_begin` on.
    """
    slots = torch.arange(start, start + tokens)
    if ring_begin is not None:
        wrapped = ring_begin + (slots - ring_begin) % (capacity - ring_begin)
        slots = torch.where(slots >= capacity, wrapped, slots)
    return torch.where((slots >= 0) & (slots < capacity), slots, -1)


def qk_prologue(
    qkv_BLP: Tensor,
    heads: int,
    norm_q_D: Tensor,
    norm_k_D: Tensor,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    bias_P: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated q, rotated k and v, ``[B, L, H, K]`` float32, of a fused projection's output ``[B, L, 3D]``."""
    x = qkv_BLP.float() if bias_P is None else qkv_BLP.float() + bias_P.float()
    q, k, v = x.chunk(3, dim=-1)

    def split(t: Tensor) -> Tensor:
        return t.unflatten(-1, (heads, -1))

    q = rotate(split(rms_norm(q, norm_q_D, eps)), cos, sin)
    k = rotate(split(rms_norm(k, norm_k_D, eps)), cos, sin)
    return q, k, split(v)


def quantise_heads(x_BLHK: Tensor, scale_H: Tensor) -> Tensor:
    """``x / scale`` of each head as float8_e4m3fn; what is beyond its range becomes its largest value."""
    return (x_BLHK.float() / scale_H[:, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)


def head_scales(x_BLHK: Tensor, margin: float = 1.0) -> Tensor:
    """Scales ``[H]`` for :func:`quantise_heads` from a sample; a margin above 1 leaves room for larger values."""
    amax_H = x_BLHK.float().abs().amax(dim=(0, 1, 3)).clamp(min=_SMALLEST_AMAX)
    return amax_H * (margin / FP8_MAX)


def quantise_rowwise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``[..., D]`` as float8_e4m3fn ``[L, D]`` with scales ``[L, 1]`` float32: value times scale is x."""
    x_LD = x.reshape(-1, x.shape[-1]).float()
    amax_L1 = x_LD.abs().amax(dim=1, keepdim=True).clamp(min=_SMALLEST_AMAX)
    values = (x_LD * (FP8_MAX / amax_L1)).clamp(-FP8_MAX, FP8_MAX)
    return values.to(FP8), amax_L1 / FP8_MAX
