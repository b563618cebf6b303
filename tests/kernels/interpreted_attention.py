"""The attention kernels in Triton's interpreter: run by test_attention.py in a process that has TRITON_INTERPRET=1.

Float32 and float16 only: the interpreter computes bfloat16 wrongly and says nothing.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shotstream.kernels.attention import wrapper
from shotstream.kernels.attention.backend import TritonAttention
from shotstream.kernels.attention.config import Config
from shotstream.kernels.attention.launch import launch
from shotstream.kernels.attention.reference import reference_attention
from shotstream.kernels.attention.scales import Scales, empty_values, quantise
from shotstream.kernels.attention.schedule import Plan
from shotstream.kernels.attention.wrapper import cache_attention
from shotstream.runtime.attention_choice import check_attention
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.attention import Prefix, PrefixAttention, reads_device_length

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""The interpreter computes with numpy, which warns where a GPU goes to infinity or NaN in silence."""

few = settings(max_examples=20, deadline=None, derandomize=True)
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3}
CONFIGS = [
    Config("pointer", 16, 16, 4, 2),
    Config("descriptor", 16, 16, 4, 2),
    Config("descriptor", 16, 16, 4, 2, specialise=True),
    Config("descriptor", 16, 16, 4, 2, specialise=True, persistent=True),
]


