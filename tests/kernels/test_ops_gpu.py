"""The operations `triton`, noise and the choice of an attention, on a GPU: ``pytest -m gpu tests/kernels``.

Operations run at the sizes of wan-1.3b, in bfloat16, and are held to the runtime's own in torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from shotstream.kernels.attention.backend import make_attention
from shotstream.kernels.attention.flash import make_flash_attention
from shotstream.kernels.gpu import EIGHT_BIT
from shotstream.kernels.plugin import KernelsPlugin
from shotstream.kernels.sizes import EMBEDDED, WAN
from shotstream.runtime.attention_choice import check_attention, choose_attention
from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.ops import BlockOps, CacheWriter, Fp8Rows, Norm, TorchOps
from shotstream.runtime.model.attention import sdpa
from shotstream.runtime.noise import normal
from shotstream.runtime.plugins import Registry

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CAPABILITY = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
eight_bits = pytest.mark.skipif(CAPABILITY < EIGHT_BIT, reason="no float8 on this GPU")
CUDA, BF16 = torch.device("cuda"), torch.bfloat16
TOKENS, WIDTH, HEADS = WAN.chunk_tokens, WAN.config.dim, WAN.config.heads
DRAW = (1, WAN.config.chunk_frames, WAN.config.channels, *WAN.latent_size)


def ops() -> BlockOps:
    return Registry([KernelsPlugin()]).factory("ops", "triton")(CUDA)


def made(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cuda").manual_seed(seed), device=CUDA).to(BF16)


def modulated() -> Norm:
    vectors = made(9, 1, WAN.config.chunk_frames, 6, WIDTH).unbind(2)
    return Norm(WAN.config.eps, scale_ND=vectors[1], shift_ND=vectors[0])


def gate() -> Tensor:
    return made(9, 1, WAN.config.chunk_frames, 6, WIDTH).unbind(2)[2]


def error(got: Tensor, wanted: Tensor) -> float:
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    return ((got.float() - wanted.float()).norm() / wanted.float().norm()).item()


def values(of: Tensor | Fp8Rows) -> Tensor:
    return of.values_LD.float() * of.scale_L1 if isinstance(of, Fp8Rows) else of


CALLS: dict[str, Callable[[BlockOps], Any]] = {
    "norm": lambda o: o.norm(made(1, 1, TOKENS, WIDTH), modulated()),
    "residual_norm": lambda o: o.residual_norm(made(1, 1, TOKENS, WIDTH), made(2, 1, TOKENS, WIDTH), gate(), Norm()),
    "rms": lambda o: o.rms(made(1, 1, TOKENS, WIDTH), made(2, WIDTH), 1e-6),
    "gelu": lambda o: o.gelu(made(1, 1, TOKENS, WAN.config.ffn_dim)),
}
CALLS_FP8: dict[str, Callable[[BlockOps], Any]] = {
    "norm_fp8": lambda o: o.norm_fp8(made(1, 1, TOKENS, WIDTH), modulated()),
    "residual_norm_fp8": lambda o: o.residual_norm_fp8(
        made(1, 1, TOKENS, WIDTH), made(2, 1, TOKENS, WIDTH), None, modulated()
    ),
    "gelu_fp8": lambda o: o.gelu_fp8(made(1, 1, TOKENS, WAN.config.ffn_dim)),
    "quantise": lambda o: o.quantise(made(1, 1, TOKENS, WIDTH)),
}


@pytest.mark.parametrize("name", CALLS)
def test_operations_are_torchs(name: str) -> None:
    assert error(CALLS[name](ops()), CALLS[name](TorchOps())) < 2**-8


@eight_bits
@pytest.mark.parametrize("name", CALLS_FP8)
def test_eight_bit_operations_are_torchs_but_for_roundings_at_a_tie(name: str) -> None:
    ours, torchs = (CALLS_FP8[name](each) for each in (ops(), TorchOps()))
    torch.testing.assert_close(ours.scale_L1, torchs.scale_L1, rtol=1e-2, atol=0)
    assert error(values(ours), values(torchs)) < 0.02


@pytest.mark.parametrize("eight_bit", [False, pytest.param(True, marks=eight_bits)])
def test_the_prologue_is_torchs(eight_bit: bool) -> None:
    angle = made(4, 1, TOKENS, 1, WAN.config.head_dim // 2).float()
    table, norms, qkv = (angle.cos(), angle.sin()), (made(2, WIDTH), made(3, WIDTH)), made(1, 1, TOKENS, 3 * WIDTH)
    results = []
    for each in (ops(), TorchOps()):
        held = torch.float8_e4m3fn if eight_bit else BF16
        shape = (1, HEADS, WAN.config.head_dim, WAN.capacity)
        k = torch.zeros(1, WAN.capacity, HEADS, WAN.config.head_dim, device=CUDA).to(held)
        v = torch.zeros(shape, device=CUDA).to(held).permute(0, 3, 1, 2) if eight_bit else k.clone()
        scales = (torch.full((HEADS,), 0.05, device=CUDA),) * 2 if eight_bit else (None, None)
        start = torch.tensor([WAN.capacity - 7], dtype=torch.int32, device=CUDA)
        q = each.prologue(qkv, norms, table, CacheWriter(k, v, start, WAN.context_tokens, *scales), 1e-6)
        results.append((q, k.float(), v.float()))
    for ours, torchs in zip(*results, strict=True):
        assert error(ours, torchs) < (0.02 if eight_bit else 2**-8)


@pytest.mark.parametrize("kind", [torch.float32, BF16, torch.float16])
def test_a_draw_is_the_hosts_but_for_a_unit_in_a_million(kind: torch.dtype) -> None:
    apart, numbers = 0, 0
    for seed in (0, 7, 1 << 40, (1 << 64) - 1):
        for step in range(4):
            out = torch.full(DRAW, torch.nan, device=CUDA, dtype=kind)
            ops().draw(out, seed, 3, 1 << 31, step)
            wanted = torch.from_numpy(normal(seed, 3, 1 << 31, step, out.numel())).view(DRAW)
            if kind == torch.float32:
                units = (out.cpu().view(torch.int32) - wanted.view(torch.int32)).abs()
                assert units.max() <= 1
            apart += int((out.cpu() != wanted.to(kind)).sum())
            numbers += out.numel()
    assert apart <= numbers // 10**6


def test_a_draw_waits_for_nothing_and_is_one_kernel_whatever_the_address() -> None:
    from shotstream.kernels.fused.noise import draw_normal_kernel

    triton_ops, out = ops(), torch.empty(DRAW, device=CUDA, dtype=BF16)
    triton_ops.draw(out, 0, 0, 0, 0)
    compiled = {device: len(cache[0]) for device, cache in draw_normal_kernel.device_caches.items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        for seed, shot, chunk, step in ((1, 1, 1, 1), (16, 16, 16, 16), ((1 << 64) - 1, (1 << 32) - 1, 0, 2)):
            triton_ops.draw(out, seed, shot, chunk, step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert {device: len(cache[0]) for device, cache in draw_normal_kernel.device_caches.items()} == compiled


@pytest.mark.parametrize("sizes", [WAN, EMBEDDED])
@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32])
@pytest.mark.parametrize("eight_bit", [False, pytest.param(True, marks=eight_bits)])
def test_the_triton_attention_passes_the_check_of_auto(sizes: Any, dtype: torch.dtype, eight_bit: bool) -> None:
    config = sizes.config
    assert check_attention(make_attention(), CUDA, dtype, config.heads, config.head_dim, eight_bit) is None


def test_flash_is_what_auto_says_of_it() -> None:
    """Nobody has run it: whether NaN behind the length gets through is to be found out here."""
    try:
        attention = make_flash_attention()
    except UserError as reason:
        pytest.skip(str(reason))
    assert check_attention(attention, CUDA, BF16, WAN.config.heads, WAN.config.head_dim) is None


def test_auto_takes_triton() -> None:
    choice = choose_attention({"sdpa": lambda: sdpa, "triton": make_attention}, CUDA, BF16, 12, 128)
    assert choice.name == "triton"
