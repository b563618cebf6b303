"""The runtime's attention ``flash``: the package flash-attn 4 (CuTe) or 2, if one of them is installed.

Both read key lengths from the device: version 4 as `seqused_k`, version 2 as `cache_seqlens`. Neither is a dependency
of ShotStream.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.runtime.model.attention import Prefix, sdpa

_DTYPES = (torch.bfloat16, torch.float16)
_OLDEST = (8, 0)


class FlashAttention:
    """One of the two packages behind the contract of `runtime.model.attention`. Its 8-bit kernels are not used."""

    eight_bit = False

    def __init__(self, module: ModuleType, version: int) -> None:
        """module: ``flash_attn.cute`` for version 4, ``flash_attn`` for version 2."""
        self.module = module
        self.version = version

    def __call__(self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, mask: Tensor | None = None) -> Tensor:
        """All keys, or those of ``mask`` through torch."""
        if mask is not None:
            return sdpa(q_BLHK, k_BLHK, v_BLHK, mask)
        _check_dtype(q_BLHK)
        return _result(self.module.flash_attn_func(q_BLHK, k_BLHK, v_BLHK))

    def over_prefix(self, q_BLHK: Tensor, prefix: Prefix) -> Tensor:
        """The first ``prefix.length_1`` keys, each clip of the batch the same number; the host's is not looked at."""
        _check_dtype(q_BLHK)
        k, v, batch = prefix.k_BSHK, prefix.v_BSHK, q_BLHK.shape[0]
        length_B = prefix.length_1 if batch == 1 else prefix.length_1.repeat(batch)
        if self.version == 4:
            return _result(self.module.flash_attn_varlen_func(q_BLHK, k, v, seqused_k=length_B))
        return _result(self.module.flash_attn_with_kvcache(q_BLHK, k, v, cache_seqlens=length_B))


def make_flash_attention() -> FlashAttention:
    """The newest version that is installed; raises UserError if there is none, or no GPU for it."""
    if not torch.cuda.is_available():
        raise UserError("the attention 'flash' needs a CUDA device and torch sees none; choose another attention")
    if torch.cuda.get_device_capability() < _OLDEST:
        raise UserError("the attention 'flash' needs a GPU of capability 8.0 or newer; choose another attention")
    return find_flash_attention()


def find_flash_attention() -> FlashAttention:
    """As :func:`make_flash_attention`, without a look at the GPU."""
    for name, version, needed in (
        ("flash_attn.cute", 4, "flash_attn_varlen_func"),
        ("flash_attn", 2, "flash_attn_with_kvcache"),
    ):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        # With version 4 alone, `flash_attn` is an empty folder that can be imported.
        if hasattr(module, needed):
            return FlashAttention(module, version)
    raise UserError(
        "the attention 'flash' needs the package flash-attn-4 or flash-attn 2, and neither can be imported; install "
        "one, or choose another attention"
    )


def _result(made: Any) -> Tensor:
    """The output alone: version 4 gives the sums of exponentials too, or None in their place."""
    return made[0] if isinstance(made, tuple) else made


def _check_dtype(q_BLHK: Tensor) -> None:
    if q_BLHK.dtype not in _DTYPES:
        raise UserError(f"the attention 'flash' computes in bfloat16 or float16, not {q_BLHK.dtype}; choose another")
