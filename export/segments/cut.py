"""The transformer cut at its self-attentions: segments between which keys, values and queries are in the open.

Everything but self-attention works on each frame by itself, so a segment takes any number of frames, of any shots.
One class of modules serves all consumers: torch runs them, ONNX graphs are exported from them, and engines are built
from those.

Letters as in `runtime.config`, batch 1 left out: activations are ``[F, T, D]``, T tokens of each of F latent frames.
A segment's numbers are in the model's dtype unless it says float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.graph.linear import Dense
from shotstream.runtime.graph.packed import pack

TEXT, HEAD, TAIL = "text_ctx", "head", "tail"


class SegmentRunner(Protocol):
    """Executes segments by name; inputs and outputs in the order of their :class:`Signature`."""

    def __call__(self, name: str, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """What it returns may be overwritten by the next call of the same segment."""
        ...


@dataclass(frozen=True)
class Signature:
    """Names of a segment's inputs and outputs, in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


_REST = ("x", "attn", "e6", "ctx_k", "ctx_v", "caption")


def middle(layer: int) -> str:
    """Name of the segment from block `layer`'s attention to that of the next block."""
    return f"mid_{layer}"


def signatures(config: DiTConfig) -> dict[str, Signature]:
    """Every segment of a model in the order they run, the captions' first."""
    text = tuple(f"ctx_{what}_{layer}" for layer in range(config.layers) for what in "kv")
    made = {
        TEXT: Signature(("text_emb",), text),
        HEAD: Signature(("latent", "time"), ("x", "qkv", "e6", "e")),
    }
    for layer in range(config.layers - 1):
        made[middle(layer)] = Signature(_REST, ("x_next", "qkv"))
    made[TAIL] = Signature((*_REST[:3], "e", *_REST[3:]), ("flow",))
    return made


class TextSegment(nn.Module):
    """``text_emb [N, text_len, text_dim]`` to each layer's text keys and values ``[N, text_len, heads, head_dim]``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, text_emb: Tensor) -> tuple[Tensor, ...]:
        return tuple(part for layer in self.model.embed_captions(text_emb) for part in layer)


class HeadSegment(nn.Module):
    """Latents and times to the first block's queries, keys and values, not yet normed or rotated.

    latent ``[F, C, H, W]``; time ``[F, freq_dim]`` float32, `runtime.model.transformer.sinusoid` of the timesteps.
    Returns x ``[F, T, D]``, qkv ``[F, T, 3 D]``, e6 ``[F, 6, D]`` and e ``[F, D]``, both float32.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.start = _BlockStart(model.blocks[0])

    def forward(self, latent: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x_FTD = self.model.patchify(latent[None])[0]
        e_FD = self.model.time_embedding(time.to(x_FTD.dtype))
        e6_F6D = self.model.time_projection(e_FD).unflatten(-1, (6, -1)).float()
        return x_FTD, self.start(x_FTD, e6_F6D), e6_F6D, e_FD.float()


class MiddleSegment(nn.Module):
    """The rest of one block behind its self-attention, and the next block up to its own.

    x, attn ``[F, T, D]``; e6 ``[F, 6, D]`` float32; ctx_k, ctx_v ``[N, text_len, heads, head_dim]``; caption ``[F]``
    int64, which of the N captions a frame reads. Returns x and the next block's qkv ``[F, T, 3 D]``.
    """

    def __init__(self, block: Any, following: Any) -> None:
        super().__init__()
        self.rest = _BlockRest(block)
        self.start = _BlockStart(following)

    def forward(
        self, x: Tensor, attn: Tensor, e6: Tensor, ctx_k: Tensor, ctx_v: Tensor, caption: Tensor
    ) -> tuple[Tensor, Tensor]:
        x_FTD = self.rest(x, attn, e6, ctx_k, ctx_v, caption)
        return x_FTD, self.start(x_FTD, e6)


class TailSegment(nn.Module):
    """The rest of the last block and the model's head: flow ``[F, C, H, W]``. e ``[F, D]`` float32."""

    def __init__(self, model: Any, latent_size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.rest = _BlockRest(model.blocks[-1])
        patch = model.config.patch
        self.height, self.width = latent_size[0] // patch[1], latent_size[1] // patch[2]

    def forward(
        self, x: Tensor, attn: Tensor, e6: Tensor, e: Tensor, ctx_k: Tensor, ctx_v: Tensor, caption: Tensor
    ) -> Tensor:
        x_FTD = self.rest(x, attn, e6, ctx_k, ctx_v, caption)
        shift, scale = (self.model.head.modulation.float() + e[:, None]).unsqueeze(2).unbind(1)
        h_FTD = _modulated(x_FTD, shift, scale, self.model.config.eps)
        return self.model.unpatchify(self.model.head.head(h_FTD)[None], self.height, self.width)[0]


def cut(model: Any, latent_shape: tuple[int, int, int]) -> dict[str, nn.Module]:
    """All segments of a transformer by name; they share its parameters. latent_shape: (channels, height, width)."""
    blocks = list(model.blocks)
    made: dict[str, nn.Module] = {TEXT: TextSegment(model), HEAD: HeadSegment(model)}
    for layer, (block, following) in enumerate(pairwise(blocks)):
        made[middle(layer)] = MiddleSegment(block, following)
    made[TAIL] = TailSegment(model, latent_shape[1:])
    return {name: module.eval() for name, module in made.items()}


class _BlockStart(nn.Module):
    """Modulated norm and the q, k, v products in one."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        qkv = pack(block, eight_bit=False).qkv
        assert isinstance(qkv, Dense)
        self.product = qkv

    def forward(self, x_FTD: Tensor, e6_F6D: Tensor) -> Tensor:
        shift, scale = _modulation(self.block, e6_F6D)[:2]
        h_FTD = _modulated(x_FTD, shift, scale, self.block.eps)
        return self.product(h_FTD)


class _BlockRest(nn.Module):
    """Projection of the self-attention, cross-attention, feed-forward, with their residuals."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, x_FTD: Tensor, attn_FTD: Tensor, e6_F6D: Tensor, ctx_k: Tensor, ctx_v: Tensor, caption_F: Tensor
    ) -> Tensor:
        block, cross = self.block, self.block.cross_attn
        _, _, gate1, shift2, scale2, gate2 = _modulation(block, e6_F6D)
        x_FTD = (x_FTD.float() + gate1 * block.self_attn.o(attn_FTD).float()).to(x_FTD.dtype)
        q = cross.split(cross.norm_q(cross.q(block.norm3(x_FTD))))
        q, k, v = (part.transpose(1, 2) for part in (q, ctx_k[caption_F], ctx_v[caption_F]))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x_FTD = x_FTD + cross.o(seen)
        y_FTD = block.ffn(_modulated(x_FTD, shift2, scale2, block.eps))
        return (x_FTD.float() + gate2 * y_FTD.float()).to(x_FTD.dtype)


def _modulation(block: Any, e6_F6D: Tensor) -> tuple[Tensor, ...]:
    """Shift, scale and gate of self-attention, then of the feed-forward, ``[F, 1, D]`` each, float32."""
    return (block.modulation.float() + e6_F6D).unsqueeze(2).unbind(1)


def _modulated(x_FTD: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    normed = F.layer_norm(x_FTD.float(), (x_FTD.shape[-1],), eps=eps)
    return (normed * (1 + scale) + shift).to(x_FTD.dtype)
