"""The small operations between a block's matrix products, as a contract, and torch's own version of them.

A backend (`BlockOps`) decides how they are computed: `TorchOps` here on any device, the kernels room's in Triton.
What they write to goes by address, so that a captured graph can call them: caches, tables and counters are tensors
that stay where they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""Largest finite float8_e4m3fn."""
_SMALLEST_AMAX = 1e-12


class Fp8Rows(NamedTuple):
    """values_LD float8_e4m3fn, contiguous; scale_L1 float32, contiguous; ``values * scale`` is the activation."""

    values_LD: Tensor
    scale_L1: Tensor


@dataclass(frozen=True)
class Norm:
    """``(norm(x) * weight + bias) * (1 + scale) + shift``; what is None is left out.

    weight_D, bias_D: one vector of D channels. scale_ND, shift_ND: ``[..., D]``, one vector for each of N equal runs of
    rows (the tokens of a frame); views such as one of the six modulation vectors of ``[B, F, 6, D]`` do.
    """

    eps: float = 1e-6
    weight_D: Tensor | None = None
    bias_D: Tensor | None = None
    scale_ND: Tensor | None = None
    shift_ND: Tensor | None = None


@dataclass(frozen=True)
class CacheWriter:
    """One layer's keys and values and where the pass's tokens go.

    k_BSHK, v_BSHK: the preallocated buffers, S slots of one token each, in the activations' dtype or float8_e4m3fn.
    v_BSHK may lie channel by channel, its slots next to each other in memory. start_1: int32, on the device: slot of
    the pass's first token, not negative. ring_begin: first slot of the ring that reaches to the buffer's end; slots
    past the end are taken modulo the ring. None: no ring, and tokens past the end are not written. k_scale_H,
    v_scale_H: float32, for eight-bit buffers only: what is stored times the head's scale is the value, and what exceeds
    448 scales becomes 448 scales.
    """

    k_BSHK: Tensor
    v_BSHK: Tensor
    start_1: Tensor
    ring_begin: int | None = None
    k_scale_H: Tensor | None = None
    v_scale_H: Tensor | None = None


class BlockOps(Protocol):
    """All of it in float32 inside, rounded once. Activations are ``[1, L, D]``, contiguous rows."""

    name: str

    def norm(self, x: Tensor, norm: Norm) -> Tensor: ...

    def norm_fp8(self, x: Tensor, norm: Norm) -> Fp8Rows: ...

    def residual_norm(self, x: Tensor, y: Tensor, gate_ND: Tensor | None, norm: Norm) -> Tensor:
        """Add ``gate * y`` (or y) to x in place, then the norm of what x has become."""
        ...

    def residual_norm_fp8(self, x: Tensor, y: Tensor, gate_ND: Tensor | None, norm: Norm) -> Fp8Rows: ...

    def prologue(
        self,
        qkv_BLP: Tensor,
        norms: tuple[Tensor, Tensor],
        table: tuple[Tensor, Tensor],
        cache: CacheWriter,
        eps: float,
    ) -> Tensor:
        """Write rotated keys and values to the cache; return rotated queries ``[B, L, H, K]``. P is 3 D."""
        ...

    def kv_prologue(
        self, kv_BLP: Tensor, norm_k_D: Tensor, table: tuple[Tensor, Tensor], cache: CacheWriter, eps: float
    ) -> None:
        """The same where nobody asks for queries; P is 2 D."""
        ...

    def rms(self, x: Tensor, weight_D: Tensor, eps: float) -> Tensor: ...

    def gelu(self, x: Tensor) -> Tensor:
        """Tanh form; may overwrite x."""
        ...

    def gelu_fp8(self, x: Tensor) -> Fp8Rows: ...

    def quantise(self, x: Tensor) -> Fp8Rows: ...


@runtime_checkable
class DeviceNoise(Protocol):
    """What operations may offer beside: a session's noise, drawn on the device. Without it the host draws."""

    def draw(self, out: Tensor, seed: int, shot: int, chunk: int, step: int) -> None:
        """Fill `out` with the numbers of `runtime.noise.normal`, on its device, without waiting for it."""
        ...


