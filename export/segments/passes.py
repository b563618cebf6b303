"""One pass of the transformer over segments, with our own attention and caches between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shotstream.export.segments.cut import HEAD, TAIL, TEXT, SegmentRunner, middle
from shotstream.runtime.graph.ops import BlockOps
from shotstream.runtime.graph.passes import PassInput, attend_spans
from shotstream.runtime.model.attention import Attention
from shotstream.runtime.model.transformer import TextKV, sinusoid


class SegmentedTransformer:
    """Runs passes as `runtime.graph.passes.PassRunner` says. `model` gives the norms of queries and keys only."""

    heads_first = False

    def __init__(
        self, model: Any, runner: SegmentRunner, ops: BlockOps, attention: Attention, latent_size: tuple[int, int]
    ) -> None:
        self.config = model.config
        self.runner = runner
        self.ops = ops
        self.attention = attention
        self.tokens_per_frame = self.config.tokens_per_frame(*latent_size)
        self.norms = [
            (block.self_attn.norm_q.weight.detach(), block.self_attn.norm_k.weight.detach()) for block in model.blocks
        ]

    def embed_captions(self, text_NLE: Tensor) -> TextKV:
        """``[N, text_len, text_dim]`` to each layer's text keys and values, ``[N, text_len, heads, head_dim]``."""
        made = [part.clone() for part in self.runner(TEXT, (text_NLE,))]
        return list(zip(made[0::2], made[1::2], strict=True))

    def __call__(self, given: PassInput) -> Tensor | None:
        """The flow ``[1, F', C, H, W]`` of the frames that are not only remembered; None if all are."""
        frames, last = given.z_BFCHW.shape[1], self.config.layers - 1
        time_FW = sinusoid(given.t_BF[0], self.config.freq_dim).float()
        x_FTD, qkv_FTP, e6_F6D, e_FD = self.runner(HEAD, (given.z_BFCHW[0], time_FW))
        caption_F = given.caption_index_F
        if caption_F is None:
            caption_F = torch.zeros(frames, dtype=torch.int64, device=x_FTD.device)
        for layer in range(last):
            attn_FTD = self._attend(qkv_FTP, layer, given, unread=0)
            x_FTD, qkv_FTP = self.runner(middle(layer), (x_FTD, attn_FTD, e6_F6D, *given.text_kv[layer], caption_F))
        if given.remembered == frames:
            kv_BLP = qkv_FTP.flatten(0, 1)[None, :, self.config.dim :].contiguous()
            self.ops.kv_prologue(kv_BLP, self.norms[last][1], given.table, given.writers[last], self.config.eps)
            return None
        attn_FTD = self._attend(qkv_FTP, last, given, unread=given.remembered)
        wanted = [part[given.remembered :] for part in (x_FTD, attn_FTD, e6_F6D, e_FD)]
        (flow_FCHW,) = self.runner(TAIL, (*wanted, *given.text_kv[last], caption_F[given.remembered :]))
        return flow_FCHW[None]

    def _attend(self, qkv_FTP: Tensor, layer: int, given: PassInput, unread: int) -> Tensor:
        writer = given.writers[layer]
        qkv_BLP = qkv_FTP.flatten(0, 1)[None]
        q_BLHK = self.ops.prologue(qkv_BLP, self.norms[layer], given.table, writer, self.config.eps)
        attn_BLD = attend_spans(self.attention, q_BLHK, writer, given.spans, self.tokens_per_frame, unread)
        return attn_BLD[0].unflatten(0, (-1, self.tokens_per_frame))
