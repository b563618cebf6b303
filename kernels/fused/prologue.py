"""From the q, k, v projection to attention: bias, RMSNorm over all channels, rotation, and k and v into the cache.

One block per token; values that lie channel by channel take a second launch (`values.py`). Keys are stored rotated and
rotated once; attention then reads one buffer and turns nothing. The slot comes from device memory, so one captured
launch serves every chunk; a chunk that reaches the end of the buffer goes on at the ring's begin, and the counter may
simply count on.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shotstream.kernels.fused.checks import FLOATS, check
from shotstream.kernels.fused.launch import block_lanes, warps
from shotstream.kernels.fused.rows import inverse_rms, load_row
from shotstream.kernels.fused.values import by_channel, write_values_by_channel
from shotstream.runtime.graph.ops import FP8, FP8_MAX, CacheWriter

_FP8_MAX = tl.constexpr(FP8_MAX)


def check_writer(cache: CacheWriter, like: Tensor, batch: int, tokens: int, heads: int, head_dim: int) -> None:
    """Raise ValueError unless a pass of this size can be written: buffers contiguous, or values by channel."""
    k, v = cache.k_BSHK, cache.v_BSHK
    check("k_BSHK", k, like=like, shape=(batch, None, heads, head_dim), dtypes=(*FLOATS, FP8), contiguous=True)
    if not by_channel(v):
        check("v_BSHK", v, like=like, shape=k.shape, dtypes=(k.dtype,), contiguous=True)
    elif v.shape != k.shape or v.dtype != k.dtype or v.device != k.device:
        raise ValueError(f"v_BSHK is {list(v.shape)} {v.dtype} on {v.device} and k_BSHK {list(k.shape)} {k.dtype}")
    check("start_1", cache.start_1, like=like, shape=(1,), dtypes=(torch.int32,))
    slots = k.shape[1]
    ring = slots if cache.ring_begin is None else slots - cache.ring_begin
    if cache.ring_begin is not None and not 0 <= cache.ring_begin < slots:
        raise ValueError(f"ring_begin is {cache.ring_begin}; the buffer has slots 0 to {slots - 1}")
    if tokens > ring:
        raise ValueError(f"{tokens} tokens do not fit {ring} slots: two of them would share one")
    eight_bit = k.dtype == FP8
    for name, scale in (("k_scale_H", cache.k_scale_H), ("v_scale_H", cache.v_scale_H)):
        if (scale is not None) != eight_bit:
            raise ValueError(f"{name} {'is missing' if eight_bit else 'is given'} and the cache is {k.dtype}")
        if scale is not None:
            check(name, scale, like=like, shape=(heads,), dtypes=(torch.float32,), contiguous=True)


@triton.jit
def _load_biased(ptr: tl.tensor, bias_ptr: tl.tensor, cols: tl.tensor, mask: tl.tensor) -> tl.tensor:
    x = load_row(ptr, cols, mask)
    if bias_ptr is not None:
        x = x + load_row(bias_ptr, cols, mask)
    return x


@triton.jit
def _norm_rotate(
    x: tl.tensor,
    weight_ptr: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    cols: tl.tensor,
    mask: tl.tensor,
    eps: tl.constexpr,
    D: tl.constexpr,
) -> tl.tensor:
    """RMSNorm of a row, then each pair of neighbouring channels turned; cos and sin have half the row's lanes."""
    y = x * inverse_rms(x, eps, D) * load_row(weight_ptr, cols, mask)
    re, im = tl.split(tl.reshape(y, (y.shape[0] // 2, 2)))
    return tl.reshape(tl.join(re * cos - im * sin, re * sin + im * cos), (y.shape[0],))


@triton.jit
def _store_slot(
    y: tl.tensor, ptr: tl.tensor, scale_ptr: tl.tensor, cols: tl.tensor, mask: tl.tensor, K: tl.constexpr
) -> tl.tensor:
    if scale_ptr is not None:
        y = y / tl.load(scale_ptr + cols // K, mask=mask, other=1.0)
        y = tl.clamp(y, -_FP8_MAX, _FP8_MAX)
    tl.store(ptr + cols, y.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def qk_prologue_kernel(
    qkv_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    norm_q_ptr: tl.tensor,
    norm_k_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    k_scale_ptr: tl.tensor,
    v_scale_ptr: tl.tensor,
    start_ptr: tl.tensor,
    tokens: tl.tensor,
    slots: tl.tensor,
    ring_begin: tl.tensor,
    qkv_stride_b: tl.tensor,
    qkv_stride_l: tl.tensor,
    table_stride_b: tl.tensor,
    eps: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    RING: tl.constexpr,
) -> None:
    row = tl.program_id(0)
    batch, token = (row // tokens).to(tl.int64), (row % tokens).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < D

    qkv_ptr += batch * qkv_stride_b + token * qkv_stride_l
    pair = tl.arange(0, BLOCK // 2)
    turn = batch * table_stride_b + token * (K // 2) + pair % (K // 2)
    cos = tl.load(cos_ptr + turn, mask=pair < D // 2, other=1.0)
    sin = tl.load(sin_ptr + turn, mask=pair < D // 2, other=0.0)

    if q_ptr is not None:
        q = _load_biased(qkv_ptr, bias_ptr, cols, mask)
        q = _norm_rotate(q, norm_q_ptr, cos, sin, cols, mask, eps, D)
        tl.store(q_ptr + row.to(tl.int64) * D + cols, q.to(q_ptr.dtype.element_ty), mask=mask)
        qkv_ptr += D
        if bias_ptr is not None:
            bias_ptr += D

    slot = tl.load(start_ptr).to(tl.int64) + token
    if RING:
        slot = tl.where(slot < slots, slot, ring_begin + (slot - ring_begin) % (slots - ring_begin))
    written = cols < tl.where((slot >= 0) & (slot < slots), D, 0)
    offset = (batch * slots + slot) * D
    k = _load_biased(qkv_ptr, bias_ptr, cols, mask)
    k = _norm_rotate(k, norm_k_ptr, cos, sin, cols, mask, eps, D)
    _store_slot(k, k_ptr + offset, k_scale_ptr, cols, written, K)
    if v_ptr is not None:
        if bias_ptr is not None:
            bias_ptr += D
        v = _load_biased(qkv_ptr + D, bias_ptr, cols, mask)
        _store_slot(v, v_ptr + offset, v_scale_ptr, cols, written, K)


def qk_prologue(
    qkv_BLP: Tensor,
    norms: tuple[Tensor, Tensor],
    table: tuple[Tensor, Tensor],
    cache: CacheWriter,
    *,
    bias_P: Tensor | None = None,
    eps: float = 1e-6,
    out: Tensor | None = None,
) -> Tensor:
    """Write this pass's rotated keys and its values into the cache; return its rotated queries ``[B, L, H, K]``.

    qkv_BLP: ``[B, L, 3D]`` of the fused projection in float32, bfloat16 or float16, q then k then v. norms: weights
    ``[D]`` of q's and of k's RMSNorm. table: cos and sin ``[B or 1, L, 1, K/2]`` float32, contiguous. bias_P: ``[3D]``,
    if the projection has not added it. out: contiguous, any of the three dtypes; qkv's otherwise. Raises ValueError for
    what does not fit; the value of ``start_1`` is not looked at, which would wait for the device.
    """
    batch, tokens, heads, head_dim = _checked(qkv_BLP, 3, norms, table, cache, bias_P)
    shape = (batch, tokens, heads, head_dim)
    if out is None:
        out = torch.empty(shape, dtype=qkv_BLP.dtype, device=qkv_BLP.device)
    check("out", out, like=qkv_BLP, shape=shape, contiguous=True)
    _launch(qkv_BLP, norms, table, cache, bias_P, eps, out)
    return out


def kv_prologue(
    kv_BLP: Tensor,
    norm_k_D: Tensor,
    table: tuple[Tensor, Tensor],
    cache: CacheWriter,
    *,
    bias_P: Tensor | None = None,
    eps: float = 1e-6,
) -> None:
    """As :func:`qk_prologue` where nobody asks for queries: the last layer of a pass that only fills the cache.

    kv_BLP: ``[B, L, 2D]``, k then v; bias_P: ``[2D]``.
    """
    norms = (norm_k_D, norm_k_D)
    _checked(kv_BLP, 2, norms, table, cache, bias_P)
    _launch(kv_BLP, norms, table, cache, bias_P, eps, None)


def _checked(
    x_BLP: Tensor,
    parts: int,
    norms: tuple[Tensor, Tensor],
    table: tuple[Tensor, Tensor],
    cache: CacheWriter,
    bias_P: Tensor | None,
) -> tuple[int, int, int, int]:
    """Batch, tokens, heads and head width of a pass that fits together."""
    if cache.k_BSHK.ndim != 4:
        raise ValueError(f"k_BSHK has shape {list(cache.k_BSHK.shape)}; it must be [B, slots, heads, head width]")
    heads, head_dim = cache.k_BSHK.shape[2:]
    width = heads * head_dim
    if head_dim % 2:
        raise ValueError(f"heads are {head_dim} wide; channels turn in pairs, so the width must be even")
    check("q, k, v" if parts == 3 else "k, v", x_BLP, shape=(None, None, parts * width))
    batch, tokens = x_BLP.shape[:2]
    for name, weight in zip(("norm of q", "norm of k"), norms, strict=True):
        check(name, weight, like=x_BLP, shape=(width,))
    cos, sin = table
    table_batch = 1 if cos.shape[0] == 1 else batch
    for name, values in (("cos", cos), ("sin", sin)):
        shape = (table_batch, tokens, 1, head_dim // 2)
        check(name, values, like=x_BLP, shape=shape, dtypes=(torch.float32,), contiguous=True)
    if bias_P is not None:
        check("bias_P", bias_P, like=x_BLP, shape=(parts * width,))
    check_writer(cache, x_BLP, batch, tokens, heads, head_dim)
    return batch, tokens, heads, head_dim


def _launch(
    x_BLP: Tensor,
    norms: tuple[Tensor, Tensor],
    table: tuple[Tensor, Tensor],
    cache: CacheWriter,
    bias_P: Tensor | None,
    eps: float,
    q: Tensor | None,
) -> None:
    batch, tokens = x_BLP.shape[:2]
    slots, heads, head_dim = cache.k_BSHK.shape[1:]
    width = heads * head_dim
    cos, sin = table
    turned = by_channel(cache.v_BSHK)
    qk_prologue_kernel[(batch * tokens,)](
        x_BLP,
        bias_P,
        None if q is None else norms[0],
        norms[1],
        cos,
        sin,
        q,
        cache.k_BSHK,
        None if turned else cache.v_BSHK,
        cache.k_scale_H,
        None if turned else cache.v_scale_H,
        cache.start_1,
        tokens,
        slots,
        0 if cache.ring_begin is None else cache.ring_begin,
        x_BLP.stride(0),
        x_BLP.stride(1),
        0 if cos.shape[0] == 1 else cos.stride(0),
        eps=eps,
        D=width,
        K=head_dim,
        BLOCK=block_lanes(width),
        RING=cache.ring_begin is not None,
        num_warps=warps("qk_prologue", width, x_BLP.device),
    )
    if turned:
        bias_D = None if bias_P is None else bias_P[-width:]
        write_values_by_channel(
            x_BLP[..., -width:], cache.v_BSHK, cache.start_1, cache.ring_begin, cache.v_scale_H, bias_D
        )
