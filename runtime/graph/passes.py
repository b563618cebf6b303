"""One pass of the transformer over packed weights, written with a backend's fused operations.

It computes what `runtime.model.transformer` defines, for one clip, and writes keys and values by address. The tests
hold the two against each other. What is skipped: whatever nobody reads, i.e. everything behind the last layer's keys
and values for frames that are only to be remembered.

Letters as in `runtime.config`; activations are ``[1, L, D]`` with L = F T tokens in frame, row, column order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.graph.linear import Dense, EightBit, feed
from shotstream.runtime.graph.ops import BlockOps, CacheWriter, Fp8Rows, Norm
from shotstream.runtime.graph.packed import PackedBlock, pack
from shotstream.runtime.model.attention import Attention, Prefix, attend
from shotstream.runtime.model.transformer import TextKV


@dataclass(frozen=True)
class Span:
    """A run of a pass's frames that see the same keys: `frames` of them, over the first `length_1` slots.

    filled: `length_1` as the host knows it; only backends that cannot read it from the device look there.
    """

    frames: int
    length_1: Tensor
    filled: int


@dataclass(frozen=True)
class PassInput:
    """What a pass reads and where it writes.

    z_BFCHW: latents, B = 1. t_BF: their timesteps, 0..1000. table: rotary cosines and sines of all tokens. writers:
    one per layer. spans: which frames see what, in order. remembered: how many of the first frames are only to leave
    their keys and values; the flow is that of the others. text_kv: one caption for all, or several, with
    caption_index_F saying which one each frame reads.
    """

    z_BFCHW: Tensor
    t_BF: Tensor
    table: tuple[Tensor, Tensor]
    writers: Sequence[CacheWriter]
    spans: Sequence[Span]
    text_kv: TextKV
    caption_index_F: Tensor | None = None
    remembered: int = 0


class PassRunner(Protocol):
    """Runs the transformer over a pass's frames.

    heads_first: how it wants caches to lie, as of `DualCache`; one that does reads lengths on the device.
    """

    config: DiTConfig
    heads_first: bool

    def __call__(self, given: PassInput) -> Tensor | None:
        """Store the keys and values of all frames; return the flow ``[1, F', C, H, W]`` of those that are not only
        remembered, or None if all are.
        """
        ...

    def embed_captions(self, text_NLE: Tensor) -> TextKV:
        """As the transformer's."""
        ...


class FusedTransformer:
    """The transformer of a model, packed. `eight_bit` says which layers' products are."""

    heads_first = False

    def __init__(
        self, model: Any, ops: BlockOps, attention: Attention, latent_size: tuple[int, int], eight_bit: Sequence[bool]
    ) -> None:
        self.model = model
        self.config: DiTConfig = model.config
        self.ops = ops
        self.attention = attention
        self.latent_size = latent_size
        self.tokens_per_frame = self.config.tokens_per_frame(*latent_size)
        self.blocks = [pack(block, eight) for block, eight in zip(model.blocks, eight_bit, strict=True)]
        self.modulation_N16D = torch.stack([block.modulation.detach() for block in model.blocks])
        """Added to the time embedding's six vectors: shift, scale, gate of self-attention, then of the feed-forward."""
        self.head_modulation_12D: Tensor = model.head.modulation.detach()

    @property
    def nbytes(self) -> int:
        """Of the blocks' products, in the precision they run in."""
        return sum(p.nbytes for b in self.blocks for p in (b.qkv, b.o, b.cross_q, b.cross_o, b.up, b.down))

    def __call__(self, given: PassInput) -> Tensor | None:
        """The flow ``[1, F', C, H, W]`` of the frames that are not only remembered; None if all are."""
        frames = given.z_BFCHW.shape[1]
        x_BLD = self.model.patchify(given.z_BFCHW).flatten(1, 2).contiguous()
        e_BFD, e0_BF6D = self.model.embed_time(given.t_BF, x_BLD.dtype)
        modulations = (self.modulation_N16D[:, None] + e0_BF6D).unbind(0)
        modulation = modulations[0].unbind(2)
        h = self._norm(x_BLD, self._shifted(modulation[0], modulation[1]), self.blocks[0].qkv)
        for layer in range(len(self.blocks)):
            last = layer + 1 == len(self.blocks)
            if last and given.remembered == frames:
                self._remember(h, layer, given)
                return None
            attended = self._self_attention(h, layer, given)
            if last and given.remembered:
                # The caches are complete; from here on only the frames whose flow is asked for matter.
                x_BLD, attended = (self._without(t, given.remembered) for t in (x_BLD, attended))
                x_BLD, e_BFD = x_BLD.contiguous(), e_BFD[:, given.remembered :]
                modulation = tuple(vector[:, given.remembered :] for vector in modulation)
                given = replace(given, caption_index_F=_later(given.caption_index_F, given.remembered))
            following = None if last else modulations[layer + 1].unbind(2)
            h = self._rest_of_block(x_BLD, attended, layer, modulation, following, e_BFD, given)
            if following is not None:
                modulation = following
        assert isinstance(h, Tensor)
        return self._flow(h)

    def embed_captions(self, text_NLE: Tensor) -> TextKV:
        """Text keys and values per layer."""
        return self.model.embed_captions(text_NLE)

    # -------------------------------------------------------------------------------- parts of a block
    def _self_attention(self, h: Tensor | Fp8Rows, layer: int, given: PassInput) -> Tensor:
        block, writer = self.blocks[layer], given.writers[layer]
        norms = (block.norm_q_D, block.norm_k_D)
        q_BLHK = self.ops.prologue(block.qkv(h), norms, given.table, writer, self.config.eps)
        unread = given.remembered if layer + 1 == len(self.blocks) else 0
        return attend_spans(self.attention, q_BLHK, writer, given.spans, self.tokens_per_frame, unread)

    def _remember(self, h: Tensor | Fp8Rows, layer: int, given: PassInput) -> None:
        block = self.blocks[layer]
        self.ops.kv_prologue(block.kv(h), block.norm_k_D, given.table, given.writers[layer], self.config.eps)

    def _rest_of_block(
        self,
        x_BLD: Tensor,
        attended: Tensor,
        layer: int,
        modulation: tuple[Tensor, ...],
        following: tuple[Tensor, ...] | None,
        e_BFD: Tensor,
        given: PassInput,
    ) -> Tensor | Fp8Rows:
        """From the attention to the input of the next block's first product (or the head's)."""
        block, ops = self.blocks[layer], self.ops
        _, _, gate1, shift2, scale2, gate2 = modulation
        y = feed(block.o, attended, ops)
        norm3 = Norm(self.config.eps, block.norm3_weight_D, block.norm3_bias_D)
        h = self._residual_norm(x_BLD, y, gate1, norm3, block.cross_q)
        y = self._cross_attention(h, block, given.text_kv[layer], given.caption_index_F)
        h = self._residual_norm(x_BLD, y, None, self._shifted(shift2, scale2), block.up)
        y = block.up(h)
        y = block.down(ops.gelu_fp8(y) if block.down.eight_bit else ops.gelu(y))
        if following is not None:
            norm = self._shifted(following[0], following[1])
            return self._residual_norm(x_BLD, y, gate2, norm, self.blocks[layer + 1].qkv)
        shift, scale = (self.head_modulation_12D + e_BFD.unsqueeze(2)).unbind(2)
        return ops.residual_norm(x_BLD, y, gate2, self._shifted(shift, scale))

    def _cross_attention(
        self, h: Tensor | Fp8Rows, block: PackedBlock, text_kv: tuple[Tensor, Tensor], index_F: Tensor | None
    ) -> Tensor:
        q_BLD = self.ops.rms(block.cross_q(h), block.cross_norm_q_D, self.config.eps)
        q = q_BLD.unflatten(-1, (self.config.heads, -1))
        k, v = text_kv
        if index_F is None:
            out = self.attention(q, k, v).flatten(2)
        else:  # each frame reads its own shot's caption
            q = q.flatten(0, 1).unflatten(0, (len(index_F), -1))
            out = self.attention(q, k[index_F], v[index_F]).flatten(2).flatten(0, 1)[None]
        return feed(block.cross_o, out, self.ops)

    # -------------------------------------------------------------------------------- small things
    def _shifted(self, shift_BFD: Tensor, scale_BFD: Tensor) -> Norm:
        return Norm(self.config.eps, scale_ND=scale_BFD, shift_ND=shift_BFD)

    def _norm(self, x: Tensor, norm: Norm, into: Dense | EightBit) -> Tensor | Fp8Rows:
        return self.ops.norm_fp8(x, norm) if into.eight_bit else self.ops.norm(x, norm)

    def _residual_norm(
        self, x: Tensor, y: Tensor, gate: Tensor | None, norm: Norm, into: Dense | EightBit
    ) -> Tensor | Fp8Rows:
        call = self.ops.residual_norm_fp8 if into.eight_bit else self.ops.residual_norm
        return call(x, y, gate, norm)

    def _without(self, t_BLX: Tensor, frames: int) -> Tensor:
        return t_BLX[:, frames * self.tokens_per_frame :]

    def _flow(self, h_BLD: Tensor) -> Tensor:
        height, width = (size // patch for size, patch in zip(self.latent_size, self.config.patch[1:], strict=True))
        y_BLP = self.model.head.head(h_BLD)
        return self.model.unpatchify(y_BLP.unflatten(1, (-1, self.tokens_per_frame)), height, width)


def attend_spans(
    attention: Attention, q_BLHK: Tensor, writer: CacheWriter, spans: Sequence[Span], tokens_per_frame: int, unread: int
) -> Tensor:
    """Self-attention of a pass, ``[1, L, D]``: every span over its own keys.

    unread: nobody reads the result of that many of the first frames; spans of such frames hold anything.
    """
    parts, begin = [], 0
    for span in spans:
        end = begin + span.frames * tokens_per_frame
        part = q_BLHK[:, begin:end]
        if end > unread * tokens_per_frame:
            k, v = writer.k_BSHK, writer.v_BSHK
            part = attend(attention, part, Prefix(k, v, span.length_1, span.filled, writer.k_scale_H, writer.v_scale_H))
        parts.append(part)
        begin = end
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).flatten(2)


def _later(index_F: Tensor | None, frames: int) -> Tensor | None:
    return None if index_F is None else index_F[frames:]
