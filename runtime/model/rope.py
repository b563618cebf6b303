"""Rotary position embedding over time, height and width, with the phase jump between shots.

Source: reference ``wan/modules/causal_model.py``. Angles are made in float64, tables are
float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """How many complex pairs of a head go to time, height and width: 22, 21, 21 for a head of 128."""
    pairs = head_dim // 2
    side = pairs // 3
    return pairs - 2 * side, side, side


def _ladder(pairs: int, device: torch.device) -> Tensor:
    return 10000.0 ** (-torch.arange(pairs, dtype=torch.float64, device=device) / pairs)


def rope_table(
    positions_BF: Tensor,
    flags_BF: Tensor | None,
    height: int,
    width: int,
    head_dim: int,
    jump: float,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[B, F*height*width, 1, head_dim/2]``, float32, for tokens in frame, row, column order.

    ``positions_BF`` are time indices; ``flags_BF`` are shot numbers whose multiple of ``jump`` radians is added to
    every
    time pair alike (not scaled by the pair's frequency), or None for the plain table.
    """
    device = positions_BF.device
    n_time, n_row, n_col = axis_pairs(head_dim)
    batch, frames = positions_BF.shape
    time = positions_BF.double()[..., None] * _ladder(n_time, device)
    if flags_BF is not None:
        # The reference multiplies an int32 flag by a Python float, i.e. in float32.
        time = time + (flags_BF.float() * jump).double()[..., None]
    row = torch.arange(height, dtype=torch.float64, device=device)[:, None] * _ladder(n_row, device)
    col = torch.arange(width, dtype=torch.float64, device=device)[:, None] * _ladder(n_col, device)
    shape = (batch, frames, height, width, -1)
    angle = torch.cat(
        [
            time[:, :, None, None].expand(shape),
            row[None, None, :, None].expand(shape),
            col[None, None, None].expand(shape),
        ],
        dim=-1,
    ).reshape(batch, frames * height * width, 1, head_dim // 2)
    return angle.cos().float(), angle.sin().float()


def rotate(x_BLHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent channel pairs ``(2i, 2i+1)`` in float32; the result has the input's dtype."""
    pair = x_BLHK.float().unflatten(-1, (-1, 2))
    re, im = pair[..., 0], pair[..., 1]
    return torch.stack((re * cos - im * sin, re * sin + im * cos), dim=-1).flatten(-2).to(x_BLHK.dtype)
