"""The attention kernel for every GPU: plain pointers, masks in a tile's last key block only."""

from __future__ import annotations

import triton
import triton.language as tl

from shotstream.kernels.attention.parts import key_blocks, quantise_rows, read_length, softmax_step, write_result


@triton.jit
def _step(
    q_MK: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    k_ss: tl.tensor,
    v_ss: tl.tensor,
    v_sk: tl.tensor,
    block: tl.tensor,
    length: tl.tensor,
    top_M: tl.tensor,
    sum_M: tl.tensor,
    acc_MK: tl.tensor,
    scale: tl.tensor,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MASKED: tl.constexpr,
    FP8: tl.constexpr,
    SCALE_PER_ROW: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tuple:
    keys = block * BLOCK_K + tl.arange(0, BLOCK_K)
    cols = tl.arange(0, K)
    k_at = k_ptr + keys[None, :].to(tl.int64) * k_ss + cols[:, None]
    v_at = v_ptr + keys[:, None].to(tl.int64) * v_ss + cols[None, :] * v_sk
    if MASKED:
        k_KN = tl.load(k_at, mask=keys[None, :] < length, other=0.0)
        v_NK = tl.load(v_at, mask=keys[:, None] < length, other=0.0)
    else:
        k_KN = tl.load(k_at)
        v_NK = tl.load(v_at)
    s_MN = tl.dot(q_MK, k_KN, input_precision=PRECISION)
    if MASKED:
        s_MN = tl.where(keys[None, :] < length, s_MN, float("-inf"))
    top_M, alpha_M, p_MN = softmax_step(s_MN, top_M, scale, FP8, SCALE_PER_ROW)
    sum_M = sum_M * alpha_M + tl.sum(p_MN, 1)
    acc_MK = tl.dot(p_MN.to(v_NK.dtype), v_NK, acc_MK * alpha_M[:, None], input_precision=PRECISION)
    return top_M, sum_M, acc_MK


@triton.jit(do_not_specialize=["length", "capacity", "queries", "heads", "first", "query_blocks"])
def pointer_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    out_ptr: tl.tensor,
    parts_ptr: tl.tensor,
    q_scale_ptr: tl.tensor,
    k_scale_ptr: tl.tensor,
    v_scale_ptr: tl.tensor,
    length: tl.tensor,
    scale: tl.tensor,
    capacity: tl.tensor,
    queries: tl.tensor,
    heads: tl.tensor,
    first: tl.tensor,
    query_blocks: tl.tensor,
    q_sb: tl.tensor,
    q_sl: tl.tensor,
    q_sh: tl.tensor,
    k_sb: tl.tensor,
    k_ss: tl.tensor,
    k_sh: tl.tensor,
    v_sb: tl.tensor,
    v_ss: tl.tensor,
    v_sh: tl.tensor,
    v_sk: tl.tensor,
    out_sb: tl.tensor,
    out_sl: tl.tensor,
    out_sh: tl.tensor,
    K: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    LENGTH_IN_MEMORY: tl.constexpr,
    FP8: tl.constexpr,
    QUANTISE: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """One program per unit: tile ``first + unit // SPLITS``. Shapes and strides as `cache_attention` checked them."""
    unit = tl.program_id(0)
    tile = first + unit // SPLITS
    batch = (tile // query_blocks // heads).to(tl.int64)
    head = (tile // query_blocks % heads).to(tl.int64)
    first_row = (tile % query_blocks) * BLOCK_Q
    keys = read_length(length, capacity, LENGTH_IN_MEMORY)
    begin, end = key_blocks(unit, keys, BLOCK_K, SPLITS)

    rows = first_row + tl.arange(0, BLOCK_Q)
    cols = tl.arange(0, K)
    q_at = q_ptr + batch * q_sb + head * q_sh + rows[:, None].to(tl.int64) * q_sl + cols[None, :]
    q_MK = tl.load(q_at, mask=rows[:, None] < queries, other=0.0)
    v_scale = 1.0
    if FP8:
        scale *= tl.load(k_scale_ptr + head)
        v_scale = tl.load(v_scale_ptr + head)
        if QUANTISE:
            q_MK, scale_M = quantise_rows(q_MK)
            scale = scale * scale_M
        else:
            scale *= tl.load(q_scale_ptr + head)
    k_head = k_ptr + batch * k_sb + head * k_sh
    v_head = v_ptr + batch * v_sb + head * v_sh

    top_M = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    sum_M = tl.zeros([BLOCK_Q], tl.float32)
    acc_MK = tl.zeros([BLOCK_Q, K], tl.float32)
    whole = tl.minimum(end, keys // BLOCK_K)
    for block in tl.range(begin, whole, num_stages=STAGES):
        top_M, sum_M, acc_MK = _step(
            q_MK, k_head, v_head, k_ss, v_ss, v_sk, block, keys, top_M, sum_M, acc_MK, scale,
            K, BLOCK_K, False, FP8, QUANTISE, PRECISION,
        )  # fmt: skip
    if end > whole:
        top_M, sum_M, acc_MK = _step(
            q_MK, k_head, v_head, k_ss, v_ss, v_sk, whole, keys, top_M, sum_M, acc_MK, scale,
            K, BLOCK_K, True, FP8, QUANTISE, PRECISION,
        )  # fmt: skip
    write_result(
        acc_MK, top_M, sum_M, v_scale, unit, out_ptr + batch * out_sb + head * out_sh, out_sl, parts_ptr,
        first_row, queries, BLOCK_Q, K, SPLITS,
    )  # fmt: skip
