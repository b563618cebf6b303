"""The kernel that puts a tile's pieces together, where its keys were shared out among several programs."""

from __future__ import annotations

import triton
import triton.language as tl

ROWS = 16
"""Rows of a tile per program: small, so that few tiles still fill the GPU."""


@triton.jit(do_not_specialize=["queries", "heads", "first", "query_blocks"])
def combine_kernel(
    parts_ptr: tl.tensor,
    out_ptr: tl.tensor,
    v_scale_ptr: tl.tensor,
    queries: tl.tensor,
    heads: tl.tensor,
    first: tl.tensor,
    query_blocks: tl.tensor,
    out_sb: tl.tensor,
    out_sl: tl.tensor,
    out_sh: tl.tensor,
    K: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    FP8: tl.constexpr,
) -> None:
    """Grid: (split tiles, BLOCK_Q / ROWS). A piece without keys has the maximum -inf and adds nothing."""
    tile = tl.program_id(0)
    inner = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, K)
    size: tl.constexpr = BLOCK_Q * (K + 2)
    piece_ptr = parts_ptr + tile.to(tl.int64) * (SPLITS * size)

    top_M = tl.full([ROWS], float("-inf"), tl.float32)
    for piece in tl.static_range(SPLITS):
        top_M = tl.maximum(top_M, tl.load(piece_ptr + piece * size + BLOCK_Q * K + inner))
    safe_M = tl.where(top_M > float("-inf"), top_M, 0.0)
    sum_M = tl.zeros([ROWS], tl.float32)
    acc_MK = tl.zeros([ROWS, K], tl.float32)
    for piece in tl.static_range(SPLITS):
        part_ptr = piece_ptr + piece * size
        weight_M = tl.math.exp2(tl.load(part_ptr + BLOCK_Q * K + inner) - safe_M)
        sum_M += tl.load(part_ptr + BLOCK_Q * (K + 1) + inner) * weight_M
        acc_MK += tl.load(part_ptr + inner[:, None] * K + cols[None, :]) * weight_M[:, None]

    number = first + tile
    batch = (number // query_blocks // heads).to(tl.int64)
    head = (number // query_blocks % heads).to(tl.int64)
    rows = (number % query_blocks) * BLOCK_Q + inner
    v_scale = 1.0
    if FP8:
        v_scale = tl.load(v_scale_ptr + head)
    out_MK = acc_MK * (v_scale / tl.where(sum_M > 0, sum_M, 1.0))[:, None]
    out_at = out_ptr + batch * out_sb + head * out_sh + rows[:, None].to(tl.int64) * out_sl + cols[None, :]
    tl.store(out_at, out_MK.to(out_ptr.dtype.element_ty), mask=rows[:, None] < queries)
