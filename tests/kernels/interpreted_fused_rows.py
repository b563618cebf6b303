"""The row kernels through Triton's interpreter, in float32 and float16, against float32 torch over odd shapes.

The interpreter computes 16-bit floats of the other kind (bfloat16) wrongly and says nothing: those are in
test_fused_gpu.py.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")
from shotstream.kernels.fused import reference as ref
from shotstream.kernels.fused.gelu import gelu_tanh
from shotstream.kernels.fused.norm import Norm, norm_modulate
from shotstream.kernels.fused.residual import gated_residual, gated_residual_norm
from shotstream.kernels.fused.rms import rms_norm

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3}
"""Relative to the largest magnitude: a few float32 roundings, or the one rounding of a float16 store."""

widths = st.one_of(st.integers(1, 70), st.sampled_from([192, 1536, 1601, 2049]))
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
"""The interpreter computes with numpy, which warns where a GPU goes to infinity in silence."""

kinds = st.sampled_from([torch.float32, torch.float16])
few = settings(max_examples=20, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assert_close(got: Tensor, wanted: Tensor) -> None:
    """Equal up to the rounding of got's dtype; nothing unwritten (outputs are poisoned with NaN)."""
    bound = TOLERANCE[got.dtype] * max(1.0, wanted.abs().max().item())
    torch.testing.assert_close(got.float(), wanted.to(got.dtype).float(), atol=bound, rtol=0)


def poisoned(x: Tensor) -> Tensor:
    return torch.full(x.shape, torch.nan, dtype=x.dtype)


@few
@given(st.integers(1, 3), st.integers(1, 3), widths, kinds, st.booleans(), st.booleans())
def test_norm_with_affine_and_modulation_per_frame(
    frames: int, tokens: int, width: int, kind: torch.dtype, affine: bool, modulated: bool
) -> None:
    x = (3 * torch.randn(1, frames, tokens, width) + 5).to(kind)
    weight, bias = (torch.randn(width).to(kind) for _ in range(2)) if affine else (None, None)
    scale, shift = torch.randn(1, frames, 2, width).to(kind).unbind(2) if modulated else (None, None)
    got = norm_modulate(x, Norm(1e-6, weight, bias, scale, shift), out=poisoned(x))
    assert_close(got, ref.layer_norm(x, 1e-6, weight, bias, scale, shift))


@few
@given(st.integers(1, 3), st.integers(1, 3), widths, kinds, st.booleans())
def test_residual_with_a_gate_per_frame(frames: int, tokens: int, width: int, kind: torch.dtype, gated: bool) -> None:
    x, y = torch.randn(2, frames * tokens, width).to(kind)
    gate = torch.randn(frames, width).to(kind) if gated else None
    wanted = ref.gated_residual(x, y, gate)
    got = gated_residual(x, y, gate)
    assert got is x
    assert_close(x, wanted)


@few
@given(st.integers(1, 3), st.integers(1, 3), widths, kinds, st.booleans(), st.booleans())
def test_residual_and_norm_in_one_are_the_two_of_them(
    frames: int, tokens: int, width: int, kind: torch.dtype, gated: bool, affine: bool
) -> None:
    x, y = torch.randn(2, frames * tokens, width).to(kind)
    gate = torch.randn(frames, width).to(kind) if gated else None
    one, two = torch.randn(2, frames, width).to(kind)
    apart_by_three = torch.stack([one, two, one], dim=1)  # scale, shift and gate each have a stride of their own
    norm = Norm(weight_D=one[0], bias_D=two[0]) if affine else Norm(scale_ND=one, shift_ND=apart_by_three[:, 1])
    apart = x.clone()
    wanted = norm_modulate(gated_residual(apart, y, gate), norm)
    got = gated_residual_norm(x, y, gate, norm, out=poisoned(x))
    assert torch.equal(x, apart)
    assert torch.equal(got, wanted)


