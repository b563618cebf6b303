"""Matrix products of the fused passes: in the activations' dtype, or in eight bits with a scale per row.

The eight-bit product runs in the tensor cores where `torch._scaled_mm` takes row-wise scales (CUDA, sm_89 and
newer), and as a float32 product of the same eight-bit numbers elsewhere, so that a CPU shows its rounding.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from shotstream.runtime.graph.ops import FP8, FP8_MAX, BlockOps, Fp8Rows

_SMALLEST_AMAX = 1e-12


class Product(Protocol):
    """``x W^T + b``. `eight_bit` says what it wants to be fed: rows of eight bits, or activations as they are."""

    eight_bit: bool

    def __call__(self, x: Tensor | Fp8Rows) -> Tensor:
        """``[..., D]`` (or rows ``[L, D]``) to ``[..., N]`` (``[1, L, N]``)."""
        ...


class Dense:
    """A product in the weights' dtype."""

    eight_bit = False

    def __init__(self, weight_ND: Tensor, bias_N: Tensor | None) -> None:
        self.weight_ND = weight_ND
        self.bias_N = bias_N

    def __call__(self, x: Tensor | Fp8Rows) -> Tensor:
        assert isinstance(x, Tensor)
        return F.linear(x, self.weight_ND, self.bias_N)

    def outputs_from(self, begin: int) -> Dense:
        """The product's later outputs only; nothing is copied."""
        return Dense(self.weight_ND[begin:], None if self.bias_N is None else self.bias_N[begin:])

    @property
    def nbytes(self) -> int:
        """Of the weights."""
        return self.weight_ND.numel() * self.weight_ND.element_size()


class EightBit:
    """A product of float8_e4m3fn numbers: the weights have a scale per output channel, the rows one each."""

    eight_bit = True

    def __init__(self, weight_ND: Tensor, scale_1N: Tensor, bias_N: Tensor | None, dtype: torch.dtype) -> None:
        self.weight_ND = weight_ND
        self.scale_1N = scale_1N
        self.bias_N = bias_N
        self.dtype = dtype
        """Of the result."""
        self.native = _native(weight_ND.device, dtype)

    @classmethod
    def of(cls, weight_ND: Tensor, bias_N: Tensor | None) -> EightBit:
        """Round weights to eight bits: the largest of each output channel becomes 448."""
        amax_N1 = weight_ND.float().abs().amax(dim=1, keepdim=True).clamp(min=_SMALLEST_AMAX)
        scaled = weight_ND.float() * (FP8_MAX / amax_N1)
        values = scaled.clamp(-FP8_MAX, FP8_MAX).to(FP8)
        return cls(values, (amax_N1 / FP8_MAX).T.contiguous(), bias_N, weight_ND.dtype)

    def __call__(self, x: Tensor | Fp8Rows) -> Tensor:
        assert isinstance(x, Fp8Rows)
        if self.native:
            y = torch._scaled_mm(
                x.values_LD,
                self.weight_ND.T,
                scale_a=x.scale_L1,
                scale_b=self.scale_1N,
                bias=self.bias_N,
                out_dtype=self.dtype,
            )
        else:
            y32 = (x.values_LD.float() @ self.weight_ND.float().T) * x.scale_L1 * self.scale_1N
            y = (y32 if self.bias_N is None else y32 + self.bias_N.float()).to(self.dtype)
        return y[None]

    def outputs_from(self, begin: int) -> EightBit:
        """The product's later outputs only; nothing is copied."""
        bias_N = None if self.bias_N is None else self.bias_N[begin:]
        return EightBit(self.weight_ND[begin:], self.scale_1N[:, begin:], bias_N, self.dtype)

    @property
    def nbytes(self) -> int:
        """Of the weights and their scales."""
        return self.weight_ND.numel() + 4 * self.scale_1N.numel()


def product(weight_ND: Tensor, bias_N: Tensor | None, eight_bit: bool) -> Dense | EightBit:
    """The product in the precision asked for."""
    return EightBit.of(weight_ND, bias_N) if eight_bit else Dense(weight_ND, bias_N)


def feed(layer: Product, x: Tensor, ops: BlockOps) -> Tensor:
    """Apply the product to activations, made eight-bit first where it wants that."""
    return layer(ops.quantise(x) if layer.eight_bit else x)


def _native(device: torch.device, dtype: torch.dtype) -> bool:
    """Row-wise scaled products need sm_89 and write bfloat16."""
    return device.type == "cuda" and dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) >= (8, 9)
