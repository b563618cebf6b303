"""The runtime's attention ``triton``: `cache_attention` behind the contract of `runtime.model.attention`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from shotstream.runtime.errors import UserError


def make_attention() -> Callable[..., Tensor]:
    """The attention callable; raises UserError where Triton or a GPU that it can use is missing."""
    if importlib.util.find_spec("triton") is None:
        raise UserError("the attention 'triton' needs Triton; install shotstream[gpu], or choose another attention")
    if not torch.cuda.is_available():
        raise UserError("the attention 'triton' needs a CUDA device and torch sees none; choose another attention")
    from shotstream.kernels.attention import config

    capability = torch.cuda.get_device_capability()
    if config.nearest_architecture(capability) is None:
        name = torch.cuda.get_device_name()
        raise UserError(f"the attention 'triton' needs a GPU of capability 8.0 or newer; {name} has {capability}")
    return triton_attention


def triton_attention(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, mask: Tensor | None = None) -> Tensor:
    """All keys, or those of ``mask`` through torch: masks are for training, and the kernel knows none."""
    from shotstream.kernels.attention import config
    from shotstream.kernels.attention.wrapper import cache_attention
    from shotstream.runtime.model.attention import sdpa

    if mask is not None:
        return sdpa(q_BLHK, k_BLHK, v_BLHK, mask)
    if q_BLHK.shape[-1] not in config.HEAD_DIMS:
        raise UserError(f"the attention 'triton' knows heads of {config.HEAD_DIMS} channels, not {q_BLHK.shape[-1]}")
    return cache_attention(q_BLHK, k_BLHK, v_BLHK, k_BLHK.shape[1])
