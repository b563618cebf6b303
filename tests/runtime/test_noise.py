"""Noise by counter: the published test vectors, its statistics, and what it may depend on."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from shotstream.runtime.config import TINY
from shotstream.runtime.errors import UserError
from shotstream.runtime.noise import CONTEXT, NoiseSource, check_seed, normal, philox4x32, with_offset

# Known answers of Random123 (`kat_vectors`, philox4x32 with 10 rounds): counter, key, result.
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_philox_gives_the_published_answers(counter, key, expected):
    words = philox4x32(tuple(np.array([c], dtype=np.uint64) for c in counter), key)
    assert tuple(int(w[0]) for w in words) == expected


def test_draws_are_standard_normal():
    x = normal(seed=7, shot=1, chunk=2, step=3, count=400_000).astype(np.float64)
    assert abs(x.mean()) < 0.006
    assert abs(x.std() - 1) < 0.005
    assert abs((x**3).mean()) < 0.02
    assert abs((x**4).mean() - 3) < 0.05
    for limit, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert abs((np.abs(x) < limit).mean() - share) < 0.003
    for lag in (1, 2, 3, 4, 256):  # neighbours come from one block, or from one pair of it
        assert abs((x[:-lag] * x[lag:]).mean()) < 0.006


def test_every_part_of_the_address_changes_the_draw():
    draws = [normal(s, a, b, c, 1000) for s in (1, 1 << 33) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    for i, left in enumerate(draws):
        for right in draws[i + 1 :]:
            assert abs(np.corrcoef(left, right)[0, 1]) < 0.15


def test_a_number_depends_on_its_address_only_not_on_how_many_are_drawn():
    long = normal(3, 4, 5, 1, 50_003)
    assert np.array_equal(long[:1001], normal(3, 4, 5, 1, 1001))


def test_a_source_draws_in_float32_and_casts():
    shape = (1, 3, 4, 5, 6)
    full = NoiseSource(9, torch.device("cpu"), torch.float32).draw(2, 1, 0, shape)
    half = NoiseSource(9, torch.device("cpu"), torch.bfloat16).draw(2, 1, 0, shape)
    assert full.shape == shape
    assert torch.equal(full.to(torch.bfloat16), half)


SHAPE = (1, 3, 16, 20, 20)


def source(offset: float) -> NoiseSource:
    return NoiseSource(9, torch.device("cpu"), torch.float32, offset=offset)


def patch_means(noise: torch.Tensor) -> torch.Tensor:
    """Means over all patches [C, 2, 2]: what patches have in common, but for a 100th of the rest's variance."""
    return noise.unflatten(3, (10, 2)).unflatten(5, (10, 2)).mean((0, 1, 3, 5))


def alike(a: torch.Tensor, b: torch.Tensor) -> float:
    """Correlation; 6400 numbers put two independent draws below 0.05."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_patches_of_a_shot_have_their_share_of_the_noise_in_common():
    drawn = source(0.5).draw(2, 0, 0, SHAPE)
    rest = drawn.unflatten(3, (10, 2)).unflatten(5, (10, 2)) - patch_means(drawn)[:, None, :, None, :]
    assert abs(float(rest.std()) - 0.5**0.5) < 0.02
    common = patch_means(drawn)
    elsewhere = [source(0.5).draw(2, 1, 0, SHAPE), source(0.5).draw(2, 0, 3, SHAPE)]  # another chunk, another step
    assert all(alike(common, patch_means(other)) > 0.95 for other in (drawn[:, :1], *elsewhere))
    another = torch.stack([patch_means(source(0.5).draw(shot, 0, 0, SHAPE)) for shot in range(3, 43)])
    assert abs(float(another.var()) - 0.5) < 0.1
    assert abs(alike(another[:-1], another[1:])) < 0.1


def test_an_offset_is_one_patch_tiled():
    own, offset = torch.zeros(1, 2, 3, 4, 6), torch.arange(12.0).view(1, 3, 2, 2)
    noise = with_offset(own, offset, 0.25)
    assert torch.equal(noise[0, 1, 2, :2, :2], offset[0, 2] / 2)
    assert torch.equal(noise[..., :2, :2], noise[..., 2:, 4:])


def test_without_an_offset_noise_is_as_it_always_was():
    numbers = torch.from_numpy(normal(9, 2, 1, 3, 3 * 6400)).view(SHAPE)
    assert torch.equal(source(0.0).draw(2, 1, 3, SHAPE), numbers)


def test_what_a_chunk_is_remembered_with_is_its_own():
    assert torch.equal(source(0.5).draw(2, 1, CONTEXT, SHAPE), source(0.0).draw(2, 1, CONTEXT, SHAPE))


def test_device_and_host_have_the_same_offset():
    def fill(out: torch.Tensor, seed: int, shot: int, chunk: int, step: int) -> None:
        out.copy_(torch.from_numpy(normal(seed, shot, chunk, step, out.numel())).view(out.shape))

    on_device = NoiseSource(9, torch.device("cpu"), torch.float32, fill, 0.3)
    assert torch.equal(on_device.draw(2, 1, 0, SHAPE), source(0.3).draw(2, 1, 0, SHAPE))


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_an_offset_is_a_share(share):
    with pytest.raises(UserError, match="noise_offset"):
        replace(TINY, noise_offset=share)


@pytest.mark.parametrize("seed", [-1, 1 << 64, 1.5, "7", True])
def test_a_seed_outside_64_bits_is_refused(seed):
    with pytest.raises(UserError, match="seed"):
        check_seed(seed)


@pytest.mark.slow
def test_a_draw_at_the_real_size_takes_less_than_twenty_milliseconds():
    normal(0, 0, 0, 0, 300_000)
    begin = time.perf_counter()
    for step in range(10):
        normal(0, 0, 0, step, 3 * 16 * 60 * 104)
    assert (time.perf_counter() - begin) / 10 < 0.02
