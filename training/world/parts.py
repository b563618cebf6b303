"""Where things are in a frame, as the painters know it: how much of every cell belongs to which part of the scene.

The same painters draw it as draw the picture, on a canvas that keeps shares of parts instead of colours. The teacher
stage uses it as a second target for its middle layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .raster import Array, Canvas, Color
from .render import paint_shot
from .story import SPECIES, Story

SCENERY_PARTS = ("sky", "sun", "cloud", "far", "ground", "house", "tree", "shadow")
FIGURE_PARTS = ("body", "head", "face", "accessory")
PARTS = (*SCENERY_PARTS, *(f"{species} {part}" for species in SPECIES for part in FIGURE_PARTS))
"""All parts; those of figures by species, because what makes a cat's head a cat's is the point."""
_INDEX = {part: i for i, part in enumerate(PARTS)}


class PartCanvas(Canvas):
    """A canvas whose planes are the shares of :data:`PARTS`, ``[len(PARTS), F, H, W]``, summing to one."""

    def __init__(self, frames: int, height: int, width: int) -> None:
        super().__init__(frames, height, width)
        self._pixels_CFHW = np.zeros((len(PARTS), 1, height, width), np.float32)

    def gradient(self, top: Color, bottom: Color, until: float) -> None:
        self._pixels_CFHW[_INDEX[self.part]] = 1.0

    def shares(self, rows: int, columns: int) -> NDArray[np.float32]:
        """Mean shares in a grid of cells, ``[F, rows, columns, len(PARTS)]``."""
        count, frames = self._pixels_CFHW.shape[:2]
        cells = self._pixels_CFHW.reshape(count, frames, rows, self.height // rows, columns, self.width // columns)
        means = np.ascontiguousarray(cells.mean((3, 5)).transpose(1, 2, 3, 0))
        return np.repeat(means, self.frames, axis=0) if len(means) != self.frames else means

    def _blend(self, region_CFHW: Array, cover_FHW: Array, color: Color) -> None:
        region_CFHW *= 1.0 - cover_FHW
        region_CFHW[_INDEX[self.part]] += cover_FHW


def part_shares(story: Story, k: int, frames: Sequence[int], rows: int = 10, columns: int = 16) -> NDArray[np.uint8]:
    """Shares of :data:`PARTS` in 255ths, uint8 ``[F, rows, columns, len(PARTS)]``, for these frames of shot k.

    Painted at 40x64, which is enough to know what fills a cell.
    """
    canvas = PartCanvas(len(frames), 40, 64)
    paint_shot(canvas, story, k, np.asarray(frames, np.float64))
    return np.round(canvas.shares(rows, columns) * 255).astype(np.uint8)
