"""The numbers of `runtime/noise.py` made where they are wanted: Philox 4x32-10 by counter, Box-Muller in float64.

One thread per counter, which gives four numbers. Nothing but scalars is passed, so nothing waits and nothing is copied;
they are all 32-bit, whatever their values, so that every draw of a session is the same compiled kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from shotstream.kernels.fused.checks import FLOATS
from shotstream.runtime.noise import check_seed

BLOCK = 128
"""Counters of one block."""
WARPS = 4
OPTIONS: Mapping[str, Any] = {"enable_fp_fusion": True}
"""The same multiply-adds in every version of Triton."""

_ROUNDS = tl.constexpr(10)
_UNIT = tl.constexpr(2.0**-32)
_TURN = tl.constexpr(2.0**-32 * 2.0 * math.pi)
# A quarter turn in two parts: five times the first, of 33 bits, is exact.
_QUARTER_HIGH = tl.constexpr(math.ldexp(math.floor(math.ldexp(math.pi / 2, 32)), -32))
_QUARTER_LOW = tl.constexpr(float.fromhex("0x1.0b4611a626331p-34"))


@triton.jit
def _cos_sin(word: tl.tensor) -> tuple:
    """Cosine and sine, float64, of the angle that numpy gets: ``(word + 0.5) 2^-32`` of a turn, rounded to float64.

    The library's functions would do, but they keep a table on the stack for angles beyond 10^5 turns.
    """
    quarter = ((word >> 29) + 1) >> 1
    turns = quarter.to(tl.float64)
    x = (word.to(tl.float64) + 0.5) * _TURN
    x = (x - turns * _QUARTER_HIGH) - turns * _QUARTER_LOW
    square = x * x
    # Taylor's series: within an eighth of a turn the terms left out are below 2^-58.
    cos = tl.full(x.shape, 1.0, tl.float64)
    sin = cos
    for n in tl.static_range(16, 0, -2):
        cos = 1.0 - square * cos * (1.0 / (n * (n - 1)))
        sin = 1.0 - square * sin * (1.0 / (n * (n + 1)))
    sin = x * sin
    turned = (quarter & 1) != 0
    return (
        tl.where(((quarter + 1) & 2) != 0, -1.0, 1.0) * tl.where(turned, sin, cos),
        tl.where((quarter & 2) != 0, -1.0, 1.0) * tl.where(turned, cos, sin),
    )


@triton.jit
def _box_muller(radius_word: tl.tensor, angle_word: tl.tensor) -> tuple:
    """Two normal numbers, float32. Half a unit is added so that the logarithm never sees zero."""
    radius = tl.sqrt(-2.0 * tl.log((radius_word.to(tl.float64) + 0.5) * _UNIT))
    cos, sin = _cos_sin(angle_word)
    return (radius * cos).to(tl.float32), (radius * sin).to(tl.float32)


@triton.jit(do_not_specialize=["count", "key_low", "key_high", "shot", "chunk", "step"])
def draw_normal_kernel(
    out_ptr: tl.tensor,
    count: tl.tensor,
    key_low: tl.tensor,
    key_high: tl.tensor,
    shot: tl.tensor,
    chunk: tl.tensor,
    step: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    counter = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.uint32, bitcast=True)
    nothing = tl.zeros_like(counter)
    w0, w1, w2, w3 = tl.philox_impl(
        counter,
        nothing + step.to(tl.uint32, bitcast=True),
        nothing + chunk.to(tl.uint32, bitcast=True),
        nothing + shot.to(tl.uint32, bitcast=True),
        key_low.to(tl.uint32, bitcast=True),
        key_high.to(tl.uint32, bitcast=True),
        _ROUNDS,
    )
    a, b = _box_muller(w0, w1)
    c, d = _box_muller(w2, w3)
    # Numbers 4i .. 4i + 3 of counter i, next to each other.
    four = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (4 * BLOCK,))
    index = tl.program_id(0).to(tl.int64) * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    tl.store(out_ptr + index, four.to(out_ptr.dtype.element_ty), mask=index < count)


def draw_normal(out: Tensor, seed: int, shot: int, chunk: int, step: int) -> None:
    """Fill `out`, contiguous, float32, bfloat16 or float16, with standard normal numbers of this address.

    Number i is ``runtime.noise.normal(...)[i]``, rounded to float32 and then to out's dtype. seed below 2^64; shot,
    chunk and step below 2^32. Raises ValueError for what does not fit.
    """
    if out.dtype not in FLOATS or not out.is_contiguous():
        raise ValueError(f"out must be contiguous in {', '.join(map(str, FLOATS))}, not {out.dtype} {out.stride()}")
    key = (check_seed(seed) & 0xFFFFFFFF, seed >> 32)
    words = [_as_int32(word) for word in (*key, shot, chunk, step)]
    count = out.numel()
    if not 0 < count < 1 << 31:
        raise ValueError(f"{count} numbers cannot be drawn at once")
    draw_normal_kernel[(triton.cdiv(count, 4 * BLOCK),)](
        out, count, *words, BLOCK=BLOCK, num_warps=WARPS, **OPTIONS
    )  # fmt: skip


def _as_int32(word: int) -> int:
    """The same 32 bits with a sign: larger numbers would be passed as 64 bits, to another compiled kernel."""
    if not 0 <= word < 1 << 32:
        raise ValueError(f"shot, chunk and step are 32 bits without sign; {word} is not")
    return word - (1 << 32) if word >> 31 else word
