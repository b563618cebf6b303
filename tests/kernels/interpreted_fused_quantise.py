"""Eight-bit rows: the scales, and the scaled values before their last conversion, which the interpreter gets wrong.

What the hardware makes of that conversion is in test_fused_gpu.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from shotstream.kernels.fused import reference as ref
from shotstream.kernels.fused.gelu import gelu_tanh_fp8, gelu_tanh_fp8_kernel
from shotstream.kernels.fused.launch import block_lanes
from shotstream.kernels.fused.norm import Norm, norm_modulate_fp8, norm_modulate_kernel
from shotstream.kernels.fused.quantise import Fp8Rows, quantise_fp8_rowwise, quantise_kernel
from shotstream.kernels.fused.residual import gated_residual_norm_fp8

few = settings(max_examples=15, deadline=None, derandomize=True)


def check_rows(got: Fp8Rows, exact: Tensor) -> None:
    """The reference's scales, and almost all its values: the interpreter halves what rounds up to a power of two."""
    values, scale = ref.quantise_rowwise(exact)
    torch.testing.assert_close(got.scale_L1, scale, rtol=1e-5, atol=0)
    differing = (got.values_LD.float() - values.float()).abs() > 0.126 * values.float().abs() + 2**-9
    assert differing.float().mean() < 0.1


@few
@given(st.integers(1, 3), st.sampled_from([1, 7, 33, 192, 1536, 2049]), st.sampled_from([torch.float32, torch.float16]))
def test_each_row_fills_the_range_of_eight_bits(rows: int, width: int, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(rows, width) * torch.tensor([1e-3, 1.0, 300.0])[:rows, None]).to(kind)
    scaled, scale = torch.full(x.shape, torch.nan), torch.full((rows, 1), torch.nan)
    quantise_kernel[(rows,)](x, scaled, scale, x.stride(0), D=width, BLOCK=block_lanes(width))
    torch.testing.assert_close(scaled * scale, x.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(scaled.abs().amax(1), torch.full((rows,), 448.0), rtol=1e-6, atol=0)
    assert scaled.abs().max() <= 448
    check_rows(quantise_fp8_rowwise(x), x)


def test_a_row_of_zeros_stays_zero() -> None:
    got = quantise_fp8_rowwise(torch.zeros(2, 40))
    assert (got.values_LD.float() == 0).all()
    assert (got.scale_L1 > 0).all()


def test_behind_the_norm_the_residual_and_gelu_it_is_the_same_quantisation() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 6, 96)
    scale, shift, gate = torch.randn(3, 2, 96)
    norm = Norm(scale_ND=scale, shift_ND=shift)
    check_rows(norm_modulate_fp8(x, norm), ref.layer_norm(x, 1e-6, None, None, scale, shift))
    check_rows(gelu_tanh_fp8(x, gate[0]), ref.gelu_tanh(x, gate[0]))
    total = ref.gated_residual(x, y, gate)
    check_rows(gated_residual_norm_fp8(x, y, gate, norm), ref.layer_norm(total, 1e-6, None, None, scale, shift))
    torch.testing.assert_close(x, total)


@pytest.mark.parametrize("family", ["norm", "gelu"])
def test_scaled_values_times_their_scale_are_the_activations(family: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 50)
    scaled, scale = torch.full(x.shape, torch.nan), torch.full((3, 1), torch.nan)
    sizes: dict[str, Any] = {"D": 50, "BLOCK": 64}
    if family == "norm":
        norm_modulate_kernel[(3,)](x, None, None, None, None, scaled, scale, 50, 0, 0, 3, eps=1e-6, **sizes)
        wanted = ref.layer_norm(x, 1e-6)
    else:
        gelu_tanh_fp8_kernel[(3,)](x, None, scaled, scale, 50, **sizes)
        wanted = ref.gelu_tanh(x)
    torch.testing.assert_close(scaled * scale, wanted, rtol=1e-5, atol=1e-6)


def test_outputs_of_another_size_are_refused() -> None:
    x = torch.randn(4, 32)
    right = quantise_fp8_rowwise(x)
    assert quantise_fp8_rowwise(x, out=right) is not None
    with pytest.raises(ValueError, match="values_LD has shape"):
        quantise_fp8_rowwise(x, out=Fp8Rows(right.values_LD[:3], right.scale_L1))
    with pytest.raises(ValueError, match="scale_L1 has shape"):
        quantise_fp8_rowwise(x, out=Fp8Rows(right.values_LD, right.scale_L1[:, 0]))
    with pytest.raises(ValueError, match="values_LD is torch"):
        quantise_fp8_rowwise(x, out=Fp8Rows(x, right.scale_L1))
