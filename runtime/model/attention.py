"""Attention over ``[B, L, heads, head_dim]`` tensors: the plain torch backend and the contract that others fulfil."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor


class Attention(Protocol):
    """Unmasked (or boolean-masked) softmax attention with scale ``1/sqrt(head_dim)``."""

    def __call__(self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return ``[B, Lq, heads, head_dim]``; ``mask`` is True where a query may see a key, ``[Lq, Lk]``."""
        ...


@dataclass(frozen=True)
class Spans:
    """A mask of few whole stretches of tokens: ``rows`` are queries ``[begin, end)`` in order, which together are all,
    each with the stretches of keys that these see. Nothing is computed for keys that nobody sees.
    """

    rows: tuple[tuple[int, int, tuple[tuple[int, int], ...]], ...]

    def dense(self) -> Tensor:
        """The same as ``[queries, keys]`` bool, True where a query may see a key; the last key is seen by one."""
        keys = max(last for _, _, seen in self.rows for _, last in seen)
        mask = torch.zeros(self.rows[-1][1], keys, dtype=torch.bool)
        for begin, end, seen in self.rows:
            for first, last in seen:
                mask[begin:end, first:last] = True
        return mask


@dataclass(frozen=True)
class Prefix:
    """The filled part of a key and value buffer ``[B, S, heads, head_dim]``, for one pass and layer.

    length_1: how many slots are filled, int32 on the device. filled: the same number, known to the host. k_scale_H,
    v_scale_H: of float8_e4m3fn buffers, whose numbers times the head's scale are the values.
    """

    k_BSHK: Tensor
    v_BSHK: Tensor
    length_1: Tensor
    filled: int
    k_scale_H: Tensor | None = None
    v_scale_H: Tensor | None = None


@runtime_checkable
class PrefixAttention(Protocol):
    """What a backend may offer beside the plain call.

    One that reads the length from the device when it runs serves every fill level with one captured graph; of others
    the engine captures one graph per fill level. eight_bit: whether it takes float8 buffers.
    """

    eight_bit: bool

    def over_prefix(self, q_BLHK: Tensor, prefix: Prefix) -> Tensor:
        """Attention over the first ``prefix.length_1`` keys; ``prefix.filled`` must not matter."""
        ...


def attend(attention: Attention, q_BLHK: Tensor, prefix: Prefix) -> Tensor:
    """Attention over a prefix by any backend: by the length on the device, or by a slice of the buffers."""
    if isinstance(attention, PrefixAttention) and (attention.eight_bit or prefix.k_scale_H is None):
        return attention.over_prefix(q_BLHK, prefix)
    k, v = prefix.k_BSHK[:, : prefix.filled], prefix.v_BSHK[:, : prefix.filled]
    if prefix.k_scale_H is not None and prefix.v_scale_H is not None:
        k = (k.float() * prefix.k_scale_H[:, None]).to(q_BLHK.dtype)
        v = (v.float() * prefix.v_scale_H[:, None]).to(q_BLHK.dtype)
    return attention(q_BLHK, k, v)


def attend_masked(
    attention: Attention, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, mask: Tensor | Spans | None
) -> Tensor:
    """Attention by any backend behind either kind of mask."""
    if not isinstance(mask, Spans):
        return attention(q_BLHK, k_BLHK, v_BLHK, mask)
    made = []
    for begin, end, seen in mask.rows:
        keys, values = (torch.cat([x[:, first:last] for first, last in seen], dim=1) for x in (k_BLHK, v_BLHK))
        made.append(attention(q_BLHK[:, begin:end], keys, values))
    return torch.cat(made, dim=1)


def reads_device_length(attention: Attention, eight_bit: bool) -> bool:
    """Whether :func:`attend` ignores the host's idea of the length for such buffers."""
    return isinstance(attention, PrefixAttention) and (attention.eight_bit or not eight_bit)


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
