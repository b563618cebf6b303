"""What the benchmark runs: every small kernel on operands of a block, and what the transformer writes for it in torch.

The torch side follows `runtime/model/transformer.py`, line by line and in the activations' dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shotstream.kernels.fused import reference
from shotstream.kernels.fused.gelu import gelu_tanh, gelu_tanh_fp8, part
from shotstream.kernels.fused.norm import Norm, norm_modulate, norm_modulate_fp8
from shotstream.kernels.fused.prologue import CacheWriter, qk_prologue
from shotstream.kernels.fused.quantise import quantise_fp8_rowwise
from shotstream.kernels.fused.residual import gated_residual, gated_residual_norm, gated_residual_norm_fp8
from shotstream.kernels.fused.rms import rms_norm
from shotstream.kernels.sizes import WAN
from shotstream.runtime.model.rope import rotate

_EPS = 1e-6


@dataclass(frozen=True)
class Sizes:
    """One chunk of a model. slots: tokens that the cache holds."""

    frames: int
    tokens_per_frame: int
    heads: int
    head_dim: int
    hidden: int
    slots: int

    @property
    def tokens(self) -> int:
        """Of the chunk."""
        return self.frames * self.tokens_per_frame

    @property
    def width(self) -> int:
        """Channels."""
        return self.heads * self.head_dim


REAL = Sizes(
    frames=WAN.config.chunk_frames,
    tokens_per_frame=WAN.tokens_per_frame,
    heads=WAN.config.heads,
    head_dim=WAN.config.head_dim,
    hidden=WAN.config.ffn_dim,
    slots=3 * WAN.chunk_tokens,
)
"""A cache of three chunks, since only one is written."""
TOY = Sizes(frames=2, tokens_per_frame=3, heads=2, head_dim=8, hidden=40, slots=12)


@dataclass(frozen=True)
class Case:
    """One kernel. bytes: each operand once. operands: a fresh set for one call of `ours` and of `eager`."""

    name: str
    key: str
    bytes: int
    operands: Callable[[], list[Tensor]]
    ours: Callable[..., object]
    eager: Callable[..., object]


def cases(sizes: Sizes, device: torch.device, dtype: torch.dtype, eight_bit: bool) -> list[Case]:
    """All kernels at these sizes; those that end in eight bits only on request."""
    s, width, unit = sizes, sizes.width, dtype.itemsize
    one = s.tokens * width

    def activations(channels: int = width) -> Tensor:
        return torch.randn(s.frames, s.tokens_per_frame, channels, device=device).to(dtype)

    def frame_vector() -> Tensor:
        return (0.1 * torch.randn(s.frames, 1, width, device=device)).to(dtype)

    def vector(channels: int = width) -> Tensor:
        return (0.1 * torch.randn(channels, device=device)).to(dtype)

    def normed() -> list[Tensor]:
        return [activations(), frame_vector(), frame_vector()]

    def added() -> list[Tensor]:
        return [activations(), activations(), frame_vector(), frame_vector(), frame_vector()]

    def hidden() -> list[Tensor]:
        return [activations(s.hidden), vector(s.hidden)]

    def case(name: str, channels: int, size: int, operands: object, ours: object, eager: object) -> Case:
        return Case(name, f"{name}/{channels}", size, operands, ours, eager)  # type: ignore[arg-type]

    wide = s.tokens * s.hidden
    found = [
        _prologue(s, device, dtype),
        case("norm_modulate", width, 2 * one * unit, normed, _norm, _eager_norm),
        case("gated_residual", width, 3 * one * unit, lambda: added()[:3], gated_residual, _eager_residual),
        case("gated_residual_norm", width, 4 * one * unit, added, _residual_norm, _eager_residual_norm),
        case("rms_norm", width, 2 * one * unit, lambda: [activations(), vector()], rms_norm, _eager_rms),
        case("gelu_tanh", part(s.hidden), 2 * wide * unit, hidden, gelu_tanh, _eager_gelu),
    ]
    if eight_bit:
        narrow = one * (unit + 1)
        found += [
            _prologue(s, device, dtype, eight_bit=True),
            case("norm_modulate_fp8", width, narrow, normed, _norm_fp8, _then_quantised(_eager_norm)),
            case(
                "gated_residual_norm_fp8", width, one * (3 * unit + 1), added, _residual_norm_fp8,
                _then_quantised(_eager_residual_norm),
            ),
            case("gelu_tanh_fp8", s.hidden, wide * (unit + 1), hidden, gelu_tanh_fp8, _then_quantised(_eager_gelu)),
            case(
                "quantise_fp8_rowwise", width, narrow, lambda: [activations()], quantise_fp8_rowwise,
                reference.quantise_rowwise,
            ),
        ]  # fmt: skip
    return found


def _prologue(s: Sizes, device: torch.device, dtype: torch.dtype, eight_bit: bool = False) -> Case:
    kind = torch.float8_e4m3fn if eight_bit else dtype
    angle = torch.rand(1, s.tokens, 1, s.head_dim // 2, device=device)
    table = (angle.cos(), angle.sin())
    norms = (torch.ones(s.width, device=device, dtype=dtype), torch.ones(s.width, device=device, dtype=dtype))
    start = torch.full((1,), s.tokens, dtype=torch.int32, device=device)
    scale = torch.full((s.heads,), 0.02, device=device) if eight_bit else None

    def operands() -> list[Tensor]:
        qkv = torch.randn(1, s.tokens, 3 * s.width, device=device).to(dtype)
        shape = (1, s.slots, s.heads, s.head_dim)
        return [qkv, *(torch.zeros(shape, device=device).to(kind) for _ in range(2))]

    def ours(qkv: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return qk_prologue(qkv, norms, table, CacheWriter(k, v, start, 0, scale, scale))

    def eager(qkv: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q_BLD, k_BLD, v_BLD = qkv.chunk(3, dim=-1)
        split = (s.heads, s.head_dim)
        q_new = rotate(_eager_rms(q_BLD, norms[0]).unflatten(-1, split), *table)
        k_new = rotate(_eager_rms(k_BLD, norms[1]).unflatten(-1, split), *table)
        v_new = v_BLD.unflatten(-1, split)
        if scale is not None:
            k_new, v_new = reference.quantise_heads(k_new, scale), reference.quantise_heads(v_new, scale)
        k[:, s.tokens : 2 * s.tokens].copy_(k_new)
        v[:, s.tokens : 2 * s.tokens].copy_(v_new)
        return q_new

    size = s.tokens * s.width * (4 * dtype.itemsize + 2 * kind.itemsize) + 2 * angle.nbytes
    name = "qk_prologue, fp8 cache" if eight_bit else "qk_prologue"
    return Case(name, f"qk_prologue/{s.width}", size, operands, ours, eager)


def _norm(x: Tensor, scale: Tensor, shift: Tensor) -> object:
    return norm_modulate(x, Norm(_EPS, scale_ND=scale, shift_ND=shift))


def _norm_fp8(x: Tensor, scale: Tensor, shift: Tensor) -> object:
    return norm_modulate_fp8(x, Norm(_EPS, scale_ND=scale, shift_ND=shift))


def _residual_norm(x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> object:
    return gated_residual_norm(x, y, gate, Norm(_EPS, scale_ND=scale, shift_ND=shift))


def _residual_norm_fp8(x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> object:
    return gated_residual_norm_fp8(x, y, gate, Norm(_EPS, scale_ND=scale, shift_ND=shift))


def _eager_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=_EPS) * (1 + scale) + shift


def _eager_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return x + gate * y


def _eager_residual_norm(x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    x = x + gate * y
    return _eager_norm(x, scale, shift), x


def _eager_rms(x: Tensor, weight: Tensor) -> Tensor:
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + _EPS)).to(x.dtype) * weight


def _eager_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias, approximate="tanh")


def _then_quantised(first: Callable[..., object]) -> Callable[..., object]:
    """Behind a function that returns activations, or those and what it has to hand out too."""

    def both(*operands: Tensor) -> object:
        made = first(*operands)
        if isinstance(made, tuple):
            return (*reference.quantise_rowwise(made[0]), *made[1:])
        assert isinstance(made, Tensor)
        return reference.quantise_rowwise(made)

    return both
