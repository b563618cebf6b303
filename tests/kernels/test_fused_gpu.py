"""The small kernels on a GPU, at the real sizes: bfloat16, eight bits, races, graphs. ``pytest -m gpu tests/kernels``.

Our error against float32 is held to that of what the transformer writes in torch in the same dtype, which rounds more
often.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from shotstream.kernels.fused import reference as ref
from shotstream.kernels.fused.bench_cases import REAL, Case, cases
from shotstream.kernels.fused.gelu import gelu_tanh
from shotstream.kernels.fused.norm import Norm, norm_modulate, norm_modulate_fp8
from shotstream.kernels.fused.prologue import CacheWriter, qk_prologue
from shotstream.kernels.fused.quantise import quantise_fp8_rowwise
from shotstream.kernels.fused.residual import gated_residual_norm
from shotstream.kernels.fused.rms import rms_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BF16 = torch.bfloat16
eight_bits = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="no float8 on this GPU"
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def real_cases(name: str) -> Case:
    found = cases(REAL, torch.device("cuda"), BF16, torch.cuda.get_device_capability() >= (8, 9))
    return next(case for case in found if case.name == name)


def error(got: Tensor, exact: Tensor) -> float:
    assert torch.isfinite(got.float()).all()
    return ((got.float() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("name", ["norm_modulate", "rms_norm", "gelu_tanh"])
def test_bfloat16_is_no_further_from_float32_than_torch(name: str) -> None:
    case = real_cases(name)
    operands = case.operands()
    exact = case.eager(*(operand.float() for operand in operands))
    ours, eager = case.ours(*operands), case.eager(*operands)
    assert isinstance(exact, Tensor)
    assert isinstance(ours, Tensor)
    assert isinstance(eager, Tensor)
    assert error(ours, exact) <= 1.02 * error(eager, exact)


def test_residual_and_norm_in_bfloat16() -> None:
    x, y, gate, scale, shift = real_cases("gated_residual_norm").operands()
    total = ref.gated_residual(x, y, gate)
    h = gated_residual_norm(x, y, gate, Norm(scale_ND=scale, shift_ND=shift))
    assert torch.equal(x, total.to(BF16))
    assert error(h, ref.layer_norm(x, 1e-6, None, None, scale, shift)) < 2**-8


def prologue_operands() -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    qkv = torch.randn(1, REAL.tokens, 3 * REAL.width, device="cuda").to(BF16)
    norms = torch.randn(2, REAL.width, device="cuda").to(BF16).unbind()
    angle = 6 * torch.rand(1, REAL.tokens, 1, REAL.head_dim // 2, device="cuda")
    return qkv, (norms[0], norms[1]), (angle.cos(), angle.sin())


def test_one_captured_prologue_serves_every_slot() -> None:
    qkv, norms, table = prologue_operands()
    shape = (1, REAL.slots, REAL.heads, REAL.head_dim)
    k, v = (torch.full(shape, torch.nan, device="cuda", dtype=BF16) for _ in range(2))
    start = torch.zeros(1, dtype=torch.int32, device="cuda")
    begin = REAL.slots - REAL.tokens - 7  # the ring's length is no multiple of the chunk's
    out = torch.full((1, REAL.tokens, *shape[2:]), torch.nan, device="cuda", dtype=BF16)

    def launch() -> None:
        qk_prologue(qkv, norms, table, CacheWriter(k, v, start, begin), out=out)

    launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    exact = ref.qk_prologue(qkv, REAL.heads, *norms, *table, 1e-6)
    for slot in (0, REAL.tokens, REAL.slots - 5, 10 * REAL.slots + 3):
        k.fill_(torch.nan)
        v.fill_(torch.nan)
        start.fill_(slot)
        graph.replay()
        where = ref.cache_slots(slot, REAL.tokens, REAL.slots, begin).cuda()
        for got, wanted in zip((out, k[:, where], v[:, where]), exact, strict=True):
            assert error(got, wanted) < 2**-8
        assert int(torch.isnan(k).any(-1).any(-1).sum()) == REAL.slots - REAL.tokens


@eight_bits
@pytest.mark.parametrize("turned", [False, True])
def test_an_eight_bit_cache_is_the_references(turned: bool) -> None:
    qkv, norms, table = prologue_operands()
    _, k_ref, v_ref = ref.qk_prologue(qkv, REAL.heads, *norms, *table, 1e-6)
    scales = (ref.head_scales(k_ref), ref.head_scales(v_ref))
    shape = (1, REAL.heads, REAL.head_dim, REAL.slots) if turned else (1, REAL.slots, REAL.heads, REAL.head_dim)
    k = torch.zeros(1, REAL.slots, REAL.heads, REAL.head_dim, device="cuda").to(torch.float8_e4m3fn)
    v = torch.zeros(shape, device="cuda").to(torch.float8_e4m3fn)
    v = v.permute(0, 3, 1, 2) if turned else v
    start = torch.full((1,), 5, dtype=torch.int32, device="cuda")
    qk_prologue(qkv, norms, table, CacheWriter(k, v, start, None, *scales))
    part = slice(5, 5 + REAL.tokens)
    for got, wanted, scale in ((k, k_ref, scales[0]), (v, v_ref, scales[1])):
        quantised = ref.quantise_heads(wanted, scale).float()
        differing = (got.float()[:, part] != quantised).float().mean().item()
        assert differing < 1e-3, "more than rounding at a tie"
        assert error(got.float()[:, part] * scale[:, None], wanted) < 0.04


@eight_bits
def test_eight_bit_rows_go_into_the_scaled_product() -> None:
    x, scale, shift = real_cases("norm_modulate").operands()
    norm = Norm(scale_ND=scale, shift_ND=shift)
    rows = norm_modulate_fp8(x, norm)
    exact = ref.layer_norm(x, 1e-6, None, None, scale, shift).flatten(0, 1)
    values, row_scale = ref.quantise_rowwise(exact)
    torch.testing.assert_close(rows.scale_L1, row_scale, rtol=1e-5, atol=0)
    assert (rows.values_LD.float() != values.float()).float().mean() < 1e-3
    weight = torch.randn(512, REAL.width, device="cuda")
    w = quantise_fp8_rowwise(weight)
    product = torch._scaled_mm(
        rows.values_LD, w.values_LD.T, scale_a=rows.scale_L1, scale_b=w.scale_L1.T, out_dtype=BF16
    )
    assert error(product, exact @ weight.T) < 0.06


@pytest.mark.parametrize("name", ["qk_prologue", "norm_modulate", "gated_residual_norm", "rms_norm", "gelu_tanh"])
def test_the_same_inputs_give_the_same_bits_however_often(name: str) -> None:
    case = real_cases(name)
    operands = case.operands()

    def run() -> list[Tensor]:
        copies = [operand.clone() for operand in operands]
        made = case.ours(*copies)
        assert isinstance(made, Tensor)
        return [made, *copies]

    first = run()
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_nothing_waits_for_the_device() -> None:
    qkv, norms, table = prologue_operands()
    x, bias = torch.randn(64, REAL.width, device="cuda").to(BF16), torch.randn(REAL.width, device="cuda").to(BF16)
    shape = (1, REAL.slots, REAL.heads, REAL.head_dim)
    writer = CacheWriter(
        torch.zeros(shape, device="cuda", dtype=BF16),
        torch.zeros(shape, device="cuda", dtype=BF16),
        torch.zeros(1, dtype=torch.int32, device="cuda"),
        0,
    )
    calls: list[Callable[[], object]] = [
        lambda: qk_prologue(qkv, norms, table, writer),
        lambda: norm_modulate(x, Norm(weight_D=bias, bias_D=bias)),
        lambda: gated_residual_norm(x, x.clone(), None, Norm()),
        lambda: rms_norm(x, bias),
        lambda: gelu_tanh(x, bias),
    ]
    for call in calls:  # compiled before the watch begins
        call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for call in calls:
            call()
        with pytest.raises(RuntimeError, match="synchronizing"):  # the watch does see what waits
            x[0, 0].item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
