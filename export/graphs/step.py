"""The whole transformer as one graph: the segments, with `shotstream::CacheChunkAttention` between them.

It reads what the caches hold and returns the keys and values of its own tokens, which the caller writes to them. One
file serves engines with a plugin for the node and engines with an attention of their own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shotstream.export.graphs.cache_chunk_attention import add_body, cache_chunk_attention, translations
from shotstream.export.graphs.segments import CAPTIONS, FRAMES, example_inputs, most_frames
from shotstream.export.graphs.spec import GraphSpec
from shotstream.export.segments.cut import HEAD, TAIL, Signature, cut, middle
from shotstream.runtime.config import DiTConfig
from shotstream.runtime.model.rope import rotate

STEP = "step"
"""Name of the graph."""
CACHED = "cached"
"""Name of its free number of cached tokens, 0 among others."""
COMMON = ("latent", "time", "cos", "sin", "caption")
PER_LAYER = ("ctx_k", "ctx_v", "k_cache", "v_cache")
_EXAMPLE_CACHED_FRAMES = 2


class StepGraph(nn.Module):
    """One pass over F frames, L = F T tokens, that all see the S cached tokens and one another.

    latent, time, caption as in `segments.cut`; cos, sin ``[L, head_dim / 2]`` float32; then of each layer in turn
    ctx_k, ctx_v ``[N, text_len, heads, head_dim]`` and k_cache, v_cache ``[S, heads, head_dim]``, keys rotated.
    Returns flow ``[F, C, H, W]``, then of each layer k_new, v_new ``[L, heads, head_dim]``, keys rotated.

    Subclasses may keep caches otherwise; what all their layers share stands in front of the layers' inputs.
    """

    def __init__(self, model: Any, latent_shape: tuple[int, int, int]) -> None:
        super().__init__()
        segments = cut(model, latent_shape)
        self.config: DiTConfig = model.config
        self.head = segments[HEAD]
        self.middles = nn.ModuleList(segments[middle(layer)] for layer in range(self.config.layers - 1))
        self.tail = segments[TAIL]
        self.norms = nn.ModuleList(_QueryKeyNorm(block.self_attn, self.config) for block in model.blocks)

    def forward(
        self, latent: Tensor, time: Tensor, cos: Tensor, sin: Tensor, caption: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        shared, layers = rest[: -4 * len(self.norms)], rest[-4 * len(self.norms) :]
        x_FTD, qkv_FTP, e6_F6D, e_FD = self.head(latent, time)
        new: list[Tensor] = []
        for layer, norm in enumerate(self.norms):
            ctx_k, ctx_v, *cache = layers[4 * layer : 4 * layer + 4]
            q_LHK, k_LHK, v_LHK = norm(qkv_FTP, cos, sin)
            attn_LHK, *kept = self.attend(q_LHK, k_LHK, v_LHK, *cache, *shared)
            new += kept
            attn_FTD = attn_LHK.reshape(x_FTD.shape)
            if layer + 1 < len(self.norms):
                x_FTD, qkv_FTP = self.middles[layer](x_FTD, attn_FTD, e6_F6D, ctx_k, ctx_v, caption)
        return self.tail(x_FTD, attn_FTD, e6_F6D, e_FD, ctx_k, ctx_v, caption), *new

    def attend(self, q_LHK: Tensor, k_LHK: Tensor, v_LHK: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        """Attention of one layer ``[L, heads, head_dim]``, and what the graph returns for its cache."""
        return cache_chunk_attention(q_LHK, k_LHK, v_LHK, *cache, self.config.head_dim**-0.5), k_LHK, v_LHK


class _QueryKeyNorm(nn.Module):
    """Normed and rotated queries and keys, and values, ``[L, heads, head_dim]`` each, rounded once."""

    def __init__(self, attention: Any, config: DiTConfig) -> None:
        super().__init__()
        self.weights = nn.ParameterList([attention.norm_q.weight, attention.norm_k.weight])
        self.heads, self.eps = config.heads, config.eps

    def forward(self, qkv_FTP: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in qkv_FTP.flatten(0, 1).chunk(3, dim=-1))
        table = (cos[:, None], sin[:, None])
        q, k = (self._normed(x, weight, table) for x, weight in zip((q, k), self.weights, strict=True))
        return q, k, v.contiguous()

    def _normed(self, x_LHK: Tensor, weight_D: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        # Written out, the exporter would make it a node of 16-bit rows and float32 weight, of which nobody is sure
        # what type the result has.
        x_LD = F.rms_norm(x_LHK.flatten(1).float(), weight_D.shape, weight_D.float(), self.eps)
        return rotate(x_LD.unflatten(-1, (self.heads, -1)), *table).to(x_LHK.dtype)


def step_signature(config: DiTConfig) -> Signature:
    """Names of the graph's inputs and outputs, in order."""
    layers = range(config.layers)
    inputs = tuple(f"{what}_{layer}" for layer in layers for what in PER_LAYER)
    return Signature((*COMMON, *inputs), ("flow", *(f"{what}_new_{layer}" for layer in layers for what in "kv")))


def step_spec(model: Any, latent_shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> GraphSpec:
    """The graph with free numbers of frames, captions and cached tokens. The model's parameters must have the dtype."""
    config: DiTConfig = model.config
    signature = step_signature(config)
    tokens = config.tokens_per_frame(*latent_shape[1:])
    dynamic = {key: {0: FRAMES} for key in ("latent", "time", "caption")}
    dynamic |= {key: {0: f"{tokens}*{FRAMES}"} for key in ("cos", "sin")}
    for port in signature.inputs[len(COMMON) :]:
        dynamic[port] = {0: CAPTIONS if port.startswith("ctx_") else CACHED}
    return GraphSpec(
        StepGraph(model, latent_shape).eval(),
        example_step_inputs(config, latent_shape, dtype),
        signature.outputs,
        dynamic,
        {
            FRAMES: (1, most_frames(config)),
            CAPTIONS: (1, config.context_frames),
            CACHED: (0, (config.context_frames + config.local_frames) * tokens),
        },
        translations(),
        add_body,
    )


def example_step_inputs(
    config: DiTConfig,
    latent_shape: tuple[int, int, int],
    dtype: torch.dtype,
    frames: int | None = None,
    cached_frames: int = _EXAMPLE_CACHED_FRAMES,
) -> dict[str, Tensor]:
    """Random inputs from a fixed seed, in the order of the signature; as many frames as a chunk has unless told."""
    frames = config.chunk_frames if frames is None else frames
    head = example_inputs(config, latent_shape, HEAD, dtype, frames)
    tail = example_inputs(config, latent_shape, TAIL, dtype, frames)
    generator = torch.Generator().manual_seed(1)
    tokens, heads = config.tokens_per_frame(*latent_shape[1:]), (config.heads, config.head_dim)
    angles = torch.rand((frames * tokens, config.head_dim // 2), generator=generator) * 6
    made = {**head, "cos": angles.cos(), "sin": angles.sin(), "caption": tail["caption"]}
    for port in step_signature(config).inputs[len(COMMON) :]:
        shape = tail["ctx_k"].shape if port.startswith("ctx_") else (cached_frames * tokens, *heads)
        made[port] = torch.randn(shape, generator=generator).to(dtype)
    return made
