"""The sizes that kernels are compiled, tuned and measured for: those of the runtime's models, and none of their own."""

from __future__ import annotations

from dataclasses import dataclass

from shotstream.runtime.config import TINY, DiTConfig
from shotstream.runtime.presets import TINY_LATENT
from shotstream.runtime.wan import PRESET, WanSizes


@dataclass(frozen=True)
class ModelSizes:
    """A model's configuration, and height and width of one of its latent frames."""

    config: DiTConfig
    latent_size: tuple[int, int]

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        return self.config.tokens_per_frame(*self.latent_size)

    @property
    def chunk_tokens(self) -> int:
        """Tokens of one chunk: the queries of a denoising step."""
        return self.config.chunk_frames * self.tokens_per_frame

    @property
    def context_tokens(self) -> int:
        """Tokens of the context frames, which lie in front of a shot's own."""
        return self.config.context_frames * self.tokens_per_frame

    @property
    def capacity(self) -> int:
        """Slots of a layer's key and value buffer."""
        return (self.config.context_frames + self.config.local_frames) * self.tokens_per_frame


_RELEASED = WanSizes()
WAN = ModelSizes(_RELEASED.config, _RELEASED.latent_size)
EMBEDDED = ModelSizes(TINY, TINY_LATENT)
MODELS = {PRESET: WAN, "tiny": EMBEDDED}
"""By the names of the runtime's slot `model`."""
