"""Values into a cache that lies channel by channel, ``[B, H, K, S]`` in memory: tiles are turned on their way.

The eight-bit products of sm_90 read values along the keys, so that is how their buffer lies. A block per token would
write single bytes far apart there; a tile of tokens writes runs of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shotstream.kernels.fused.launch import warps
from shotstream.runtime.graph.ops import FP8_MAX

TOKENS, CHANNELS = 64, 64
"""A tile: 128 bytes of every token read, 64 slots of every channel written."""

_FP8_MAX = tl.constexpr(FP8_MAX)


def by_channel(v_BSHK: Tensor) -> bool:
    """Whether a buffer's slots lie next to each other in memory and its channels evenly spaced."""
    _, slot, head, channel = v_BSHK.stride()
    return slot == 1 and channel >= v_BSHK.shape[1] and head == channel * v_BSHK.shape[3]


def tile_warps(device: torch.device) -> int:
    """Warps of a tile: tuned for the GPU, or 4."""
    return warps("values_by_channel", TOKENS * CHANNELS // 2, device)


@triton.jit
def values_by_channel_kernel(
    v_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    out_ptr: tl.tensor,
    start_ptr: tl.tensor,
    tokens: tl.tensor,
    slots: tl.tensor,
    ring_begin: tl.tensor,
    v_stride_b: tl.tensor,
    v_stride_l: tl.tensor,
    out_stride_b: tl.tensor,
    out_stride_c: tl.tensor,
    D: tl.constexpr,
    K: tl.constexpr,
    RING: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    batch = tl.program_id(2).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (token < tokens)[:, None] & (channel < D)[None, :]
    v_LC = tl.load(v_ptr + batch * v_stride_b + token[:, None] * v_stride_l + channel[None, :], mask=mask, other=0.0)
    v_LC = v_LC.to(tl.float32)
    if bias_ptr is not None:
        v_LC += tl.load(bias_ptr + channel, mask=channel < D, other=0.0).to(tl.float32)[None, :]
    if scale_ptr is not None:
        v_LC = v_LC / tl.load(scale_ptr + channel // K, mask=channel < D, other=1.0)[None, :]
        v_LC = tl.clamp(v_LC, -_FP8_MAX, _FP8_MAX)
    slot = tl.load(start_ptr).to(tl.int64) + token
    if RING:
        slot = tl.where(slot < slots, slot, ring_begin + (slot - ring_begin) % (slots - ring_begin))
    written = (token < tokens) & (slot >= 0) & (slot < slots)
    # Turned as a value and not only by its addresses: the compiler cannot see that wrapped slots are neighbours, and
    # lays the threads along the last axis.
    out_CL = tl.trans(v_LC.to(out_ptr.dtype.element_ty))
    where = out_ptr + batch * out_stride_b + channel.to(tl.int64)[:, None] * out_stride_c + slot[None, :]
    tl.store(where, out_CL, mask=(channel < D)[:, None] & written[None, :])


def write_values_by_channel(
    v_BLD: Tensor,
    v_BSHK: Tensor,
    start_1: Tensor,
    ring_begin: int | None,
    scale_H: Tensor | None,
    bias_D: Tensor | None,
) -> None:
    """Write a pass's values; the prologue's `check_writer` has looked at them.

    v_BLD: a view of the projection, channels contiguous. v_BSHK: a buffer for which :func:`by_channel` holds.
    """
    batch, tokens, width = v_BLD.shape
    grid = (triton.cdiv(tokens, TOKENS), triton.cdiv(width, CHANNELS), batch)
    values_by_channel_kernel[grid](
        v_BLD,
        bias_D,
        scale_H,
        v_BSHK,
        start_1,
        tokens,
        v_BSHK.shape[1],
        0 if ring_begin is None else ring_begin,
        v_BLD.stride(0),
        v_BLD.stride(1),
        v_BSHK.stride(0),
        v_BSHK.stride(3),
        D=width,
        K=v_BSHK.shape[3],
        RING=ring_begin is not None,
        TOKENS=TOKENS,
        CHANNELS=CHANNELS,
        num_warps=tile_warps(v_BLD.device),
    )
