"""A whole transformer block put together from matrix products, attention and the small kernels, beside the model's.

Once with the references in the kernels' place, once with the kernels (interpreter): both must give what the block
gives, and leave what it leaves in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from shotstream.kernels.fused import gelu, norm, prologue, reference, residual, rms
from shotstream.kernels.fused.norm import Norm
from shotstream.kernels.fused.prologue import CacheWriter
from shotstream.runtime.config import DiTConfig
from shotstream.runtime.model.attention import sdpa
from shotstream.runtime.model.cache import DualCache
from shotstream.runtime.model.rope import rope_table
from shotstream.runtime.model.transformer import Block

CONFIG = DiTConfig(dim=36, heads=2, ffn_dim=50, layers=1, text_len=5, text_dim=8, context_frames=3, local_frames=6)
HEIGHT, WIDTH = 2, 1


@dataclass(frozen=True)
class Parts:
    """What stands between the products: all kernels, or all references."""

    norm: Callable[[Tensor, Norm], Tensor]
    prologue: Callable[..., Tensor]
    residual_norm: Callable[[Tensor, Tensor, Tensor | None, Norm], Tensor]
    residual: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    rms: Callable[..., Tensor]
    gelu: Callable[[Tensor, Tensor], Tensor]


def _reference_norm(x: Tensor, n: Norm) -> Tensor:
    return reference.layer_norm(x, n.eps, n.weight_D, n.bias_D, n.scale_ND, n.shift_ND)


def _reference_residual(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    return x.copy_(reference.gated_residual(x, y, gate))


def _reference_prologue(
    qkv: Tensor, norms: Any, table: Any, cache: CacheWriter, *, bias_P: Tensor, eps: float
) -> Tensor:
    tokens, (slots, heads) = qkv.shape[1], cache.k_BSHK.shape[1:3]
    q, k, v = reference.qk_prologue(qkv, heads, *norms, *table, eps, bias_P)
    where = reference.cache_slots(int(cache.start_1), tokens, slots, cache.ring_begin)
    cache.k_BSHK[:, where], cache.v_BSHK[:, where] = k, v
    return q


REFERENCES = Parts(
    norm=_reference_norm,
    prologue=_reference_prologue,
    residual_norm=lambda x, y, gate, n: _reference_norm(_reference_residual(x, y, gate), n),
    residual=_reference_residual,
    rms=lambda x, weight, eps, bias_D: reference.rms_norm(x, weight, eps, bias_D),
    gelu=reference.gelu_tanh,
)
KERNELS = Parts(
    norm=norm.norm_modulate,
    prologue=prologue.qk_prologue,
    residual_norm=residual.gated_residual_norm,
    residual=residual.gated_residual,
    rms=lambda x, weight, eps, bias_D: rms.rms_norm(x, weight, eps=eps, bias_D=bias_D),
    gelu=gelu.gelu_tanh,
)


def run_block(
    parts: Parts,
    block: Block,
    x_BFTD: Tensor,
    e0_BF6D: Tensor,
    table: tuple[Tensor, Tensor],
    text_kv: tuple[Tensor, Tensor],
    cache: CacheWriter,
    visible: int,
) -> Tensor:
    """The block on a copy of x: seven launches between its products and the two attentions."""
    x = x_BFTD.clone()
    attn, cross, eps = block.self_attn, block.cross_attn, block.eps
    shift1, scale1, gate1, shift2, scale2, gate2 = (block.modulation + e0_BF6D).unbind(2)
    h = parts.norm(x, Norm(eps, scale_ND=scale1, shift_ND=shift1)).flatten(1, 2)
    qkv = F.linear(h, torch.cat([attn.q.weight, attn.k.weight, attn.v.weight]))
    bias = torch.cat([attn.q.bias, attn.k.bias, attn.v.bias])
    q = parts.prologue(qkv, (attn.norm_q.weight, attn.norm_k.weight), table, cache, bias_P=bias, eps=eps)
    out = attn.o(sdpa(q, cache.k_BSHK[:, :visible], cache.v_BSHK[:, :visible]).flatten(2)).view_as(x)
    h = parts.residual_norm(x, out, gate1, Norm(block.norm3.eps, block.norm3.weight, block.norm3.bias))
    q = cross.split(parts.rms(F.linear(h, cross.q.weight), cross.norm_q.weight, eps, cross.q.bias)).flatten(1, 2)
    out = cross.o(sdpa(q, *text_kv).flatten(2)).view_as(x)
    h = parts.residual_norm(x, out, None, Norm(eps, scale_ND=scale2, shift_ND=shift2))
    up, down = block.ffn[0], block.ffn[2]
    return parts.residual(x, down(parts.gelu(F.linear(h, up.weight), up.bias)), gate2)


@pytest.mark.parametrize("parts", [REFERENCES, KERNELS], ids=["references", "kernels"])
def test_a_block_of_small_kernels_is_the_models_block(parts: Parts) -> None:
    torch.manual_seed(0)
    block = Block(CONFIG, sdpa).requires_grad_(False)
    for parameter in block.parameters():
        if parameter.ndim == 1:
            parameter += 0.3 * torch.randn_like(parameter)
    tokens, context, chunk = HEIGHT * WIDTH, CONFIG.context_frames, CONFIG.chunk_frames
    cache, ours = (DualCache(CONFIG, tokens) for _ in range(2))
    cache.k[0].normal_()
    cache.v[0].normal_()
    ours.k[0].copy_(cache.k[0])
    ours.v[0].copy_(cache.v[0])
    text_kv = block.text_kv(torch.randn(1, CONFIG.text_len, CONFIG.dim))
    for start in (0, 3, 6):  # the third chunk wraps
        x, e0 = torch.randn(1, chunk, tokens, CONFIG.dim), torch.randn(1, chunk, 6, CONFIG.dim)
        positions, flags = torch.arange(context + start, context + start + chunk)[None], torch.ones(1, chunk)
        table = rope_table(positions, flags, HEIGHT, WIDTH, CONFIG.head_dim, CONFIG.jump)
        wanted = block(x, e0, table, text_kv, None, cache.chunk(start), 0, None, False)
        slot = torch.tensor([(context + start) * tokens], dtype=torch.int32)
        writer = CacheWriter(ours.k[0], ours.v[0], slot, context * tokens)
        visible = (context + min(start + chunk, CONFIG.local_frames)) * tokens
        got = run_block(parts, block, x, e0, table, text_kv, writer, visible)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.k[0], cache.k[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.v[0], cache.v[0], atol=1e-5, rtol=1e-5)
