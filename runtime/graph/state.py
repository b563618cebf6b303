"""What one session holds in the graph engine: caches, and everything a captured graph reads or writes by address."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.graph.capture import Recorder
from shotstream.runtime.graph.ops import CacheWriter
from shotstream.runtime.model.cache import CacheSlots, DualCache
from shotstream.runtime.model.rope import rope_table
from shotstream.runtime.model.transformer import TextKV


@dataclass(frozen=True)
class HeadScales:
    """Float32 scales ``[heads]`` per layer, of eight-bit keys and values."""

    k: Sequence[Tensor]
    v: Sequence[Tensor]


class Place:
    """Where a chunk lies in the cache and in time, in device memory; the host's copy is for backends that need it."""

    def __init__(self, device: torch.device) -> None:
        self.start_1 = torch.zeros(1, dtype=torch.int32, device=device)
        self.length_1 = torch.zeros(1, dtype=torch.int32, device=device)
        self.position_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self.filled = 0

    def put(self, slots: CacheSlots, position: int) -> None:
        """Queue the new numbers up behind what reads the old ones; nothing is waited for."""
        self.start_1.fill_(slots.begin)
        self.length_1.fill_(slots.visible)
        self.position_1.fill_(position)
        self.filled = slots.visible


@dataclass
class GraphState:
    """A session's part of the engine.

    noise, x0, clean: a chunk's latents ``[1, F, C, H, W]``: what is to be mixed in next, what is predicted, and what
    the chunk before became. step_1: number of the next denoising step. before, now: the places of that chunk and of
    this one. table: rotary cosines and sines of both chunks' tokens. text: keys and values of the shot's caption.
    """

    cache: DualCache
    noise: Tensor
    x0: Tensor
    clean: Tensor
    step_1: Tensor
    flag_1: Tensor
    before: Place
    now: Place
    table: tuple[Tensor, Tensor]
    text: TextKV
    recorder: Recorder
    scales: HeadScales | None = None
    clean_frame: int | None = None
    """First latent frame of the chunk in `clean`, if its keys and values are still to be stored."""

    @classmethod
    def empty(
        cls,
        config: DiTConfig,
        latent_shape: tuple[int, int, int],
        device: torch.device,
        dtype: torch.dtype,
        scales: HeadScales | None,
        *,
        capture: bool = False,
        heads_first: bool = False,
    ) -> GraphState:
        """Zeros everywhere. With scales, keys and values are held in eight bits. heads_first: as of `DualCache`."""
        tokens = config.tokens_per_frame(*latent_shape[1:])
        chunk = (1, config.chunk_frames, *latent_shape)
        text = (1, config.text_len, config.heads, config.head_dim)
        table = (1, 2 * config.chunk_frames * tokens, 1, config.head_dim // 2)

        def zeros(shape: tuple[int, ...], dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        held = dtype if scales is None else torch.float8_e4m3fn
        return cls(
            cache=DualCache(
                config, tokens, device, held, values_by_channel=scales is not None, heads_first=heads_first
            ),
            noise=zeros(chunk),
            x0=zeros(chunk),
            clean=zeros(chunk),
            step_1=zeros((1,), torch.int64),
            flag_1=zeros((1,), torch.int64),
            before=Place(device),
            now=Place(device),
            table=(zeros(table, torch.float32), zeros(table, torch.float32)),
            text=[(zeros(text), zeros(text)) for _ in range(config.layers)],
            recorder=Recorder(device, capture),
            scales=scales,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the caches."""
        return self.cache.nbytes

    @property
    def chunk_frames(self) -> int:
        """Latent frames of a chunk."""
        return self.x0.shape[1]

    def table_of(self, chunks: slice) -> tuple[Tensor, Tensor]:
        """The part of the rotary tables of the chunk before (0) and of this one (1)."""
        tokens = self.chunk_frames * self.cache.tokens_per_frame
        part = slice((chunks.start or 0) * tokens, (2 if chunks.stop is None else chunks.stop) * tokens)
        cos, sin = self.table
        return cos[:, part], sin[:, part]

    def turn(self, place: Place, chunks: slice) -> tuple[Tensor, Tensor]:
        """Make the rotary tables of some chunks, whose first lies at `place`, and return them."""
        config, cos_sin = self.cache.config, self.table_of(chunks)
        frames = cos_sin[0].shape[1] // self.cache.tokens_per_frame
        positions_BF = (place.position_1 + torch.arange(frames, device=self.x0.device))[None]
        flags_BF = self.flag_1.expand(1, frames)
        height, width = (size // patch for size, patch in zip(self.x0.shape[3:], config.patch[1:], strict=True))
        made = rope_table(positions_BF, flags_BF, height, width, config.head_dim, config.jump)
        for table, values in zip(cos_sin, made, strict=True):
            table.copy_(values)
        return cos_sin

    def writers(self, start_1: Tensor) -> list[CacheWriter]:
        """Writers of all layers from a slot on; past the local cache's end they go on behind its sink."""
        config, cache = self.cache.config, self.cache
        ring_begin = (config.context_frames + config.sink_frames) * cache.tokens_per_frame
        k_scales = [None] * config.layers if self.scales is None else self.scales.k
        v_scales = [None] * config.layers if self.scales is None else self.scales.v
        return [
            CacheWriter(k, v, start_1, ring_begin, k_scale, v_scale)
            for k, v, k_scale, v_scale in zip(cache.k, cache.v, k_scales, v_scales, strict=True)
        ]
