"""Cache attention in plain torch: what the kernels are measured against. Exact, slow, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from shotstream.kernels.attention.scales import Scales


def reference_attention(
    q_BLHK: Tensor,
    k_BSHK: Tensor,
    v_BSHK: Tensor,
    length: Tensor | int,
    *,
    scales: Scales | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Softmax attention over the first ``length`` keys, computed and returned in ``dtype`` as ``[B, L, H, K]``.

    Keys behind ``length`` are not read. A length of 0 gives zeros, as the kernels do.
    """
    count = int(length)
    if count == 0:
        return torch.zeros_like(q_BLHK, dtype=dtype)
    q_BHLK = q_BLHK.to(dtype).transpose(1, 2)
    k_BHSK = k_BSHK[:, :count].to(dtype).transpose(1, 2)
    v_BHSK = v_BSHK[:, :count].to(dtype).transpose(1, 2)
    if scales is not None:
        k_BHSK = k_BHSK * scales.k_H.to(dtype)[:, None, None]
        v_BHSK = v_BHSK * scales.v_H.to(dtype)[:, None, None]
        if scales.q_H is not None:
            q_BHLK = q_BHLK * scales.q_H.to(dtype)[:, None, None]
    scores = torch.matmul(q_BHLK, k_BHSK.transpose(-1, -2)) * q_BLHK.shape[-1] ** -0.5
    return torch.matmul(scores.softmax(-1), v_BHSK).transpose(1, 2)
