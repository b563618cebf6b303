"""The operations `triton` in Triton's interpreter, method by method, beside the runtime's own in torch.

Float32 and float16 only: the interpreter computes bfloat16 wrongly, and its cast to eight bits is coarse.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from shotstream.kernels.ops import TritonOps
from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.ops import BlockOps, CacheWriter, Fp8Rows, Norm, TorchOps
from shotstream.runtime.noise import normal

CPU = torch.device("cpu")
OURS, TORCHS = TritonOps(CPU), TorchOps()
EPS = 1e-6

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
"""The interpreter computes with numpy, which warns where a GPU goes to infinity in silence."""

few = settings(max_examples=8, deadline=None, derandomize=True)
kinds = st.sampled_from([torch.float32, torch.float16])
widths = st.sampled_from([2, 30, 66, 192, 257])


def both(run: Any) -> tuple[Any, Any]:
    """What each backend gives; `run` gets the backend and makes its own operands."""
    return run(OURS), run(TORCHS)


def assert_close(got: Tensor, wanted: Tensor) -> None:
    """Equal up to a rounding of the dtype; sums may be taken in another order."""
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    bound = 4e-6 if got.dtype == torch.float32 else 2e-3
    torch.testing.assert_close(got.float(), wanted.float(), atol=bound * max(1, wanted.abs().max().item()), rtol=bound)


def assert_eight_bits_close(got: Tensor, wanted: Tensor) -> None:
    """Neighbours in eight bits, or half: the interpreter halves what rounds up to a power of two."""
    got, wanted = got.float(), wanted.float()
    assert got.shape == wanted.shape
    off = [(got * factor - wanted).abs() > 0.126 * wanted.abs() + 2**-9 for factor in (1, 2)]
    assert not (off[0] & off[1]).any()
    assert off[0].float().mean() < 0.1 or off[0].numel() < 100


def assert_rows_close(got: Fp8Rows, wanted: Fp8Rows) -> None:
    torch.testing.assert_close(got.scale_L1, wanted.scale_L1, rtol=2e-3, atol=0)
    assert_eight_bits_close(got.values_LD, wanted.values_LD)


def made(seed: int, *shape: int, kind: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(kind)


def norm_of(frames: int, width: int, kind: torch.dtype, affine: bool, modulated: bool) -> Norm:
    vectors = made(5, 1, frames, 6, width, kind=kind).unbind(2)
    weight, bias = (made(6, width, kind=kind), made(7, width, kind=kind)) if affine else (None, None)
    return Norm(EPS, weight, bias, *((vectors[1], vectors[0]) if modulated else (None, None)))


def test_it_is_the_contract() -> None:
    ops: BlockOps = OURS
    assert ops.name == "triton"
    for name, method in inspect.getmembers(TorchOps, inspect.isfunction):
        if not name.startswith("_"):
            assert list(inspect.signature(method).parameters) == list(
                inspect.signature(getattr(TritonOps, name)).parameters
            ), name


@few
@given(st.integers(1, 3), st.integers(1, 3), widths, kinds, st.booleans(), st.booleans())
def test_norms(frames: int, tokens: int, width: int, kind: torch.dtype, affine: bool, modulated: bool) -> None:
    x = 3 * made(1, 1, frames * tokens, width, kind=kind) + 1
    norm = norm_of(frames, width, kind, affine, modulated)
    assert_close(*both(lambda ops: ops.norm(x, norm)))
    assert_rows_close(*both(lambda ops: ops.norm_fp8(x, norm)))
    assert_close(*both(lambda ops: ops.rms(x, made(3, width, kind=kind), EPS)))


@few
@given(st.integers(1, 3), st.integers(1, 3), widths, kinds, st.booleans(), st.booleans())
def test_residuals(frames: int, tokens: int, width: int, kind: torch.dtype, gated: bool, eight_bit: bool) -> None:
    y, norm = made(2, 1, frames * tokens, width, kind=kind), norm_of(frames, width, kind, False, True)
    gate = made(5, 1, frames, 6, width, kind=kind).unbind(2)[2] if gated else None
    sums = []

    def run(ops: BlockOps) -> Any:
        x = made(1, 1, frames * tokens, width, kind=kind)
        sums.append(x)
        return (ops.residual_norm_fp8 if eight_bit else ops.residual_norm)(x, y, gate, norm)

    got, wanted = both(run)
    assert_close(*sums)
    if eight_bit:
        assert_rows_close(got, wanted)
    else:
        assert_close(got, wanted)


@few
@given(st.integers(1, 5), widths, kinds)
def test_gelu_in_place_and_in_eight_bits(tokens: int, width: int, kind: torch.dtype) -> None:
    assert_close(*both(lambda ops: ops.gelu(4 * made(1, 1, tokens, width, kind=kind))))
    x = made(1, 1, tokens, width, kind=kind)
    assert_rows_close(*both(lambda ops: ops.gelu_fp8(x)))
    assert_rows_close(*both(lambda ops: ops.quantise(x)))
    assert OURS.gelu(x).data_ptr() == x.data_ptr()
    assert_close(*both(lambda ops: ops.gelu(made(1, 1, tokens, 2 * width, kind=kind)[..., :width])))


@few
@given(
    tokens=st.integers(1, 5), heads=st.integers(1, 3), half=st.sampled_from([1, 5, 32]), spare=st.integers(0, 4),
    begin=st.integers(0, 3), start=st.integers(0, 9), kind=kinds, eight_bit=st.booleans(), queries=st.booleans(),
)  # fmt: skip
def test_prologues(
    tokens: int, heads: int, half: int, spare: int, begin: int, start: int, kind: torch.dtype, eight_bit: bool,
    queries: bool,
) -> None:  # fmt: skip
    width, slots = heads * half * 2, begin + tokens + spare
    angle = made(4, 1, tokens, 1, half)
    table, parts = (angle.cos(), angle.sin()), 3 if queries else 2
    x = made(1, 1, tokens, parts * width, kind=kind)
    norms = (made(2, width, kind=kind), made(3, width, kind=kind))
    caches: list[CacheWriter] = []

    def run(ops: BlockOps) -> Tensor | None:
        held = torch.float8_e4m3fn if eight_bit else kind
        k = torch.zeros(1, slots, heads, 2 * half).to(held)
        v = torch.zeros(1, heads, 2 * half, slots + 16).to(held)[..., :slots].permute(0, 3, 1, 2)
        scales = (torch.full((heads,), 0.02), torch.full((heads,), 0.03)) if eight_bit else (None, None)
        first = torch.tensor([min(start, slots)], dtype=torch.int32)
        cache = CacheWriter(k, v if eight_bit else k.clone(), first, begin, *scales)
        caches.append(cache)
        if queries:
            return ops.prologue(x, norms, table, cache, EPS)
        ops.kv_prologue(x, norms[1], table, cache, EPS)
        return None

    got, wanted = both(run)
    if queries:
        assert_close(got, wanted)
    for name in ("k_BSHK", "v_BSHK"):
        ours, torchs = (getattr(cache, name) for cache in caches)
        if eight_bit:
            assert_eight_bits_close(ours, torchs)
        else:
            assert_close(ours, torchs)
    assert caches[0].k_BSHK.float().any()


def test_noise_is_the_runtimes() -> None:
    out = torch.full((1, 3, 2, 5), torch.nan)
    OURS.draw(out, 1 << 40, 3, 2, 1)
    assert torch.equal(out.flatten(), torch.from_numpy(normal(1 << 40, 3, 2, 1, 30)))


def test_without_eight_bits_in_the_hardware_it_says_so() -> None:
    old = TritonOps(CPU, eight_bit=False)
    x = made(1, 1, 2, 4)
    assert_close(old.norm(x, Norm()), TORCHS.norm(x, Norm()))
    cache = CacheWriter(*(torch.zeros(1, 2, 1, 4).to(torch.float8_e4m3fn),) * 2, torch.zeros(1, dtype=torch.int32))
    cache = CacheWriter(cache.k_BSHK, cache.v_BSHK, cache.start_1, None, torch.ones(1), torch.ones(1))
    table = (torch.ones(1, 2, 1, 2), torch.zeros(1, 2, 1, 2))
    for call in (
        lambda: old.norm_fp8(x, Norm()),
        lambda: old.residual_norm_fp8(x, x.clone(), None, Norm()),
        lambda: old.gelu_fp8(x),
        lambda: old.quantise(x),
        lambda: old.kv_prologue(made(1, 1, 2, 8), torch.ones(4), table, cache, EPS),
    ):
        with pytest.raises(UserError, match="eight bits need a GPU"):
            call()
