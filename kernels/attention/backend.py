"""The runtime's attention ``triton``: `cache_attention` behind the contract of `runtime.model.attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from shotstream.kernels.gpu import EIGHT_BIT, require_gpu
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.attention import Prefix, sdpa


class TritonAttention:
    """Attention over all keys, or over as many as a number on the device says."""

    def __init__(self, eight_bit: bool = True) -> None:
        """eight_bit: whether the hardware knows float8_e4m3fn; if not, such buffers are widened by the caller."""
        self.eight_bit = eight_bit

    def __call__(self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, mask: Tensor | None = None) -> Tensor:
        """All keys, or those of ``mask`` through torch: masks are for training, and the kernel knows none."""
        from shotstream.kernels.attention.wrapper import cache_attention

        if mask is not None:
            return sdpa(q_BLHK, k_BLHK, v_BLHK, mask)
        _check_width(q_BLHK)
        return cache_attention(q_BLHK, k_BLHK, v_BLHK, k_BLHK.shape[1])

    def over_prefix(self, q_BLHK: Tensor, prefix: Prefix) -> Tensor:
        """The first ``prefix.length_1`` keys; ``prefix.filled`` is not looked at."""
        from shotstream.kernels.attention.scales import Scales
        from shotstream.kernels.attention.wrapper import cache_attention

        _check_width(q_BLHK)
        k, v, length = prefix.k_BSHK, prefix.v_BSHK, prefix.length_1
        if prefix.k_scale_H is None or prefix.v_scale_H is None:
            return cache_attention(q_BLHK, k, v, length)
        # Rounded to eight bits a moment later; float16 holds all that a norm over the channels can leave.
        q = q_BLHK.half() if q_BLHK.dtype == torch.float32 else q_BLHK
        out = torch.empty_like(q_BLHK, memory_format=torch.contiguous_format)
        return cache_attention(q, k, v, length, scales=Scales(prefix.k_scale_H, prefix.v_scale_H), out=out)


def make_attention() -> TritonAttention:
    """The attention for the current GPU; raises UserError where Triton or a GPU that it can use is missing."""
    return TritonAttention(require_gpu("attention") >= EIGHT_BIT)


def _check_width(q_BLHK: Tensor) -> None:
    from shotstream.kernels.attention import config

    if q_BLHK.shape[-1] not in config.HEAD_DIMS:
        raise UserError(f"the attention 'triton' knows heads of {config.HEAD_DIMS} channels, not {q_BLHK.shape[-1]}")
