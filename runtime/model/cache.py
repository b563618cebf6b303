"""Keys and values: the dual cache of inference and the functional cache of training. Addresses, not captions.

Both answer one question of a transformer layer: given this pass's rotated keys and its values, what is attended over?
Source: reference ``wan/modules/causal_model.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError


class KeyStore(Protocol):
    """What self-attention needs to know of a cache."""

    def extend(self, layer: int, k_BLHK: Tensor, v_BLHK: Tensor) -> tuple[Tensor, Tensor]:
        """Take this pass's rotated keys and values; return all keys and values to attend over."""
        ...


class DualCache:
    """One buffer per layer, ``[B, (context + local) * T, heads, head_dim]``, allocated once and written in place.

    The first ``context_frames`` frames are the global cache (written once per shot), the rest is the local cache of the
    running shot. Past ``local_frames`` the local part is a ring behind ``sink_frames`` frames that stay: the slot
    order does not matter to attention because keys are stored rotated.

    To fill the local cache anew with the newest chunks only, set ``dropped`` to the number of frames between the sink
    and those chunks, then write them in order: each sees those before it and nothing of what was there. A new shot
    starts with ``dropped = 0``.
    """

    def __init__(
        self,
        config: DiTConfig,
        tokens_per_frame: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch: int = 1,
        values_by_channel: bool = False,
        heads_first: bool = False,
    ) -> None:
        """values_by_channel: a channel's slots lie next to each other, as eight-bit tensor cores want to read them.
        heads_first: a head's slots do, as engines with an attention of their own want them.
        """
        frames = config.context_frames + config.local_frames
        shape = (batch, frames * tokens_per_frame, config.heads, config.head_dim)
        self.config = config
        self.tokens_per_frame = tokens_per_frame
        self.dropped = 0
        make_k = _by_head if heads_first else torch.zeros
        make_v = _by_channel if values_by_channel else make_k
        self.k = [make_k(shape, device=device, dtype=dtype) for _ in range(config.layers)]
        self.v = [make_v(shape, device=device, dtype=dtype) for _ in range(config.layers)]

    @property
    def nbytes(self) -> int:
        """Bytes held by all buffers."""
        return sum(t.numel() * t.element_size() for t in (*self.k, *self.v))

    def context(self) -> CacheSlots:
        """Writer of the global cache: the context frames see only one another."""
        tokens = self.config.context_frames * self.tokens_per_frame
        return CacheSlots(self, 0, tokens, tokens)

    def chunk(self, start_frame: int, frames: int | None = None) -> CacheSlots:
        """Writer of one chunk that starts at latent frame ``start_frame`` of the shot; it sees the filled prefix.

        Every pass of a chunk writes the same slots, so the last one (the clean pass) is what later chunks see.
        """
        c, per_frame = self.config, self.tokens_per_frame
        frames = c.chunk_frames if frames is None else frames
        held = start_frame if start_frame < c.sink_frames else start_frame - self.dropped
        slot = held
        if held >= c.local_frames:
            slot = c.sink_frames + (held - c.sink_frames) % (c.local_frames - c.sink_frames)
        if slot + frames > c.local_frames:
            raise UserError(
                f"a chunk of {frames} frames at frame {start_frame} does not fit the local cache of "
                f"{c.local_frames} frames; use chunks of {c.chunk_frames}"
            )
        filled = min(held + frames, c.local_frames)
        begin = (c.context_frames + slot) * per_frame
        return CacheSlots(self, begin, begin + frames * per_frame, (c.context_frames + filled) * per_frame)


@dataclass(frozen=True)
class CacheSlots:
    """Where one pass writes, ``begin`` to ``end``, and how many of the first slots it sees; in tokens."""

    cache: DualCache
    begin: int
    end: int
    visible: int

    def extend(self, layer: int, k_BLHK: Tensor, v_BLHK: Tensor) -> tuple[Tensor, Tensor]:
        """Write the pass's slots; return views of what it sees."""
        k, v = self.cache.k[layer], self.cache.v[layer]
        k[:, self.begin : self.end].copy_(k_BLHK)
        v[:, self.begin : self.end].copy_(v_BLHK)
        return k[:, : self.visible], v[:, : self.visible]


def _by_channel(shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Zeros ``[B, S, heads, head_dim]`` in memory as ``[B, heads, head_dim, S]``, rows padded to 16 values."""
    batch, slots, heads, width = shape
    memory = torch.zeros((batch, heads, width, -(-slots // 16) * 16), device=device, dtype=dtype)
    return memory[..., :slots].permute(0, 3, 1, 2)


def _by_head(shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """Zeros ``[B, S, heads, head_dim]`` in memory as ``[B, heads, S, head_dim]``."""
    batch, slots, heads, width = shape
    return torch.zeros((batch, heads, slots, width), device=device, dtype=dtype).transpose(1, 2)


@dataclass(frozen=True)
class Past:
    """What one layer attends over beside its own keys and values, if anything. A block that is given one returns its
    own as results: gradients come back through them, which hooks on a module's results need to know of.
    """

    kv: tuple[Tensor, Tensor] | None

    def extend(self, layer: int, k_BLHK: Tensor, v_BLHK: Tensor) -> tuple[Tensor, Tensor]:
        """Concatenate past and own along tokens; `layer` is the one whose past this is."""
        if self.kv is None:
            return k_BLHK, v_BLHK
        return torch.cat([self.kv[0], k_BLHK], dim=1), torch.cat([self.kv[1], v_BLHK], dim=1)


class RecordingKeys:
    """Functional cache of training: every layer attends over given past keys plus its own, and its own are kept."""

    def __init__(self, past: list[tuple[Tensor, Tensor]] | None = None) -> None:
        self.past = past
        self.own: list[tuple[Tensor, Tensor]] = []

    def of(self, layer: int) -> Past:
        """What a layer sees of earlier passes. Layers come in order, as a forward does; the first begins anew."""
        if layer == 0:
            self.own = []
        return Past(None if self.past is None else self.past[layer])
