"""What the pointer and the descriptor kernel share: which keys a program reads, the softmax step, what it writes.

A **tile** is one block of queries of one head of one batch entry; its number runs over query blocks first, so that
neighbouring programs read the same keys and find them in L2. With ``SPLITS > 1`` a tile's key blocks are shared out
among that many programs, which write unnormalised sums, and `combine` puts them together.

All scores are kept in base 2: ``scale`` has log2(e) folded in, so a step costs one multiply-add and one exp2.
"""

from __future__ import annotations

import triton
import triton.language as tl

FP8_P_SHIFT = tl.constexpr(8.0)
"""Probabilities are at most 1 and float8_e4m3 loses what is below 2**-9; times 2**8 they use its range up to 448."""


@triton.jit
def read_length(length: tl.tensor, capacity: tl.tensor, IN_MEMORY: tl.constexpr) -> tl.tensor:
    """Keys to attend over, 0 to ``capacity``: what a caller writes into the tensor can never send us out of bounds."""
    count = length
    if IN_MEMORY:
        count = tl.load(length)
    return tl.maximum(tl.minimum(count, capacity), 0)


@triton.jit
def key_blocks(unit: tl.tensor, length: tl.tensor, BLOCK_K: tl.constexpr, SPLITS: tl.constexpr) -> tuple:
    """First key block of this unit and the one behind its last."""
    blocks = tl.cdiv(length, BLOCK_K)
    piece = unit % SPLITS
    return piece * blocks // SPLITS, (piece + 1) * blocks // SPLITS


@triton.jit
def softmax_step(
    s_MN: tl.tensor, top_M: tl.tensor, scale: tl.tensor, FP8: tl.constexpr, SCALE_PER_ROW: tl.constexpr
) -> tuple:
    """New running maximum, factor for what was summed before, and exp2 of the scores.

    ``scale`` is positive and one number where it can be: a scale per row costs registers that sm_100 has not.
    """
    new_M = tl.maximum(top_M, tl.max(s_MN, 1) * scale)
    shift_M = new_M
    if FP8:
        shift_M = new_M - FP8_P_SHIFT
    if SCALE_PER_ROW:
        p_MN = tl.math.exp2(s_MN * scale[:, None] - shift_M[:, None])
    else:
        p_MN = tl.math.exp2(s_MN * scale - shift_M[:, None])
    return new_M, tl.math.exp2(top_M - new_M), p_MN


@triton.jit
def quantise_rows(q_MK: tl.tensor) -> tuple:
    """Queries as float8_e4m3 with one scale per row; a row of zeros gets the scale 1."""
    q_MK = q_MK.to(tl.float32)
    largest_M = tl.max(tl.abs(q_MK), 1)
    scale_M = tl.where(largest_M > 0, largest_M / 448.0, 1.0)
    return (q_MK / scale_M[:, None]).to(tl.float8e4nv), scale_M


@triton.jit
def write_result(
    acc_MK: tl.tensor,
    top_M: tl.tensor,
    sum_M: tl.tensor,
    v_scale: tl.tensor,
    unit: tl.tensor,
    out_ptr: tl.tensor,
    out_sl: tl.tensor,
    parts_ptr: tl.tensor,
    first_row: tl.tensor,
    queries: tl.tensor,
    BLOCK_Q: tl.constexpr,
    K: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    """Write the finished rows of a tile, or a piece's sums into its part ``[BLOCK_Q * K | maxima | sums]``.

    No control flow but on constants: warp specialisation gives up on a kernel with a branch behind its loop.
    """
    inner = tl.arange(0, BLOCK_Q)
    cols = tl.arange(0, K)
    if SPLITS == 1:
        rows = first_row + inner
        out_MK = acc_MK * (v_scale / tl.where(sum_M > 0, sum_M, 1.0))[:, None]
        where = out_ptr + rows[:, None].to(tl.int64) * out_sl + cols[None, :]
        tl.store(where, out_MK.to(out_ptr.dtype.element_ty), mask=rows[:, None] < queries)
    else:
        part_ptr = parts_ptr + unit.to(tl.int64) * (BLOCK_Q * (K + 2))
        tl.store(part_ptr + inner[:, None] * K + cols[None, :], acc_MK)
        tl.store(part_ptr + BLOCK_Q * K + inner, top_M)
        tl.store(part_ptr + BLOCK_Q * (K + 1) + inner, sum_M)
