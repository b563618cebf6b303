"""The sizes that kernels are compiled, tuned and measured for: those of the runtime's models.

Torch-free. The latent sizes stand here once more because the files that own them (`runtime/wan.py` and
`runtime/presets.py`) import packages that a machine for measuring kernels need not have; a test holds them equal.
"""

from __future__ import annotations

from dataclasses import dataclass

from shotstream.runtime.config import TINY, WAN_1_3B, DiTConfig


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


WAN = ModelSizes(WAN_1_3B, (60, 104))
"""`wan-1.3b` at 480 x 832 pixels."""
EMBEDDED = ModelSizes(TINY, (10, 16))
"""`tiny` at 160 x 256 pixels."""
MODELS = {"wan-1.3b": WAN, "tiny": EMBEDDED}
"""By the names of the runtime's slot `model`."""
