"""Noise made in a kernel, in Triton's interpreter, beside the runtime's own of the same address.

The interpreter takes the logarithm and the root from numpy, as the runtime does; a GPU has its own, and there numbers
may differ by one unit in the last place. Cosine and sine are the kernel's own everywhere.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from shotstream.kernels.fused.noise import BLOCK, draw_normal, draw_normal_kernel
from shotstream.runtime.errors import UserError
from shotstream.runtime.noise import normal

ADDRESSES = [
    (0, 0, 0, 0),
    (7, 1, 2, 3),
    ((1 << 63) | 12345, 1 << 31, 9, 1),
    ((1 << 64) - 1, (1 << 32) - 1, (1 << 32) - 1, (1 << 32) - 1),
]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("shape", [(1,), (2, 3), (4 * BLOCK,), (1, 3, 4, 5, 29)])
def test_a_draw_is_the_runtimes_bit_for_bit(address: tuple[int, int, int, int], shape: tuple[int, ...]) -> None:
    for kind in (torch.float32, torch.float16):
        out = torch.full(shape, torch.nan, dtype=kind)
        draw_normal(out, *address)
        wanted = torch.from_numpy(normal(*address, out.numel())).view(shape).to(kind)
        assert torch.equal(out, wanted)


def test_the_last_counters_and_a_million_numbers_agree() -> None:
    lanes, blocks = 1 << 16, 4
    out = torch.empty(4 * lanes * blocks)
    draw_normal_kernel[(blocks,)](out, out.numel(), 77, -2, 5, 6, 2, BLOCK=lanes)
    wanted = torch.from_numpy(normal(77 | (0xFFFFFFFE << 32), 5, 6, 2, out.numel()))
    apart = (out.view(torch.int32) - wanted.view(torch.int32)).abs()
    assert apart.max() <= 1
    assert (apart > 0).sum() <= out.numel() // 10**6


def test_a_number_depends_on_its_place_only_and_nothing_behind_the_end_is_written() -> None:
    room = torch.full((1300,), torch.nan)
    draw_normal(room[:1001], 3, 4, 5, 1)
    assert torch.isnan(room[1001:]).all()
    long = torch.empty(1300)
    draw_normal(long, 3, 4, 5, 1)
    assert torch.equal(room[:1001], long[:1001])


def test_what_does_not_fit_is_refused_in_words() -> None:
    out = torch.empty(4)
    with pytest.raises(UserError, match="the seed must be"):
        draw_normal(out, 1 << 64, 0, 0, 0)
    with pytest.raises(ValueError, match="4294967296 is not"):
        draw_normal(out, 0, 1 << 32, 0, 0)
    with pytest.raises(ValueError, match="out must be contiguous"):
        draw_normal(torch.empty(4, 4).T, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="out must be contiguous"):
        draw_normal(torch.empty(4, dtype=torch.float64), 0, 0, 0, 0)
