"""Attention over ``[B, L, heads, head_dim]`` tensors: the plain torch backend and the contract that others fulfil."""

from __future__ import annotations

from typing import Protocol

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
