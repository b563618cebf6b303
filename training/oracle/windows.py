"""Cuts the heroes out of frames: where a head is, from a map of cells, and windows of one scale around it.

Positions are (x, y) in pixels at 80x128, lengths world units (1 = the usual height of a character).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shotstream.training.world.camera import ZOOM
from shotstream.training.world.story import SIZES

from .slots import CELLS

DENSITY = 32  # window pixels per world unit: about what a wide shot has
LOOK = (40, 40)  # rows, columns of the window that shows how a hero looks; it follows the head
MOVE = (40, 48)  # of the window that shows what it does; it stays in place
ABOVE = 0.6  # world units of a window above the centre of the head
CELL = 8  # pixels


def pixels_per_unit(size_N: Tensor) -> Tensor:
    """Indices into SIZES [N] to the scale of the stage in pixels per world unit, at the start of the shot [N]."""
    scales = torch.tensor([80 * ZOOM[size] for size in SIZES])
    return scales[size_N]


def heads_to_cells(heads_NS2: Tensor) -> Tensor:
    """Soft targets for "where", [N, S, cells]: shares of the four nearest cells, so that the mean cell is the head."""
    rows, columns = CELLS
    flat = heads_NS2.reshape(-1, 2)
    shares = []
    for axis, count in ((1, rows), (0, columns)):
        at = (flat[:, axis] / CELL - 0.5).clamp(0, count - 1)
        steps = torch.arange(count, dtype=at.dtype)
        shares.append((1 - (at[:, None] - steps).abs()).clamp(min=0))
    cells = shares[0][:, :, None] * shares[1][:, None, :]
    return cells.reshape(*heads_NS2.shape[:-1], rows * columns)


def cells_to_heads(cells_NSP: Tensor) -> Tensor:
    """Probabilities of cells [N, S, cells] to positions [N, S, 2]: the mean of the likeliest cell and its neighbours.

    Other peaks (another hero that looks alike) do not pull on it.
    """
    rows, columns = CELLS
    best = cells_NSP.argmax(-1)[..., None]
    number = torch.arange(rows * columns, device=cells_NSP.device)
    near = ((number // columns - best // columns).abs() <= 1) & ((number % columns - best % columns).abs() <= 1)
    weight = cells_NSP * near
    weight = weight / weight.sum(-1, keepdim=True)
    x = (weight * (CELL * (number % columns + 0.5))).sum(-1)
    y = (weight * (CELL * (number // columns + 0.5))).sum(-1)
    return torch.stack((x, y), -1)


def windows(frames_NCHW: Tensor, heads_N2: Tensor, scale_N: Tensor, shape: tuple[int, int]) -> Tensor:
    """Windows [N, C, *shape] around heads, DENSITY pixels per world unit; 0 where they leave the frame.

    `scale_N` is in pixels of the frame per world unit.
    """
    rows, columns = shape
    height, width = frames_NCHW.shape[-2:]
    across = (torch.arange(columns) + 0.5 - columns / 2) / DENSITY
    down = (torch.arange(rows) + 0.5) / DENSITY - ABOVE
    x = (heads_N2[:, 0, None] + scale_N[:, None] * across) * 2 / width - 1
    y = (heads_N2[:, 1, None] + scale_N[:, None] * down) * 2 / height - 1
    n = len(heads_N2)
    grid = torch.stack((x[:, None, :].expand(n, rows, columns), y[:, :, None].expand(n, rows, columns)), -1)
    # Close-ups are shrunk by more than two: without a blur thin things would come and go.
    blurred = F.avg_pool2d(frames_NCHW, 3, 1, 1, count_include_pad=False)
    source = torch.where((scale_N > 2 * DENSITY)[:, None, None, None], blurred, frames_NCHW)
    return F.grid_sample(source, grid, align_corners=False)