class TorchOps:
    """Plain torch: the reference of every other backend, and what runs on a CPU."""

    name = "torch"

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        return _norm(x, norm).to(x.dtype)

    def norm_fp8(self, x: Tensor, norm: Norm) -> Fp8Rows:
        return self.quantise(_norm(x, norm))

    def residual_norm(self, x: Tensor, y: Tensor, gate_ND: Tensor | None, norm: Norm) -> Tensor:
        self._add(x, y, gate_ND)
        return self.norm(x, norm)

    def residual_norm_fp8(self, x: Tensor, y: Tensor, gate_ND: Tensor | None, norm: Norm) -> Fp8Rows:
        self._add(x, y, gate_ND)
        return self.norm_fp8(x, norm)

    def prologue(
        self,
        qkv_BLP: Tensor,
        norms: tuple[Tensor, Tensor],
        table: tuple[Tensor, Tensor],
        cache: CacheWriter,
        eps: float,
    ) -> Tensor:
        width = qkv_BLP.shape[-1] // 3
        q, kv = qkv_BLP.split([width, 2 * width], dim=-1)
        self.kv_prologue(kv, norms[1], table, cache, eps)
        heads = cache.k_BSHK.shape[2]
        return _rotated(_rms(q, norms[0], eps), heads, table).to(qkv_BLP.dtype)

    def kv_prologue(
        self, kv_BLP: Tensor, norm_k_D: Tensor, table: tuple[Tensor, Tensor], cache: CacheWriter, eps: float
    ) -> None:
        heads = cache.k_BSHK.shape[2]
        k, v = kv_BLP.chunk(2, dim=-1)
        slots = _slots(cache, kv_BLP.shape[1])
        _write(cache.k_BSHK, slots, _rotated(_rms(k, norm_k_D, eps), heads, table), cache.k_scale_H)
        _write(cache.v_BSHK, slots, v.unflatten(-1, (heads, -1)), cache.v_scale_H)

    def rms(self, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        return _rms(x, weight_D, eps).to(x.dtype)

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    def gelu_fp8(self, x: Tensor) -> Fp8Rows:
        return self.quantise(F.gelu(x.float(), approximate="tanh"))

    def quantise(self, x: Tensor) -> Fp8Rows:
        x_LD = x.reshape(-1, x.shape[-1]).float()
        amax_L1 = x_LD.abs().amax(dim=1, keepdim=True).clamp(min=_SMALLEST_AMAX)
        values = (x_LD * (FP8_MAX / amax_L1)).clamp(-FP8_MAX, FP8_MAX)
        return Fp8Rows(values.to(FP8), amax_L1 / FP8_MAX)

    @staticmethod
    def _add(x: Tensor, y: Tensor, gate_ND: Tensor | None) -> None:
        if gate_ND is None:
            x.add_(y)
        else:
            x.copy_(x.float() + _per_row(gate_ND, y) * y.float())


def _norm(x: Tensor, norm: Norm) -> Tensor:
    """Float32, whatever comes in."""
    weight = None if norm.weight_D is None else norm.weight_D.float()
    bias = None if norm.bias_D is None else norm.bias_D.float()
    y = F.layer_norm(x.float(), (x.shape[-1],), weight, bias, norm.eps)
    if norm.scale_ND is not None:
        y = y * (1 + _per_row(norm.scale_ND, y))
    return y if norm.shift_ND is None else y + _per_row(norm.shift_ND, y)


def _per_row(vectors: Tensor, x: Tensor) -> Tensor:
    """``[..., D]`` vectors, flattened to N, over N equal runs of x's rows; float32, of x's shape."""
    vectors_ND = vectors.reshape(-1, 1, x.shape[-1]).float()
    rows = x.numel() // x.shape[-1]
    return vectors_ND.expand(-1, rows // len(vectors_ND), -1).reshape(x.shape)


def _rms(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight_D.float()


def _rotated(x_BLD: Tensor, heads: int, table: tuple[Tensor, Tensor]) -> Tensor:
    """As `rope.rotate`, ``[B, L, H, K]``, by one product of complex numbers, which is ten times as quick on a CPU.

    x_BLD: float32.
    """
    pairs = torch.view_as_complex(x_BLD.unflatten(-1, (heads, -1, 2)))
    return torch.view_as_real(pairs * torch.complex(*table)).flatten(-2)


def _write(buffer_BSHK: Tensor, slots: Tensor, x_BLHK: Tensor, scale_H: Tensor | None) -> None:
    if scale_H is None:
        buffer_BSHK.index_copy_(1, slots, x_BLHK.to(buffer_BSHK.dtype))
    else:  # torch copies eight-bit floats by index only if they are called bytes
        eight_bit = (x_BLHK.float() / scale_H[:, None]).clamp(-FP8_MAX, FP8_MAX).to(buffer_BSHK.dtype)
        buffer_BSHK.view(torch.uint8).index_copy_(1, slots, eight_bit.view(torch.uint8))


def _slots(cache: CacheWriter, tokens: int) -> Tensor:
    """Slot of each token, without asking the device where the first one is."""
    slots = cache.start_1.long() + torch.arange(tokens, device=cache.start_1.device)
    if cache.ring_begin is None:
        return slots
    capacity = cache.k_BSHK.shape[1]
    return torch.where(slots < capacity, slots, cache.ring_begin + (slots - capacity) % (capacity - cache.ring_begin))