@few
@given(st.integers(1, 4), widths, kinds, st.booleans())
def test_rms_norm(rows: int, width: int, kind: torch.dtype, biased: bool) -> None:
    x = torch.randn(rows, width).to(kind)
    weight = torch.randn(width).to(kind)
    bias = torch.randn(width).to(kind) if biased else None
    assert_close(rms_norm(x, weight, bias_D=bias, out=poisoned(x)), ref.rms_norm(x, weight, 1e-6, bias))


@few
@given(st.integers(1, 4), widths, kinds, st.booleans())
def test_gelu(rows: int, width: int, kind: torch.dtype, biased: bool) -> None:
    x = (4 * torch.randn(rows, width)).to(kind)
    bias = torch.randn(width).to(kind) if biased else None
    assert_close(gelu_tanh(x, bias, out=poisoned(x)), ref.gelu_tanh(x, bias))


def test_gelu_of_large_numbers_is_themselves_or_zero() -> None:
    x = torch.tensor([[-1e30, -1e4, -60.0, -8.0, 0.0, 8.0, 60.0, 1e4, 1e30]])
    torch.testing.assert_close(gelu_tanh(x), x.clamp(min=0), atol=1e-12, rtol=0)


def test_a_mean_far_above_the_deviations_costs_no_digits() -> None:
    x = 1000 + torch.randn(4, 1536)
    exact = torch.nn.functional.layer_norm(x.double(), (1536,), eps=1e-6).float()
    torch.testing.assert_close(norm_modulate(x, Norm()), exact, atol=3e-4, rtol=0)


def test_rows_may_lie_apart_and_outputs_may_be_the_input() -> None:
    wide = torch.randn(6, 100)
    kept = wide.clone()
    x, modulation = wide[:, 10:73], torch.randn(2, 6, 63)
    norm = Norm(scale_ND=modulation[:, 1], shift_ND=torch.randn(2, 63))
    assert_close(norm_modulate(x, norm), ref.layer_norm(x, 1e-6, None, None, norm.scale_ND, norm.shift_ND))
    gated_residual(x, x.clone(), modulation[:, 2])
    assert_close(x, ref.gated_residual(kept[:, 10:73], kept[:, 10:73], modulation[:, 2]))
    assert torch.equal(wide[:, :10], kept[:, :10])
    assert torch.equal(wide[:, 73:], kept[:, 73:])
    y = torch.randn(3, 33)
    wanted = ref.gelu_tanh(y)
    assert_close(gelu_tanh(y, out=y), wanted)


def test_what_does_not_fit_is_refused_in_words() -> None:
    x = torch.randn(6, 32)
    refused = {
        "scale_ND has 4 vectors, over which 6 rows": lambda: norm_modulate(x, Norm(scale_ND=torch.randn(4, 32))),
        "scale_ND has 31 channels": lambda: norm_modulate(x, Norm(scale_ND=torch.randn(2, 31))),
        "different numbers of vectors": lambda: norm_modulate(x, Norm(1e-6, None, None, x[:2], x[:3])),
        "weight_D has shape": lambda: norm_modulate(x, Norm(weight_D=torch.randn(33))),
        "x is torch.int64": lambda: norm_modulate(x.long(), Norm()),
        "contiguous along its last axis": lambda: norm_modulate(torch.randn(32, 6).T, Norm()),
        "evenly spaced rows": lambda: norm_modulate(torch.randn(4, 6, 32)[:, :5], Norm()),
        "out must be contiguous": lambda: norm_modulate(x, Norm(), out=torch.randn(6, 64)[:, :32]),
        "out has shape": lambda: norm_modulate(x, Norm(), out=torch.randn(5, 32)),
        "at least one row": lambda: norm_modulate(x[:0], Norm()),
        "y has shape": lambda: gated_residual(x, x[:3]),
        "rows overlap": lambda: gated_residual(x[:1].expand(6, 32), x),
        "out is x": lambda: gated_residual_norm(x, x, None, Norm(), out=x),
        "bias_D is on meta": lambda: gelu_tanh(x, torch.empty(32, device="meta")),
        "weight_D is torch.float64": lambda: rms_norm(x, torch.ones(32).double()),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message):
            call()
