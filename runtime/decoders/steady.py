"""Temporal noise reduction on latents: what changes little from one latent frame to the next is held nearly still.

A student that makes a latent frame anew flickers a little everywhere, most of all at a chunk's seam. Where a place's
change is as small as that flicker it is damped, where it is as large as motion it is let through. Recursive, so that
it can run on a stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shotstream.runtime.errors import UserError


@dataclass(frozen=True)
class Steady:
    """Changes are root mean squares over a place's channels, in units of the normalised latents.

    Below `low` the share `least` of a change is shown at once (the rest follows, if it lasts), above `high` all of it.
    """

    low: float
    high: float
    least: float

    def __post_init__(self) -> None:
        if not (0 <= self.low < self.high and 0 < self.least <= 1):
            raise UserError(
                f"steady needs 0 <= low < high and 0 < least <= 1, not {self.low}, {self.high}, {self.least}"
            )

    def __call__(self, z_BFCHW: Tensor, shown_BCHW: Tensor | None) -> Tensor:
        """The latents to show; `shown_BCHW` is the last one shown before, None at a shot's start."""
        shown = []
        for z_BCHW in z_BFCHW.unbind(1):
            shown_BCHW = z_BCHW if shown_BCHW is None else self._step(z_BCHW, shown_BCHW)
            shown.append(shown_BCHW)
        return torch.stack(shown, dim=1)

    def _step(self, z_BCHW: Tensor, shown_BCHW: Tensor) -> Tensor:
        change = z_BCHW - shown_BCHW
        # A place counts as moving if a neighbour does: outlines stay whole.
        strength = F.max_pool2d(change.square().mean(1, keepdim=True).sqrt(), 3, stride=1, padding=1)
        share = ((strength - self.low) / (self.high - self.low)).clamp(0, 1) * (1 - self.least) + self.least
        return shown_BCHW + share * change
