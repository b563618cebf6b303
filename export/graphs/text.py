"""The text encoders as specifications of ONNX graphs: ids in, rows out as the transformer reads them.

Tokenizing stays outside. Rows behind a caption's tokens are zero, so the outputs are what `TextEncoder.encode` gives.

Letters: N captions, L tokens, D width, H heads, K width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shotstream.export.graphs.spec import GraphSpec
from shotstream.runtime.errors import UserError
from shotstream.runtime.text.tiny import TinyTextEncoder
from shotstream.runtime.text.umt5 import UMT5Encoder

UMT5, TINY_TEXT = "text_umt5", "text_tiny"
TOKENS, CAPTIONS = "tokens", "captions"
_EXAMPLE_TOKENS, _MOST_CAPTIONS = 7, 64


class UMT5Graph(nn.Module):
    """ids, mask ``[1, L]`` int64, L up to `text_len`, to rows ``[1, text_len, D]``; mask 0: not a token.

    Our own walk through the layers of transformers. Which distances share a bias is worked out here and not in the
    graph: it goes by a logarithm's integer part, which another runtime may round to the other side.
    """

    buckets: Tensor

    def __init__(self, model: Any, text_len: int) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.text_len = text_len
        distances = torch.arange(1 - text_len, text_len)
        buckets = self.encoder.block[0].layer[0].SelfAttention._relative_position_bucket(distances)
        self.register_buffer("buckets", buckets)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        places_L = torch.arange(ids.shape[1], device=ids.device)
        bucket_LL = self.buckets[places_L[None] - places_L[:, None] + self.text_len - 1]
        x_NLD = self.encoder.embed_tokens(ids)
        for block in self.encoder.block:
            attend, feed_forward = block.layer
            x_NLD = x_NLD + _attention(attend.SelfAttention, attend.layer_norm(x_NLD), bucket_LL, mask)
            x_NLD = feed_forward(x_NLD)
        rows = self.encoder.final_layer_norm(x_NLD) * mask[..., None].to(x_NLD.dtype)
        return F.pad(rows, (0, 0, 0, self.text_len - ids.shape[1]))


class TinyTextGraph(nn.Module):
    """word ``[N, length]`` and group ``[N, length, 12]``, int64, as `TinyTextEncoder.ids` gives them, to rows."""

    def __init__(self, encoder: TinyTextEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, word: Tensor, group: Tensor) -> Tensor:
        return self.encoder(word, group)


def text_specs(encoder: Any) -> dict[str, Callable[[], GraphSpec]]:
    """The encoder's graph by name, in the dtype of its weights; UserError for an encoder that has none."""
    if isinstance(encoder, UMT5Encoder):
        return {UMT5: partial(_umt5_spec, encoder)}
    if isinstance(encoder, TinyTextEncoder):
        return {TINY_TEXT: partial(_tiny_spec, encoder)}
    raise UserError(f"the text encoder {type(encoder).__name__} cannot be exported; umT5 and that of 'tiny' can")


def _umt5_spec(encoder: UMT5Encoder) -> GraphSpec:
    ids = torch.arange(1, 1 + _EXAMPLE_TOKENS)[None] % encoder.model.config.vocab_size
    inputs = {"ids": ids, "mask": torch.ones_like(ids)}
    free = {name: {1: TOKENS} for name in inputs}
    graph = UMT5Graph(encoder.model, encoder.text_len).eval()
    return GraphSpec(graph, inputs, ["rows"], free, {TOKENS: (1, encoder.text_len)})


def _tiny_spec(encoder: TinyTextEncoder) -> GraphSpec:
    word, group = encoder.ids(["a red fox", "a blue robot waits"])
    free = {name: {0: CAPTIONS} for name in ("word", "group")}
    inputs = {"word": word.clone(), "group": group.clone()}
    return GraphSpec(TinyTextGraph(encoder).eval(), inputs, ["rows"], free, {CAPTIONS: (1, _MOST_CAPTIONS)})


def _attention(layer: Any, x_NLD: Tensor, bucket_LL: Tensor, mask: Tensor) -> Tensor:
    """Self-attention without scale, with a bias by distance that each layer has of its own."""
    shape = (layer.n_heads, layer.key_value_proj_dim)
    q, k, v = (product(x_NLD).unflatten(-1, shape).transpose(1, 2) for product in (layer.q, layer.k, layer.v))
    bias_HLL = layer.relative_attention_bias(bucket_LL).permute(2, 0, 1)
    bias_NHLL = bias_HLL[None].masked_fill(mask[:, None, None] == 0, float("-inf"))
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_NHLL, scale=1.0)
    return layer.o(seen.transpose(1, 2).flatten(2))
