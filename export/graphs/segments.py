"""The segments of a model as specifications of ONNX graphs, with free numbers of frames and captions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shotstream.export.graphs.spec import GraphSpec
from shotstream.export.segments.cut import HEAD, TEXT, signatures
from shotstream.runtime.config import DiTConfig

FRAMES, CAPTIONS = "frames", "captions"
_EXAMPLE_FRAMES, _EXAMPLE_CAPTIONS = 3, 2


def most_frames(config: DiTConfig) -> int:
    """Frames of the largest pass: the context, or a chunk with the clean pass of the one before."""
    return max(config.context_frames, 2 * config.chunk_frames)


def segment_spec(
    name: str, module: nn.Module, config: DiTConfig, latent_shape: tuple[int, int, int], dtype: torch.dtype
) -> GraphSpec:
    """One of the modules of `segments.cut.cut`, whose parameters have the dtype already."""
    inputs = example_inputs(config, latent_shape, name, dtype)
    outputs = signatures(config)[name].outputs
    if name == TEXT:
        return GraphSpec(module, inputs, outputs, {}, {})
    dynamic = {port: {0: CAPTIONS if port.startswith("ctx_") else FRAMES} for port in inputs}
    ranges = {FRAMES: (1, most_frames(config))}
    if name != HEAD:
        ranges[CAPTIONS] = (1, config.context_frames)
    return GraphSpec(module, inputs, outputs, dynamic, ranges)


def example_inputs(
    config: DiTConfig,
    latent_shape: tuple[int, int, int],
    name: str,
    dtype: torch.dtype,
    frames: int = _EXAMPLE_FRAMES,
    captions: int = _EXAMPLE_CAPTIONS,
) -> dict[str, Tensor]:
    """Random inputs of a segment, from a fixed seed, in the order of its signature."""
    generator = torch.Generator().manual_seed(0)
    tokens, width = config.tokens_per_frame(*latent_shape[1:]), config.dim
    text = (captions, config.text_len, config.heads, config.head_dim)
    shapes: dict[str, tuple[int, ...]] = {
        "text_emb": (1, config.text_len, config.text_dim),
        "latent": (frames, *latent_shape),
        "time": (frames, config.freq_dim),
        "x": (frames, tokens, width),
        "attn": (frames, tokens, width),
        "e6": (frames, 6, width),
        "e": (frames, width),
        "ctx_k": text,
        "ctx_v": text,
    }
    float32 = {"time", "e6", "e"}
    made = {}
    for port in signatures(config)[name].inputs:
        if port == "caption":
            made[port] = torch.arange(frames) % captions
        else:
            numbers = torch.randn(shapes[port], generator=generator)
            made[port] = numbers if port in float32 else numbers.to(dtype)
    return made
