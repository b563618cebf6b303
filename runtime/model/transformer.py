"""The one diffusion transformer: student and teacher, tiny and real. It knows tensors; caches and shots are its
callers'.

State-dict keys are those of the original Wan2.1 checkpoint. Source: reference
``wan/modules/model.py`` and ``wan/modules/causal_model.py`` (one state dict fits both).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.model.attention import Attention, Spans, attend_masked, sdpa
from shotstream.runtime.model.cache import KeyStore, Past, RecordingKeys
from shotstream.runtime.model.rope import rope_table, rotate

TextKV = list[tuple[Tensor, Tensor]]


class RMSNorm(nn.Module):
    """Root-mean-square norm with float32 statistics; the weight multiplies after the cast back (reference 1.6)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


class Projections(nn.Module):
    """The parameters that self- and cross-attention share: q, k, v, o and full-width q/k norms."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim, config.eps), RMSNorm(dim, config.eps)

    def split(self, x: Tensor) -> Tensor:
        """``[..., D] -> [..., heads, head_dim]``."""
        return x.unflatten(-1, (self.heads, -1))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward with six modulation vectors per frame."""

    def __init__(self, config: DiTConfig, attention: Attention) -> None:
        super().__init__()
        self.eps = config.eps
        self.attention = attention
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)
        self.self_attn = Projections(config)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.cross_attn = Projections(config)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, config.dim)
        )

    def text_kv(self, text_NLD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of embedded captions, ``[N, text_len, heads, head_dim]`` each."""
        attn = self.cross_attn
        return attn.split(attn.norm_k(attn.k(text_NLD))), attn.split(attn.v(text_NLD))

    def forward(
        self,
        x_BFTD: Tensor,
        e0_BF6D: Tensor,
        rope: tuple[Tensor, Tensor],
        text_kv: tuple[Tensor, Tensor],
        caption_index_BF: Tensor | None,
        keys: KeyStore | None,
        layer: int,
        mask: Tensor | Spans | None,
        kv_only: bool,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """The block's output; where `keys` are a `Past`, also this pass's own keys and values."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + e0_BF6D).unsqueeze(3).unbind(2)
        x_BFTD, k, v = self._self_attention(x_BFTD, shift1, scale1, gate1, rope, keys, layer, mask, kv_only)
        if not kv_only:
            x_BFTD = x_BFTD + self._cross_attention(self.norm3(x_BFTD), text_kv, caption_index_BF)
            x_BFTD = x_BFTD + gate2 * self.ffn(self._norm(x_BFTD) * (1 + scale2) + shift2)
        return (x_BFTD, k, v) if isinstance(keys, Past) else x_BFTD

    def _norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), eps=self.eps)

    def _self_attention(
        self,
        x_BFTD: Tensor,
        shift: Tensor,
        scale: Tensor,
        gate: Tensor,
        rope: tuple[Tensor, Tensor],
        keys: KeyStore | None,
        layer: int,
        mask: Tensor | Spans | None,
        kv_only: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        attn = self.self_attn
        h = (self._norm(x_BFTD) * (1 + scale) + shift).flatten(1, 2)
        k = rotate(attn.split(attn.norm_k(attn.k(h))), *rope)
        v = attn.split(attn.v(h))
        k_all, v_all = (k, v) if keys is None else keys.extend(layer, k, v)
        if kv_only:
            return x_BFTD, k, v
        q = rotate(attn.split(attn.norm_q(attn.q(h))), *rope)
        out = attn.o(attend_masked(self.attention, q, k_all, v_all, mask).flatten(2))
        return x_BFTD + gate * out.view_as(x_BFTD), k, v

    def _cross_attention(
        self, x_BFTD: Tensor, text_kv: tuple[Tensor, Tensor], caption_index_BF: Tensor | None
    ) -> Tensor:
        attn = self.cross_attn
        k, v = text_kv
        batch, frames, tokens, _ = x_BFTD.shape
        q = attn.split(attn.norm_q(attn.q(x_BFTD)))
        if caption_index_BF is None:  # one caption for everything
            q = q.flatten(1, 2)
            k, v = k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)
        else:  # every frame reads its own shot's caption
            q = q.flatten(0, 1)
            index = caption_index_BF.flatten()
            k, v = k[index], v[index]
        return attn.o(self.attention(q, k, v).flatten(2).view(batch, frames, tokens, -1))


