"""The residual add ``x += gate * y`` in place, alone or together with the norm that reads x next.

Together they read x once and write it once instead of twice and once. One block per token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shotstream.kernels.fused.checks import as_rows, check, frame_vectors
from shotstream.kernels.fused.launch import block_lanes, warps
from shotstream.kernels.fused.norm import Norm, NormArguments
from shotstream.kernels.fused.quantise import Fp8Rows, fp8_rows
from shotstream.kernels.fused.rows import load_row, norm_row, store_row


@triton.jit
def _add_row(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    x_offset: tl.tensor,
    y_offset: tl.tensor,
    gate_offset: tl.tensor,
    cols: tl.tensor,
    mask: tl.tensor,
) -> tl.tensor:
    """``x + gate * y`` as it lies in memory afterwards: rounded, so that fused and apart give the same norm."""
    y = load_row(y_ptr + y_offset, cols, mask)
    if gate_ptr is not None:
        y = y * load_row(gate_ptr + gate_offset, cols, mask)
    total = (load_row(x_ptr + x_offset, cols, mask) + y).to(x_ptr.dtype.element_ty)
    tl.store(x_ptr + x_offset + cols, total, mask=mask)
    return total.to(tl.float32)


@triton.jit
def gated_residual_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    x_stride: tl.tensor,
    y_stride: tl.tensor,
    gate_stride: tl.tensor,
    rows_per_gate: tl.tensor,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    gate_offset = row // rows_per_gate * gate_stride
    _add_row(x_ptr, y_ptr, gate_ptr, row * x_stride, row * y_stride, gate_offset, cols, cols < D)


@triton.jit
def gated_residual_norm_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    shift_ptr: tl.tensor,
    out_ptr: tl.tensor,
    row_scale_ptr: tl.tensor,
    x_stride: tl.tensor,
    y_stride: tl.tensor,
    gate_stride: tl.tensor,
    rows_per_gate: tl.tensor,
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
    gate_offset = row // rows_per_gate * gate_stride
    x = _add_row(x_ptr, y_ptr, gate_ptr, row * x_stride, row * y_stride, gate_offset, cols, mask)
    vector = row // rows_per_vector
    h = norm_row(
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
    store_row(h, out_ptr, row_scale_ptr, row, cols, mask, D)


def gated_residual(x: Tensor, y: Tensor, gate_ND: Tensor | None = None) -> Tensor:
    """Add ``gate * y`` to x in place and return x; without a gate, y itself.

    x, y: ``[..., D]`` of one shape, rows evenly spaced, float32, bfloat16 or float16. gate_ND: ``[..., D]``, one vector
    for each of N equal runs of rows. Raises ValueError for what does not fit.
    """
    x_LD, y_LD, gate = _checked(x, y, gate_ND)
    rows, width = x_LD.shape
    gated_residual_kernel[(rows,)](
        x_LD,
        y_LD,
        gate,
        x_LD.stride(0),
        y_LD.stride(0),
        0 if gate is None else gate.stride(0),
        rows if gate is None else rows // len(gate),
        D=width,
        BLOCK=block_lanes(width),
        num_warps=warps("gated_residual", width, x.device),
    )
    return x


def gated_residual_norm(x: Tensor, y: Tensor, gate_ND: Tensor | None, norm: Norm, out: Tensor | None = None) -> Tensor:
    """:func:`gated_residual` of x in place, then the norm of what x has become, ``[..., D]`` in x's dtype.

    out: contiguous, of x's shape; neither x nor a part of it, since x is written too. The norm sees x as it was rounded
    for memory. Raises ValueError for what does not fit.
    """
    if out is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    check("out", out, like=x, shape=x.shape, contiguous=True)
    if out.data_ptr() == x.data_ptr():
        raise ValueError("out is x; the sum is written to x, so the norm needs a place of its own")
    _launch(x, y, gate_ND, norm, out, None, "gated_residual_norm")
    return out


def gated_residual_norm_fp8(
    x: Tensor, y: Tensor, gate_ND: Tensor | None, norm: Norm, out: Fp8Rows | None = None
) -> Fp8Rows:
    """As :func:`gated_residual_norm`, with the norm as eight-bit rows ``[L, D]`` and their scales ``[L, 1]``."""
    out = fp8_rows(x, out)
    _launch(x, y, gate_ND, norm, out.values_LD, out.scale_L1, "gated_residual_norm_fp8")
    return out


def _checked(x: Tensor, y: Tensor, gate_ND: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    check("x", x)
    check("y", y, like=x, shape=x.shape)
    x_LD = as_rows("x", x)
    if x_LD.stride(0) < x_LD.shape[1]:
        raise ValueError(f"x is written, and its rows overlap: they are {x_LD.stride(0)} apart")
    return x_LD, as_rows("y", y), None if gate_ND is None else frame_vectors("gate_ND", gate_ND, x_LD)


def _launch(
    x: Tensor, y: Tensor, gate_ND: Tensor | None, norm: Norm, out: Tensor, row_scale: Tensor | None, name: str
) -> None:
    x_LD, y_LD, gate = _checked(x, y, gate_ND)
    rows, width = x_LD.shape
    n = NormArguments.of(norm, x_LD)
    gated_residual_norm_kernel[(rows,)](
        x_LD,
        y_LD,
        gate,
        n.weight,
        n.bias,
        n.scale,
        n.shift,
        out,
        row_scale,
        x_LD.stride(0),
        y_LD.stride(0),
        0 if gate is None else gate.stride(0),
        rows if gate is None else rows // len(gate),
        n.scale_stride,
        n.shift_stride,
        n.rows_per_vector,
        eps=n.eps,
        D=width,
        BLOCK=block_lanes(width),
        num_warps=warps(name, width, x.device),
    )
