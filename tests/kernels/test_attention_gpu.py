"""Cache attention on a GPU: ``pytest -m gpu tests/kernels/test_attention_gpu.py``. Inputs are fresh in every run."""

from __future__ import annotations

import secrets

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

pytest.importorskip("triton")

from shotstream.kernels.attention import config as tuning
from shotstream.kernels.attention.backend import make_attention
from shotstream.kernels.attention.bench import relative_error
from shotstream.kernels.attention.bench_calls import exact_result
from shotstream.kernels.attention.scales import FP8, Scales, empty_values, quantise
from shotstream.kernels.attention.wrapper import cache_attention, choose

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CAPABILITY = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
SHAPES = [
    # queries, length, capacity, heads, head_dim
    (4680, 14040, 42120, 12, 128),
    (4680, 42120, 42120, 12, 128),
    (480, 2880, 4320, 3, 64),
    (131, 1, 77, 2, 64),
    (127, 1567, 2000, 5, 128),
]


def inputs(queries: int, capacity: int, heads: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    seed = secrets.randbits(48)
    print("seed", seed)  # noqa: T201 a failing test shows it
    generator = torch.Generator("cuda").manual_seed(seed)
    sizes = (queries, capacity, capacity)
    made = [torch.randn((1, size, heads, width), generator=generator, device="cuda").to(dtype) for size in sizes]
    return made[0], made[1], made[2]


def device_length(length: int) -> Tensor:
    return torch.tensor([length], dtype=torch.int32, device="cuda")


def paths(q: Tensor, k: Tensor, v: Tensor) -> list[tuning.Config]:
    """The configurations that are used on this GPU, the pointer kernel included."""
    best, _ = choose(q, k, v, CAPABILITY)
    configs = tuning.configs_of(tuning.nearest_architecture(CAPABILITY) or 80)
    pointer = configs[tuning.key("pointer", q.shape[-1], k.dtype)]
    return [best] if best == pointer else [best, pointer]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_error_is_that_of_torch_and_nothing_behind_the_length_is_read(shape: tuple, dtype: torch.dtype) -> None:
    queries, length, capacity, heads, width = shape
    q, k, v = inputs(queries, capacity, heads, width, dtype)
    exact = exact_result(q, k, v, length)
    k_n, v_n = k[:, :length], v[:, :length]
    theirs = scaled_dot_product_attention(q.transpose(1, 2), k_n.transpose(1, 2), v_n.transpose(1, 2)).transpose(1, 2)
    k[:, length:] = torch.nan
    v[:, length:] = torch.nan
    for config in paths(q, k, v):
        out = torch.full_like(q, torch.nan)
        cache_attention(q, k, v, device_length(length), out=out, config=config)
        allowed = max(1.5 * relative_error(theirs, exact), 1e-5)
        assert relative_error(out, exact) <= allowed, config


@pytest.mark.skipif(CAPABILITY < (8, 9), reason="float8 needs sm_89")
@pytest.mark.parametrize("q_too", [False, True])
@pytest.mark.parametrize("by_key", [False, True])
def test_float8_is_near_float64_of_what_was_quantised(q_too: bool, by_key: bool) -> None:
    q, k, v = inputs(1000, 9000, 4, 128, torch.bfloat16)
    k8, k_scale = quantise(k)
    v8, v_scale = quantise(v)
    if by_key:
        v8 = empty_values(1, 9000, 4, 128, "cuda").copy_(v8)
    scales = Scales(k_scale, v_scale)
    exact = exact_result(q, k8.double() * k_scale[:, None], v8.double() * v_scale[:, None], 8001)
    given = q
    if q_too:
        given, q_scale = quantise(q)
        scales = Scales(k_scale, v_scale, q_scale)
    out = torch.full_like(q, torch.nan)
    cache_attention(given, k8, v8, device_length(8001), scales=scales, out=out)
    assert relative_error(out, exact) < 0.06
    assert k8.dtype == FP8


def test_fifty_runs_give_the_same_bits() -> None:
    q, k, v = inputs(4680, 20000, 12, 128, torch.bfloat16)
    length = device_length(18721)
    for config in paths(q, k, v):
        first = cache_attention(q, k, v, length, config=config)
        for _ in range(50):
            out = torch.full_like(q, torch.nan)
            assert torch.equal(cache_attention(q, k, v, length, out=out, config=config), first), config


def test_one_graph_serves_every_fill_level() -> None:
    q, k, v = inputs(4680, 42120, 12, 128, torch.bfloat16)
    length = device_length(14040)
    out = torch.empty_like(q)
    cache_attention(q, k, v, length, out=out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cache_attention(q, k, v, length, out=out)
    for filled in (1, 1567, 14040, 28081, 42120):
        length.fill_(filled)
        wanted = cache_attention(q, k, v, device_length(filled))
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, wanted), filled


def test_the_runtime_gets_the_same_from_the_plugin_as_from_torch() -> None:
    q, k, v = inputs(300, 512, 12, 128, torch.bfloat16)
    wanted = scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(make_attention()(q, k, v), wanted, atol=2e-2, rtol=2e-2)
