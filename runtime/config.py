"""Sizes and constants of a model as frozen dataclasses. No behaviour beyond derived sizes and (de)serialisation.

Letters used for tensor shapes all over the project:
B batch, F latent frames, C latent channels, H/W latent height and width, T tokens per latent frame, L tokens of a
sequence, D model width, N captions, and in attention H heads, K head width (as in ``q_BLHK``).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from shotstream.runtime.errors import UserError


@dataclass(frozen=True)
class DiTConfig:
    """One transformer, student and teacher alike (reference ``wan/configs/wan_t2v_1_3B.py``).

    ``jump`` is the phase in radians that the temporal rotary angle gains per shot, ``shift`` the flow-matching shift
    of the noise table, ``nominal_steps`` the student's denoising steps before warping.
    """

    dim: int
    heads: int
    ffn_dim: int
    layers: int
    freq_dim: int = 256
    channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    text_len: int = 512
    text_dim: int = 4096
    eps: float = 1e-6
    jump: float = 1 / 6
    chunk_frames: int = 3
    context_frames: int = 6
    local_frames: int = 21
    sink_frames: int = 0
    shift: float = 8.0
    nominal_steps: tuple[int, ...] = (1000, 740, 500, 260)
    context_noise: float = 0.0
    """Timestep, 0 to 1000, of the clean pass: finished chunks are remembered with this much noise mixed in."""
    noise_offset: float = 0.0
    """Share, 0 to 1, of the noise's variance that all patches of a shot have in common (offset noise, of signs)."""

    def __post_init__(self) -> None:
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise UserError(f"dim {self.dim} must split into {self.heads} heads of even width; change dim or heads")
        if self.patch[0] != 1:
            raise UserError(f"patch {self.patch} must not span several latent frames; use (1, height, width)")
        if not 0 <= self.context_noise <= 1000:
            raise UserError(f"context_noise {self.context_noise} is a timestep; it must lie in 0 to 1000")
        if not 0 <= self.noise_offset <= 1:
            raise UserError(
                f"noise_offset {self.noise_offset} is a share of the noise's variance; it must lie in 0 to 1"
            )
        falling = (1001, *self.nominal_steps, 0)
        if len(falling) < 3 or any(later >= earlier for earlier, later in pairwise(falling)):
            raise UserError(
                f"nominal_steps {list(self.nominal_steps)} must be one or more, falling from 1000 at most to above 0"
            )
        ring = self.local_frames - self.sink_frames
        if ring < self.chunk_frames or ring % self.chunk_frames:
            raise UserError(
                f"local_frames {self.local_frames} less sink_frames {self.sink_frames} must be a multiple of "
                f"chunk_frames {self.chunk_frames}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.heads

    def tokens_per_frame(self, height: int, width: int) -> int:
        """Tokens of one latent frame of ``height`` x ``width`` latents."""
        if height % self.patch[1] or width % self.patch[2]:
            raise UserError(f"latents of {height}x{width} do not split into patches of {self.patch[1:]}")
        return (height // self.patch[1]) * (width // self.patch[2])

    def to_json(self) -> str:
        """Compact json, as stored in the metadata of our safetensors files."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> DiTConfig:
        """Inverse of :meth:`to_json`; raises :class:`UserError` on unknown or missing fields."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DiTConfig:
        """Build from a plain mapping (yaml, json); lists become tuples."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(f"model configuration has unknown keys {unknown}; known are {sorted(known)}")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            return cls(**plain)
        except TypeError as error:
            raise UserError(f"model configuration is incomplete: {error}") from error


TINY = DiTConfig(dim=256, heads=4, ffn_dim=1024, layers=8, channels=32, text_len=48, text_dim=192, shift=3.0)
WAN_1_3B = DiTConfig(dim=1536, heads=12, ffn_dim=8960, layers=30)
