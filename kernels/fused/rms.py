"""Bias and RMSNorm over all channels, without rotation: the query of cross-attention, and a caption's keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shotstream.kernels.fused.checks import as_rows, check
from shotstream.kernels.fused.launch import block_lanes, warps
from shotstream.kernels.fused.rows import inverse_rms, load_row, store_row


@triton.jit
def rms_norm_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    out_ptr: tl.tensor,
    x_stride: tl.tensor,
    eps: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < D
    x = load_row(x_ptr + row * x_stride, cols, mask)
    if bias_ptr is not None:
        x = x + load_row(bias_ptr, cols, mask)
    y = x * inverse_rms(x, eps, D) * load_row(weight_ptr, cols, mask)
    store_row(y, out_ptr, None, row, cols, mask, D)


def rms_norm(
    x: Tensor, weight_D: Tensor, *, bias_D: Tensor | None = None, eps: float = 1e-6, out: Tensor | None = None
) -> Tensor:
    """``(x + bias) / rms * weight`` of ``[..., D]`` in float32, bfloat16 or float16, rows evenly spaced.

    out: contiguous, of x's shape, any of the three dtypes; it may be x itself where x is contiguous. Raises ValueError
    for what does not fit.
    """
    check("x", x)
    width = x.shape[-1]
    check("weight_D", weight_D, like=x, shape=(width,))
    if bias_D is not None:
        check("bias_D", bias_D, like=x, shape=(width,))
    if out is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    check("out", out, like=x, shape=x.shape, contiguous=True)
    x_LD = as_rows("x", x)
    rms_norm_kernel[(x_LD.shape[0],)](
        x_LD,
        weight_D,
        bias_D,
        out,
        x_LD.stride(0),
        eps=eps,
        D=width,
        BLOCK=block_lanes(width),
        num_warps=warps("rms_norm", width, x.device),
    )
    return out
