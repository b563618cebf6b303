"""LayerNorm with affine and per-frame modulation in one read and one write, to activations or to eight-bit rows.

One block per token. The statistics and everything behind them are float32, and the store rounds once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from shotstream.kernels.fused.checks import as_rows, check, frame_vectors
from shotstream.kernels.fused.launch import block_lanes, warps
from shotstream.kernels.fused.quantise import Fp8Rows, fp8_rows
from shotstream.kernels.fused.rows import load_row, norm_row, store_row
from shotstream.runtime.graph.ops import Norm


@dataclass(frozen=True)
class NormArguments:
    """A `Norm` checked against activations: what the kernels that end in a norm are launched with."""

    weight: Tensor | None
    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    scale_stride: int
    shift_stride: int
    rows_per_vector: int
    eps: float

    @classmethod
    def of(cls, norm: Norm, x_LD: Tensor) -> NormArguments:
        """Raises ValueError where a part does not fit the activations."""
        rows, width = x_LD.shape
        for name, vector in (("weight_D", norm.weight_D), ("bias_D", norm.bias_D)):
            if vector is not None:
                check(name, vector, like=x_LD, shape=(width,))
        scale = None if norm.scale_ND is None else frame_vectors("scale_ND", norm.scale_ND, x_LD)
        shift = None if norm.shift_ND is None else frame_vectors("shift_ND", norm.shift_ND, x_LD)
        counts = {len(vectors) for vectors in (scale, shift) if vectors is not None}
        if len(counts) > 1:
            raise ValueError(f"scale_ND and shift_ND have different numbers of vectors: {sorted(counts)}")
        return cls(
            weight=norm.weight_D,
            bias=norm.bias_D,
            scale=scale,
            shift=shift,
            scale_stride=0 if scale is None else scale.stride(0),
            shift_stride=0 if shift is None else shift.stride(0),
            rows_per_vector=rows // counts.pop() if counts else rows,
            eps=norm.eps,
        )


@triton.jit
def norm_modulate_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    shift_ptr: tl.tensor,
    out_ptr: tl.tensor,
    row_scale_ptr: tl.tensor,
    x_stride: tl.tensor,
    scale_stride: tl.tensor,
    shift_stride: tl.tensor,
    rows_per_vector: tl.tensor,
    eps: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < D
    vector = row // rows_per_vector
    x = load_row(x_ptr + row * x_stride, cols, mask)
    y = norm_row(
        x,
        cols,
        mask,
        weight_ptr,
        bias_ptr,
        scale_ptr,
        shift_ptr,
        vector * scale_stride,
        vector * shift_stride,
        eps,
        D,
    )
    store_row(y, out_ptr, row_scale_ptr, row, cols, mask, D)


def norm_modulate(x: Tensor, norm: Norm, out: Tensor | None = None) -> Tensor:
    """Norm of activations ``[..., D]`` in float32, bfloat16 or float16; result in the same shape and dtype.

    x: rows evenly spaced, channels contiguous. out: contiguous, of x's shape, any of the three dtypes; it may be x
    itself. Raises ValueError for anything that does not fit.
    """
    check("x", x)
    if out is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    check("out", out, like=x, shape=x.shape, contiguous=True)
    _launch(x, norm, out, None, "norm_modulate")
    return out


def norm_modulate_fp8(x: Tensor, norm: Norm, out: Fp8Rows | None = None) -> Fp8Rows:
    """As :func:`norm_modulate`, with the result as eight-bit rows ``[L, D]`` and their scales ``[L, 1]``."""
    check("x", x)
    out = fp8_rows(x, out)
    _launch(x, norm, out.values_LD, out.scale_L1, "norm_modulate_fp8")
    return out


def _launch(x: Tensor, norm: Norm, out: Tensor, row_scale: Tensor | None, name: str) -> None:
    x_LD = as_rows("x", x)
    rows, width = x_LD.shape
    n = NormArguments.of(norm, x_LD)
    norm_modulate_kernel[(rows,)](
        x_LD,
        n.weight,
        n.bias,
        n.scale,
        n.shift,
        out,
        row_scale,
        x_LD.stride(0),
        n.scale_stride,
        n.shift_stride,
        n.rows_per_vector,
        eps=n.eps,
        D=width,
        BLOCK=block_lanes(width),
        num_warps=warps(name, width, x.device),
    )
