"""Attention over ``[B, L, heads, head_dim]`` tensors: the plain torch backend and the contract that others fulfil."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Attention(Protocol):
    """Unmasked (or boolean-masked) softmax attention with scale ``1/sqrt(head_dim)``."""

    def __call__(self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``[B, Lq, heads, head_dim]``; ``mask`` is True where a query may see a key, ``[Lq, Lk]``."""
        ...


def sdpa(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, mask: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention`` in our layout."""
    out = F.scaled_dot_product_attention(
        q_BLHK.transpose(1, 2), k_BLHK.transpose(1, 2), v_BLHK.transpose(1, 2), attn_mask=mask
    )
    return out.transpose(1, 2)


def matmul_softmax(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, mask: Tensor | None = None) -> Tensor:
    """Two matrix products around a softmax: the quickest to differentiate on a CPU, where the fused backward is
    slow.
    """
    q, k, v = (x.transpose(1, 2) for x in (q_BLHK, k_BLHK, v_BLHK))
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.matmul(scores.softmax(-1, dtype=scores.dtype), v).transpose(1, 2)
