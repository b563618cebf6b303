"""Keys and values in float8: the scales that go with them, and tensors laid out as the tensor cores want them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shotstream.runtime.graph.ops import FP8, FP8_MAX


@dataclass(frozen=True)
class Scales:
    """Per-head float32 scales, ``[H]``: value = stored float8 * scale. ``q_H`` only where q is float8 as well."""

    k_H: Tensor
    v_H: Tensor
    q_H: Tensor | None = None


def quantise(x_BSHK: Tensor) -> tuple[Tensor, Tensor]:
    """``[B, S, H, K]`` as float8_e4m3 with one scale per head: for tests and benchmarks; returns it and ``[H]``."""
    scale_H = (x_BSHK.float().abs().amax(dim=(0, 1, 3)) / FP8_MAX).clamp(min=1e-12)
    scaled = (x_BSHK.float() / scale_H[:, None]).clamp(-FP8_MAX, FP8_MAX)
    return scaled.to(FP8), scale_H


def empty_values(batch: int, capacity: int, heads: int, head_dim: int, device: torch.device | str) -> Tensor:
    """A float8 buffer ``[B, S, H, K]`` whose keys lie next to each other in memory, as ``[B, H, K, S]``.

    The float8 products of sm_90 read the values along the keys; only values laid out so need no transpose in the
    kernel. Rows are padded to 16 bytes, as the copy engine wants.
    """
    padded = -(-capacity // 16) * 16
    memory = torch.empty((batch, heads, head_dim, padded), dtype=FP8, device=device)
    return memory[..., :capacity].permute(0, 3, 1, 2)
