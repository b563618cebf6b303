"""Damages renders as a codec or a weak model would, so that the reader learns from such frames too."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT = 3  # pixels


def damage(frames_NTCHW: Tensor, heads_NTS2: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blur, blocks, noise, smear over time, a colour cast and a small shift, each on part of the shots.

    Frames in -1..1; the heads (pixels) are shifted along. What is drawn for a shot holds for all its frames, but for
    the noise: a frozen shot stays frozen.
    """
    n, t, _, height, width = frames_NTCHW.shape

    def draw() -> Tensor:
        return torch.rand(n, 1, 1, 1, 1, generator=generator)

    def some(part: float) -> Tensor:
        return (draw() < part).float()

    dy, dx = (int(v) for v in torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator))
    x = F.pad(frames_NTCHW.flatten(0, 1), (SHIFT,) * 4, mode="replicate")
    x = x[:, :, SHIFT + dy : SHIFT + dy + height, SHIFT + dx : SHIFT + dx + width]
    scale = float(torch.empty(1).uniform_(1.3, 2.6, generator=generator))
    small = F.interpolate(x, size=(round(height / scale), round(width / scale)), mode="area")
    blurred = F.interpolate(small, size=(height, width), mode="bilinear")
    blocks = F.interpolate(F.avg_pool2d(x, 8), scale_factor=8.0, mode="nearest")
    x, blurred, blocks = (one.unflatten(0, (n, t)) for one in (x, blurred, blocks))
    x = torch.lerp(x, blurred, some(0.4) * draw())
    x = torch.lerp(x, blocks, some(0.3) * 0.45 * draw())
    before = torch.cat((x[:, :1], x[:, :-1]), 1)
    x = torch.lerp(x, before, some(0.2) * 0.4 * draw())
    coarse = torch.randn(n, 3, height // 8, width // 8, generator=generator)
    stain = F.interpolate(coarse, size=(height, width), mode="bilinear")[:, None]
    x = x + some(0.3) * 0.12 * stain
    noisy = (some(0.4) * 0.12 * draw()).flatten()
    for i in noisy.nonzero().flatten().tolist():
        x[i] += noisy[i] * torch.randn(x[i].shape, generator=generator)
    cast = 1 + 0.06 * torch.randn(n, 1, 3, 1, 1, generator=generator)
    light = 0.04 * torch.randn(n, 1, 1, 1, 1, generator=generator)
    return ((x + 1) * cast - 1 + light).clamp(-1, 1), heads_NTS2 - torch.tensor([dx, dy], dtype=heads_NTS2.dtype)
