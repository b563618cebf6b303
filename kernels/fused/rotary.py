"""Rotary tables of a chunk, at an address that stays: a captured graph reads the same memory for every chunk.

The angles are the runtime's own (`runtime/model/rope.py`: float64, the temporal jump of the shot included); what is
added here is where they go. Made once per chunk, read by every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.model.rope import rope_table


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines ``[B, L, 1, K/2]`` float32 of L tokens in frame, row, column order."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def empty(
        cls, config: DiTConfig, frames: int, height: int, width: int, device: torch.device | str = "cpu", batch: int = 1
    ) -> RotaryTable:
        """Room for a pass of this many latent frames of `height` x `width` tokens; filled with no turn at all."""
        shape = (batch, frames * height * width, 1, config.head_dim // 2)
        return cls(torch.ones(shape, device=device), torch.zeros(shape, device=device))

    def fill(
        self, config: DiTConfig, positions_BF: Tensor, flags_BF: Tensor | None, height: int, width: int
    ) -> RotaryTable:
        """Write the angles of frames at these time indices and shot numbers (None: no jump); returns itself.

        Raises ValueError when the frames do not fill the table exactly.
        """
        cos, sin = rope_table(positions_BF, flags_BF, height, width, config.head_dim, config.jump)
        if cos.shape != self.cos.shape:
            raise ValueError(f"the table holds {list(self.cos.shape)} and the frames need {list(cos.shape)}")
        self.cos.copy_(cos)
        self.sin.copy_(sin)
        return self
