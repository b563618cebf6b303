"""Activation rows to float8_e4m3fn with one float32 scale each, as row-wise scaled products want them.

The other kernels that can end in eight bits share the layout (the runtime's `Fp8Rows`) and the device function.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shotstream.kernels.fused.checks import as_rows, check
from shotstream.kernels.fused.launch import block_lanes, warps
from shotstream.kernels.fused.rows import load_row, store_row
from shotstream.runtime.graph.ops import FP8, Fp8Rows


def fp8_rows(x: Tensor, out: Fp8Rows | None) -> Fp8Rows:
    """Room for the rows of ``x [..., D]``, or `out` once it is found to be that; ValueError otherwise."""
    width = x.shape[-1]
    rows = x.numel() // width
    if out is None:
        values = torch.empty(rows, width, dtype=FP8, device=x.device)
        return Fp8Rows(values, torch.empty(rows, 1, dtype=torch.float32, device=x.device))
    check("values_LD", out.values_LD, like=x, shape=(rows, width), dtypes=(FP8,), contiguous=True)
    check("scale_L1", out.scale_L1, like=x, shape=(rows, 1), dtypes=(torch.float32,), contiguous=True)
    return out


@triton.jit
def quantise_kernel(
    x_ptr: tl.tensor,
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
    store_row(x, out_ptr, row_scale_ptr, row, cols, mask, D)


def quantise_fp8_rowwise(x: Tensor, out: Fp8Rows | None = None) -> Fp8Rows:
    """Eight-bit rows of activations ``[..., D]`` in float32, bfloat16 or float16, whose rows are evenly spaced.

    A row's scale is its largest magnitude over 448, so nothing saturates. Raises ValueError for what does not fit.
    """
    check("x", x)
    out = fp8_rows(x, out)
    x_LD = as_rows("x", x)
    rows, width = x_LD.shape
    quantise_kernel[(rows,)](
        x_LD,
        out.values_LD,
        out.scale_L1,
        x_LD.stride(0),
        D=width,
        BLOCK=block_lanes(width),
        num_warps=warps("quantise_fp8_rowwise", width, x.device),
    )
    return out
