"""The runtime's operations `triton`: the small kernels of `fused/` behind the contract `runtime.graph.ops.BlockOps`.

Importing this module imports Triton; the plugin asks first whether that can work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from shotstream.kernels.fused.gelu import gelu_tanh, gelu_tanh_fp8
from shotstream.kernels.fused.noise import draw_normal
from shotstream.kernels.fused.norm import norm_modulate, norm_modulate_fp8
from shotstream.kernels.fused.prologue import kv_prologue, qk_prologue
from shotstream.kernels.fused.quantise import quantise_fp8_rowwise
from shotstream.kernels.fused.residual import gated_residual_norm, gated_residual_norm_fp8
from shotstream.kernels.fused.rms import rms_norm
from shotstream.kernels.gpu import EIGHT_BIT
from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.ops import CacheWriter, Fp8Rows, Norm

P = ParamSpec("P")
T = TypeVar("T")


class TritonOps:
    """Each operation in one pass over memory. Tensors lie on the device that it was made for."""

    name = "triton"

    def __init__(self, device: torch.device, eight_bit: bool = True) -> None:
        """eight_bit: whether the device knows float8_e4m3fn; without it, what ends in eight bits is a UserError."""
        self.device = device
        self.eight_bit = eight_bit

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        return self._here(norm_modulate, x, norm)

    def norm_fp8(self, x: Tensor, norm: Norm) -> Fp8Rows:
        return self._eight_bit(norm_modulate_fp8, x, norm)

    def residual_norm(self, x: Tensor, y: Tensor, gate_ND: Tensor | None, norm: Norm) -> Tensor:
        return self._here(gated_residual_norm, x, y, gate_ND, norm)

    def residual_norm_fp8(self, x: Tensor, y: Tensor, gate_ND: Tensor | None, norm: Norm) -> Fp8Rows:
        return self._eight_bit(gated_residual_norm_fp8, x, y, gate_ND, norm)

    def prologue(
        self,
        qkv_BLP: Tensor,
        norms: tuple[Tensor, Tensor],
        table: tuple[Tensor, Tensor],
        cache: CacheWriter,
        eps: float,
    ) -> Tensor:
        run = self._here if cache.k_scale_H is None else self._eight_bit
        return run(qk_prologue, qkv_BLP, norms, table, cache, eps=eps)

    def kv_prologue(
        self, kv_BLP: Tensor, norm_k_D: Tensor, table: tuple[Tensor, Tensor], cache: CacheWriter, eps: float
    ) -> None:
        run = self._here if cache.k_scale_H is None else self._eight_bit
        run(kv_prologue, kv_BLP, norm_k_D, table, cache, eps=eps)

    def rms(self, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        return self._here(rms_norm, x, weight_D, eps=eps)

    def gelu(self, x: Tensor) -> Tensor:
        """In place: 84 MB of a real chunk that need not be allocated twice."""
        return self._here(gelu_tanh, x, out=x if x.is_contiguous() else None)

    def gelu_fp8(self, x: Tensor) -> Fp8Rows:
        return self._eight_bit(gelu_tanh_fp8, x)

    def quantise(self, x: Tensor) -> Fp8Rows:
        return self._eight_bit(quantise_fp8_rowwise, x)

    def draw(self, out: Tensor, seed: int, shot: int, chunk: int, step: int) -> None:
        self._here(draw_normal, out, seed, shot, chunk, step)

    def _here(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Triton launches on the current device, whatever device the tensors are on."""
        with torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext():
            return call(*args, **kwargs)

    def _eight_bit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if not self.eight_bit:
            needed = ".".join(map(str, EIGHT_BIT))
            raise UserError(f"eight bits need a GPU of capability {needed} or newer; run the engine with fp8 'none'")
        return self._here(call, *args, **kwargs)
