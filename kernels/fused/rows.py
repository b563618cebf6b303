"""Device functions that the kernels of this folder share. A row is all channels of one token, held by one block.

Rows are float32 vectors of a power of two lanes; `mask` is True for the lanes that are channels, and the others hold
zero. Not a kernel, and no launch: see the families' own files.
"""

from __future__ import annotations

import triton
import triton.language as tl

from shotstream.runtime.graph.ops import FP8_MAX

# What Triton reads as a constant inside a kernel has to be wrapped.
_FP8_MAX = tl.constexpr(FP8_MAX)
_SMALLEST_AMAX = tl.constexpr(1e-12)


@triton.jit
def load_row(ptr: tl.tensor, cols: tl.tensor, mask: tl.tensor) -> tl.tensor:
    """One row as float32, zero beside the mask."""
    return tl.load(ptr + cols, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def inverse_rms(x: tl.tensor, eps: tl.constexpr, D: tl.constexpr) -> tl.tensor:
    """``1 / sqrt(mean(x^2) + eps)`` over D channels."""
    return tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)


@triton.jit
def norm_row(
    x: tl.tensor,
    cols: tl.tensor,
    mask: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    shift_ptr: tl.tensor,
    vector_offset_scale: tl.tensor,
    vector_offset_shift: tl.tensor,
    eps: tl.constexpr,
    D: tl.constexpr,
) -> tl.tensor:
    """LayerNorm of a row, then affine, then modulation; a pointer that is None leaves its part out.

    The deviations are squared after the mean is taken off: in one pass, ``mean(x^2) - mean^2`` loses all digits where
    the mean is large, which the residual stream's is in some channels.
    """
    deviation = tl.where(mask, x - tl.sum(x, axis=0) / D, 0.0)
    y = deviation * tl.rsqrt(tl.sum(deviation * deviation, axis=0) / D + eps)
    if weight_ptr is not None:
        y = y * load_row(weight_ptr, cols, mask)
    if bias_ptr is not None:
        y = y + load_row(bias_ptr, cols, mask)
    if scale_ptr is not None:
        y = y * (1.0 + load_row(scale_ptr + vector_offset_scale, cols, mask))
    if shift_ptr is not None:
        y = y + load_row(shift_ptr + vector_offset_shift, cols, mask)
    return y


@triton.jit
def store_row(
    y: tl.tensor,
    out_ptr: tl.tensor,
    row_scale_ptr: tl.tensor,
    row: tl.tensor,
    cols: tl.tensor,
    mask: tl.tensor,
    D: tl.constexpr,
) -> tl.tensor:
    """Store a row of a contiguous ``[L, D]``; with a pointer for its scale, as eight-bit values of the full range."""
    if row_scale_ptr is not None:
        amax = tl.maximum(tl.max(tl.abs(y), axis=0), _SMALLEST_AMAX)
        # Rounding can push the largest value beyond the range, and the conversion would make it NaN.
        y = tl.clamp(y * (_FP8_MAX / amax), -_FP8_MAX, _FP8_MAX)
        tl.store(row_scale_ptr + row, amax / _FP8_MAX)
    tl.store(out_ptr + row * D + cols, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gelu_tanh_row(x: tl.tensor) -> tl.tensor:
    """``x (1 + tanh u) / 2``, ``u = sqrt(2/pi) (x + 0.044715 x^3)``, written as ``x sigmoid(2u)``: the same number."""
    two_u = 1.5957691216057308 * (x + 0.044715 * x * x * x)
    return x * tl.sigmoid(two_u)