def inputs(seed: int, batch: int, queries: int, keys: int, heads: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = (queries, keys, keys)
    made = [torch.randn((batch, size, heads, width), generator=generator) for size in sizes]
    return made[0], made[1], made[2]


@few
@given(
    config=st.sampled_from(CONFIGS),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    batch=st.integers(1, 2),
    queries=st.integers(1, 40),
    length=st.integers(1, 70),
    spare=st.integers(0, 20),
    heads=st.integers(1, 3),
    width=st.sampled_from([64, 128]),
    seed=st.integers(0, 2**31),
)
def test_any_shape_agrees_with_torch_and_nothing_behind_the_length_is_read(
    config: Config,
    dtype: torch.dtype,
    batch: int,
    queries: int,
    length: int,
    spare: int,
    heads: int,
    width: int,
    seed: int,
) -> None:
    q, k, v = (x.to(dtype) for x in inputs(seed, batch, queries, length + spare, heads, width))
    k[:, length:] = torch.nan
    v[:, length:] = torch.nan
    out = torch.full_like(q, torch.nan)
    got = cache_attention(q, k, v, torch.tensor(length, dtype=torch.int32), out=out, config=config)
    assert got is out
    torch.testing.assert_close(out.float(), reference_attention(q, k, v, length), atol=TOLERANCE[dtype], rtol=1e-3)


@few
@given(
    config=st.sampled_from(CONFIGS[:3]),
    whole=st.integers(0, 6),
    splits=st.integers(2, 5),
    length=st.integers(0, 130),
)
def test_tiles_cut_along_their_keys_give_the_same(config: Config, whole: int, splits: int, length: int) -> None:
    q, k, v = inputs(7, 1, 40, 140, 2, 64)
    k[:, length:] = torch.nan
    v[:, length:] = torch.nan
    out = torch.full_like(q, torch.nan)
    launch(q, k, v, length, None, out, config, Plan(whole, 6 - whole, splits), 2)
    torch.testing.assert_close(out, reference_attention(q, k, v, length), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_scores_far_below_and_above_zero_neither_vanish_nor_overflow(config: Config) -> None:
    q, k, v = inputs(3, 1, 20, 50, 1, 64)
    for offset in (-40.0, 40.0):
        shifted = torch.cat([torch.full_like(k[..., :1], offset), k[..., 1:]], -1)
        q[..., 0] = 60.0
        out = cache_attention(q, shifted, v, 37, config=config)
        torch.testing.assert_close(out, reference_attention(q, shifted, v, 37), atol=3e-4, rtol=1e-3)


def test_a_length_in_memory_is_clamped_to_the_buffer() -> None:
    q, k, v = inputs(5, 1, 9, 30, 1, 64)
    much = torch.tensor([1000], dtype=torch.int32)
    torch.testing.assert_close(cache_attention(q, k, v, much), reference_attention(q, k, v, 30))
    assert cache_attention(q, k, v, torch.tensor([-4], dtype=torch.int32)).abs().max() == 0


def test_one_launch_serves_every_fill_level() -> None:
    q, k, v = inputs(6, 1, 20, 80, 1, 64)
    length = torch.zeros(1, dtype=torch.int32)
    for filled in (1, 16, 17, 79, 80):
        length.fill_(filled)
        torch.testing.assert_close(cache_attention(q, k, v, length), reference_attention(q, k, v, filled))


def test_views_of_a_cache_and_of_a_joint_projection_are_read_in_place() -> None:
    joint = torch.randn((1, 20, 3, 2, 64), generator=torch.Generator().manual_seed(1))
    q = joint[:, :, 0]
    _, k, v = inputs(2, 1, 1, 60, 2, 64)
    for config in CONFIGS[:2]:
        got = cache_attention(q, k[:, :33], v[:, :33], 33, config=config)
        torch.testing.assert_close(got, reference_attention(q, k, v, 33))


@pytest.mark.parametrize("q_too", [False, True])
def test_float8_keys_and_values_are_near_what_they_stand_for(q_too: bool) -> None:
    # The interpreter's cast to float8 is three times as coarse as a GPU's: this finds wrong scales and layouts only.
    q, k, v = inputs(8, 1, 20, 48, 2, 64)
    k8, k_scale = quantise(k)
    v8, v_scale = quantise(v)
    scales = Scales(k_scale, v_scale)
    q16 = q.half()
    given_q, given_scales = q16, scales
    if q_too:
        given_q, q_scale = quantise(q16)
        given_scales = Scales(k_scale, v_scale, q_scale)
    laid = empty_values(1, 48, 2, 64, "cpu")
    laid.copy_(v8)
    wanted = reference_attention(given_q, k8, v8, 41, scales=given_scales)
    for config, values in ((CONFIGS[0], v8), (CONFIGS[0], laid), (CONFIGS[1], laid), (CONFIGS[2], laid)):
        out = torch.full(q.shape, torch.nan)
        cache_attention(given_q, k8, values, 41, scales=given_scales, config=config, out=out)
        error = (out - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
        assert error < 0.12, f"{config}: {error}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_backend_reads_the_length_from_memory_and_not_the_hosts(dtype: torch.dtype) -> None:
    attention = TritonAttention()
    assert isinstance(attention, PrefixAttention)
    assert reads_device_length(attention, eight_bit=True)
    q, k, v = (x.to(dtype) for x in inputs(4, 1, 20, 50, 2, 64))
    k[:, 33:] = torch.nan
    v[:, 33:] = torch.nan
    length = torch.tensor([33], dtype=torch.int32)
    wanted = reference_attention(q, k, v, 33)
    for filled in (0, 33, 50):
        got = attention.over_prefix(q, Prefix(k, v, length, filled))
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), wanted, atol=TOLERANCE[dtype], rtol=1e-3)
    got = attention(q, k[:, :33], v[:, :33])
    torch.testing.assert_close(got.float(), wanted, atol=TOLERANCE[dtype], rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_backend_takes_eight_bits_with_their_scales(dtype: torch.dtype) -> None:
    q, k, v = inputs(8, 1, 20, 48, 2, 64)
    k8, k_scale = quantise(k)
    v8, v_scale = quantise(4 * v)
    laid = empty_values(1, 48, 2, 64, "cpu").copy_(v8)
    prefix = Prefix(k8, laid, torch.tensor([41], dtype=torch.int32), 0, k_scale, v_scale)
    got = TritonAttention().over_prefix(q.to(dtype), prefix)
    wanted = reference_attention(q, k8, v8, 41, scales=Scales(k_scale, v_scale))
    assert got.dtype == dtype
    assert (got.float() - wanted).norm() / wanted.norm() < 0.12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_backend_passes_the_check_that_decides_what_a_session_runs_on(dtype: torch.dtype) -> None:
    assert check_attention(TritonAttention(), torch.device("cpu"), dtype, 2, 64) is None


def test_the_backend_knows_two_widths_of_heads() -> None:
    q, k, v = inputs(1, 1, 4, 8, 1, 32)
    with pytest.raises(UserError, match="64, 128"):
        TritonAttention()(q, k, v)


def test_what_does_not_fit_is_refused_by_name() -> None:
    q, k, v = inputs(1, 1, 4, 8, 1, 64)
    for message, arguments in {
        "do not fit q": (q, k, v[:, :7], 3),
        "length 9 is outside": (q, k, v, 9),
        "one int32": (q, k, v, torch.tensor([3])),
        "do not go together": (q.half(), k, v, 3),
        "channels": (q[..., :32], k[..., :32], v[..., :32], 3),
        "next to each other": (q, k.transpose(1, 3).contiguous().transpose(1, 3), v, 3),
    }.items():
        with pytest.raises(ValueError, match=message):
            cache_attention(*arguments)
    with pytest.raises(ValueError, match="out must be"):
        cache_attention(q, k, v, 3, out=torch.empty(1))
    k8, scale = quantise(k)
    with pytest.raises(ValueError, match="need scales"):
        cache_attention(q.half(), k8, k8, 3)
    with pytest.raises(ValueError, match="need scales"):
        cache_attention(q.half(), k8, k8, 3, scales=Scales(scale, scale, scale))


def test_the_choice_says_why_it_takes_no_descriptors() -> None:
    q, k, v = (x.half() for x in inputs(1, 1, 4, 8, 1, 64))
    assert wrapper.choose(q, k, v, (9, 0))[0].path == "descriptor"
    assert wrapper.choose(q, k, v, (8, 6))[1].startswith("no configuration")
    odd = torch.empty((1, 8, 1, 65), dtype=torch.float16)[..., :64]
    assert "k does not lie in steps of 16 bytes" in wrapper.choose(q, odd, v, (9, 0))[1]
    k8, _ = quantise(k)
    assert "float8 values lie channel by channel" in wrapper.choose(q, k8, k8, (9, 0))[1]
    with pytest.raises(ValueError, match="cannot be attended over on sm_86"):
        wrapper.choose(q, k8, k8, (8, 6))
    with pytest.raises(ValueError, match="too old"):
        wrapper.choose(q, k, v, (7, 5))


def test_a_compiler_that_refuses_descriptors_costs_speed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def refusing(q: Tensor, *rest: object) -> None:
        config = rest[-3]
        assert isinstance(config, Config)
        taken.append(config.path)
        if config.path == "descriptor":
            raise RuntimeError("PassManager::run failed\nmore")

    monkeypatch.setattr(wrapper, "launch", refusing)
    monkeypatch.setattr(wrapper, "_refused", {})
    q, k, v = (x.half() for x in inputs(1, 1, 4, 8, 1, 64))
    cache_attention(q, k, v, 3)
    cache_attention(q, k, v, 3)
    assert taken == ["descriptor", "pointer", "pointer"]
    assert "PassManager::run failed" in wrapper.choose(q, k, v, (9, 0))[1]
