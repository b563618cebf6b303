"""Scales of eight-bit keys and values, found once at load by running the model on noise."""

from __future__ import annotations

import torch

from shotstream.runtime.graph.ops import FP8_MAX
from shotstream.runtime.graph.passes import PassInput, PassRunner, Span
from shotstream.runtime.graph.state import GraphState, HeadScales, Place
from shotstream.runtime.model.rope import rope_table

_MARGIN = 4.0
"""Room for larger values than were seen. An eight-bit float is as exact for small numbers as for large ones, so it
costs nothing but the smallest 2^-9 of the range."""
_TIMESTEPS = (0.0, 500.0, 1000.0)


@torch.inference_mode()
def head_scales(
    passes: PassRunner, latent_shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype
) -> HeadScales:
    """The largest key and value of each layer and head at a few noise levels, with a margin, over 448.

    Latents are drawn from a fixed seed on the host: the same model gets the same scales on every machine.
    """
    config = passes.config
    state = GraphState.empty(config, latent_shape, device, dtype, None)
    place, frames = Place(device), config.chunk_frames
    place.put(state.cache.chunk(0), config.context_frames)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn((1, frames, *latent_shape), generator=generator).to(device, dtype)
    height, width = (size // patch for size, patch in zip(latent_shape[1:], config.patch[1:], strict=True))
    positions = config.context_frames + torch.arange(frames, device=device)[None]
    table = rope_table(positions, torch.ones_like(positions), height, width, config.head_dim, config.jump)
    nothing = torch.zeros((1, config.text_len, config.text_dim), device=device, dtype=dtype)
    text_kv = passes.embed_captions(nothing)
    k_amax = [torch.zeros(config.heads, device=device) for _ in range(config.layers)]
    v_amax = [torch.zeros(config.heads, device=device) for _ in range(config.layers)]
    for t in _TIMESTEPS:
        passes(
            PassInput(
                z_BFCHW=z,
                t_BF=torch.full((1, frames), t, device=device),
                table=table,
                writers=state.writers(place.start_1),
                spans=[Span(frames, place.length_1, place.filled)],
                text_kv=text_kv,
                remembered=frames,
            )
        )
        for amax, buffers in ((k_amax, state.cache.k), (v_amax, state.cache.v)):
            for layer, buffer in enumerate(buffers):
                seen_H = buffer.float().abs().amax(dim=(0, 1, 3))
                amax[layer] = torch.maximum(amax[layer], seen_H)
    return HeadScales(*([_scale(layer) for layer in amax] for amax in (k_amax, v_amax)))


def _scale(amax_H: torch.Tensor) -> torch.Tensor:
    return (amax_H * (_MARGIN / FP8_MAX)).clamp(min=1e-12)