class Head(nn.Module):
    """Modulated norm and projection to patches; uses the time embedding itself, not its six-fold projection."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        self.head = nn.Linear(config.dim, config.channels * config.patch[1] * config.patch[2])

    def forward(self, x_BFTD: Tensor, e_BFD: Tensor) -> Tensor:
        shift, scale = (self.modulation + e_BFD.unsqueeze(2)).unsqueeze(3).unbind(2)
        return self.head(F.layer_norm(x_BFTD, (x_BFTD.shape[-1],), eps=self.eps) * (1 + scale) + shift)


class Transformer(nn.Module):
    """Predicts the flow ``noise - x0`` of latent frames.

    ``attention`` may be replaced by any backend of the ``attention`` slot; ``gradient_checkpointing`` recomputes
    blocks in
    the backward pass.
    """

    def __init__(self, config: DiTConfig, attention: Attention = sdpa) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.channels, dim, kernel_size=config.patch, stride=config.patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config, attention) for _ in range(config.layers))
        self.head = Head(config)

    def embed_captions(self, text_NLE: Tensor) -> TextKV:
        """Text keys and values per layer from text-encoder rows ``[N, text_len, text_dim]`` (padding rows are zero).

        All rows take part, padding too: after the biases they are one constant vector.
        """
        text_NLD = self.text_embedding(text_NLE)
        return [cast(Block, block).text_kv(text_NLD) for block in self.blocks]

    def embed_time(self, t_BF: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``e [B, F, D]`` and its projection ``e0 [B, F, 6, D]`` of timesteps in 0..1000."""
        e = self.time_embedding(sinusoid(t_BF, self.config.freq_dim).to(dtype))
        return e, self.time_projection(e).unflatten(-1, (6, -1))

    def forward(
        self,
        z_BFCHW: Tensor,
        t_BF: Tensor,
        text_kv: TextKV,
        caption_index_BF: Tensor | None,
        positions_BF: Tensor,
        flags_BF: Tensor | None,
        *,
        keys: KeyStore | RecordingKeys | None = None,
        mask: Tensor | Spans | None = None,
        kv_only: bool = False,
    ) -> Tensor:
        """Flow of the given frames, ``[B, F, C, H, W]``.

        t_BF: timestep of every frame, 0..1000. text_kv: from :meth:`embed_captions`. caption_index_BF: which caption
        each frame reads, or None when one caption serves all. positions_BF: time indices (context 0..5, target from 6
        on). flags_BF: shot numbers for the phase jump, or None for plain Wan rotary tables. keys: cache to write and to
        attend over. mask: which key tokens a query token may see. kv_only: stop once the last layer's keys and values
        are known (context pass, clean pass); the result is then meaningless and empty.
        """
        c = self.config
        height, width = z_BFCHW.shape[3] // c.patch[1], z_BFCHW.shape[4] // c.patch[2]
        x_BFTD = self.patchify(z_BFCHW)
        e_BFD, e0_BF6D = self.embed_time(t_BF, x_BFTD.dtype)
        rope = rope_table(positions_BF, flags_BF, height, width, c.head_dim, c.jump)
        last = c.layers - 1
        for layer, block in enumerate(self.blocks):
            stop = kv_only and layer == last
            held = keys.of(layer) if isinstance(keys, RecordingKeys) else keys
            args = (x_BFTD, e0_BF6D, rope, text_kv[layer], caption_index_BF, held, layer, mask, stop)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                made = checkpoint(block, *args, use_reentrant=False)
            else:
                made = block(*args)
            if isinstance(keys, RecordingKeys):
                x_BFTD, *own = made
                keys.own.append(tuple(own))
            else:
                x_BFTD = made
        if kv_only:
            return z_BFCHW.new_empty(0)
        return self.unpatchify(self.head(x_BFTD, e_BFD), height, width)

    def patchify(self, z_BFCHW: Tensor) -> Tensor:
        """Patch embedding as a matrix product: far faster than the strided convolution it equals, above all on CPU."""
        _, dy, dx = self.config.patch
        z = z_BFCHW.unflatten(4, (-1, dx)).unflatten(3, (-1, dy))  # B F C h dy w dx
        patches = z.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)
        return F.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)

    def unpatchify(self, y_BFTP: Tensor, height: int, width: int) -> Tensor:
        """Patches are ordered (row, column, channel), channel fastest: the opposite of the patch embedding."""
        _, dy, dx = self.config.patch
        y = y_BFTP.unflatten(3, (dy, dx, self.config.channels)).unflatten(2, (height, width))
        y = y.permute(0, 1, 6, 2, 4, 3, 5)
        return y.reshape(*y.shape[:3], height * dy, width * dx)


def sinusoid(t: Tensor, width: int) -> Tensor:
    """``[..., width]`` cosines then sines of ``t * 10000^(-j / (width/2))``, float64."""
    half = width // 2
    ladder = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=t.device) / half)
    angle = t.double().unsqueeze(-1) * ladder
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
