"""Bias and the tanh form of GELU behind the first feed-forward product, where the product cannot do it itself.

To activations it is element by element, in blocks of part of a row; to eight-bit rows one block holds the whole row,
since the scale needs its largest value.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shotstream.kernels.fused.checks import as_rows, check
from shotstream.kernels.fused.launch import block_lanes, warps
from shotstream.kernels.fused.quantise import Fp8Rows, fp8_rows
from shotstream.kernels.fused.rows import gelu_tanh_row, load_row, store_row

_PART = 1024
"""Channels of one block: 8960 are eight whole parts and three quarters of a ninth, so few lanes idle."""


def part(width: int) -> int:
    """Lanes of one block of :func:`gelu_tanh` on rows of this width."""
    return min(block_lanes(width), _PART)


@triton.jit
def gelu_tanh_kernel(
    x_ptr: tl.tensor, bias_ptr: tl.tensor, out_ptr: tl.tensor, x_stride: tl.tensor, D: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < D
    x = load_row(x_ptr + row * x_stride, cols, mask)
    if bias_ptr is not None:
        x = x + load_row(bias_ptr, cols, mask)
    store_row(gelu_tanh_row(x), out_ptr, None, row, cols, mask, D)


@triton.jit
def gelu_tanh_fp8_kernel(
    x_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    row_scale_ptr: tl.tensor,
    x_stride: tl.tensor,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < D
    x = load_row(x_ptr + row * x_stride, cols, mask)
    if bias_ptr is not None:
        x = x + load_row(bias_ptr, cols, mask)
    store_row(gelu_tanh_row(x), out_ptr, row_scale_ptr, row, cols, mask, D)


def gelu_tanh(x: Tensor, bias_D: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """GELU (tanh form) of ``x + bias``, ``[..., D]`` in float32, bfloat16 or float16, rows evenly spaced.

    out: contiguous, of x's shape, any of the three dtypes; it may be x itself where x is contiguous. Raises ValueError
    for what does not fit.
    """
    x_LD = _checked(x, bias_D)
    if out is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    check("out", out, like=x, shape=x.shape, contiguous=True)
    rows, width = x_LD.shape
    block = part(width)
    gelu_tanh_kernel[(rows, triton.cdiv(width, block))](
        x_LD,
        bias_D,
        out,
        x_LD.stride(0),
        D=width,
        BLOCK=block,
        num_warps=warps("gelu_tanh", block, x.device),
    )
    return out


def gelu_tanh_fp8(x: Tensor, bias_D: Tensor | None = None, out: Fp8Rows | None = None) -> Fp8Rows:
    """As :func:`gelu_tanh`, with the result as eight-bit rows ``[L, D]`` and their scales ``[L, 1]``."""
    x_LD = _checked(x, bias_D)
    out = fp8_rows(x, out)
    rows, width = x_LD.shape
    gelu_tanh_fp8_kernel[(rows,)](
        x_LD,
        bias_D,
        out.values_LD,
        out.scale_L1,
        x_LD.stride(0),
        D=width,
        BLOCK=block_lanes(width),
        num_warps=warps("gelu_tanh_fp8", width, x.device),
    )
    return out


def _checked(x: Tensor, bias_D: Tensor | None) -> Tensor:
    check("x", x)
    if bias_D is not None:
        check("bias_D", bias_D, like=x, shape=(x.shape[-1],))
    return as_rows("x", x)
