"""Noise by counter: (session seed, shot, chunk, step) decide every draw, whatever else runs. No state, no generator.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11) turns a counter into random bits
and Box-Muller, in float64, turns those into normal numbers. Everything is computed on the host and copied to the
device, so that CPU and CUDA runs of a session see the same numbers; log, sin and cos come from numpy, whose float64
results may differ by one unit in the last place between processor families, far below the float32 that is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shotstream.runtime.errors import UserError

START = 0
"""Step number of a chunk's starting noise; steps 1, 2, ... are the fresh noise after denoising step 0, 1, ..."""

CONTEXT = 1 << 16
"""Step number of the noise that a finished chunk is remembered with."""

SHOT = 0xFFFFFFFF
"""Chunk number of the offset that all chunks of a shot have in common; no shot has as many chunks."""

_WORDS = npt.NDArray[np.uint64]
_LOW = np.uint64(0xFFFFFFFF)
_HALF_WORD = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
# Counters are worked through in slices that stay in the processor's cache: three times faster at 75 000 counters.
_SLICE = 8192


def philox4x32(counter: tuple[_WORDS, _WORDS, _WORDS, _WORDS], key: tuple[int, int]) -> tuple[_WORDS, ...]:
    """Four random words per counter; counters are arrays of 32-bit values held in uint64, the key two 32-bit ints."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (p1 >> _HALF_WORD) ^ c1 ^ np.uint64(k0)
        c2 = (p0 >> _HALF_WORD) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & _LOW, p0 & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def check_seed(seed: int) -> int:
    """Return the seed; raises UserError unless it is an integer of 64 bits without sign."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise UserError(f"the seed must be a whole number from 0 to 2^64 - 1, not {seed!r}")
    return seed


def normal(seed: int, shot: int, chunk: int, step: int, count: int) -> npt.NDArray[np.float32]:
    """`count` standard normal numbers, float32. Number i depends on the arguments and i only, not on `count`.

    shot, chunk and step are below 2^32 (a session of 2^32 shots would play for centuries), seed below 2^64.
    """
    key = (seed & 0xFFFFFFFF, seed >> 32)
    blocks = -(-count // 4)
    out = np.empty((blocks, 2, 2), dtype=np.float32)
    for begin in range(0, blocks, _SLICE):
        index = np.arange(begin, min(begin + _SLICE, blocks), dtype=np.uint64)
        where = (np.full_like(index, step), np.full_like(index, chunk), np.full_like(index, shot))
        words = philox4x32((index, *where), key)
        for pair in range(2):
            # Half a unit is added so that the logarithm never sees zero.
            radius = np.sqrt(-2.0 * np.log((words[2 * pair] + 0.5) * 2.0**-32))
            angle = (words[2 * pair + 1] + 0.5) * (2.0**-32 * 2.0 * math.pi)
            part = out[begin : begin + len(index), pair]
            part[:, 0] = radius * np.cos(angle)
            part[:, 1] = radius * np.sin(angle)
    return out.reshape(-1)[:count]


def with_offset(own_BFCHW: Tensor, offset_BCPQ: Tensor, share: float) -> Tensor:
    """Noise of unit variance of which all patches of all frames have the `share` in common: `offset_BCPQ`, one patch of
    signs, -1 or 1.

    What a network reads from the offset is the same everywhere in a shot, and not hidden among independent numbers.
    """
    rows, columns = own_BFCHW.shape[-2] // offset_BCPQ.shape[-2], own_BFCHW.shape[-1] // offset_BCPQ.shape[-1]
    return math.sqrt(1 - share) * own_BFCHW + math.sqrt(share) * offset_BCPQ.tile(1, 1, rows, columns)[:, None]


class NoiseSource:
    """The draws of one session, shaped and placed where its engine wants them."""

    def __init__(
        self,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        fill: Callable[[Tensor, int, int, int, int], None] | None = None,
        offset: float = 0.0,
        patch: tuple[int, int] = (2, 2),
    ) -> None:
        """fill: writes the numbers of :func:`normal` for (seed, shot, chunk, step) into a tensor on the device.
        offset: what the patches of a shot have in common, see `DiTConfig.noise_offset`; patch: height and width of one.
        """
        self.seed = check_seed(seed)
        self.device = device
        self._dtype = dtype
        self._fill = fill
        self._offset, self._patch = offset, patch

    def draw(self, shot: int, chunk: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """Noise of `shape`, with an offset [B, F, C, H, W]: drawn in float32, then cast; normal but for the offset.

        The offset is the same in every chunk and at every step of a shot. What a finished chunk is remembered with has
        none.
        """
        own = self._draw(shot, chunk, step, shape)
        if not self._offset or step == CONTEXT:
            return own
        offset = self._draw(shot, SHOT, START, (shape[0], shape[2], *self._patch)).sign()
        return with_offset(own, offset, self._offset)

    def _draw(self, shot: int, chunk: int, step: int, shape: tuple[int, ...]) -> Tensor:
        if self._fill is not None:
            noise = torch.empty(shape, device=self.device, dtype=self._dtype)
            self._fill(noise, self.seed, shot, chunk, step)
            return noise
        numbers = torch.from_numpy(normal(self.seed, shot, chunk, step, math.prod(shape))).view(shape)
        numbers = numbers.to(self._dtype)
        if self.device.type == "cuda":
            # From pinned memory the copy queues up behind the kernels; from any other it would wait for them.
            numbers = numbers.pin_memory()
        return numbers.to(self.device, non_blocking=True)
