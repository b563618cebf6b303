"""The attention kernel for sm_90 and newer: tensor descriptors (TMA), warps specialised into loading and computing.

Descriptors are made in the kernel, one set per tile, with the number of filled keys as their bound: the copy engine
then fills with zeros what lies behind it and reads nothing there. The mask is applied in every key block, because the
compiler specialises warps only if the loop has no branch and no second product stands outside of it (found by
compiling, see NOTES.md); without specialisation the last block is taken apart, as in the pointer kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from shotstream.kernels.attention.parts import key_blocks, quantise_rows, read_length, softmax_step, write_result


@triton.jit
def _step(
    q_MK: tl.tensor,
    k_desc: tl.tensor,
    v_desc: tl.tensor,
    block: tl.tensor,
    keys: tl.tensor,
    top_M: tl.tensor,
    sum_M: tl.tensor,
    acc_MK: tl.tensor,
    scale: tl.tensor,
    BLOCK_K: tl.constexpr,
    MASKED: tl.constexpr,
    FP8: tl.constexpr,
    SCALE_PER_ROW: tl.constexpr,
    V_BY_CHANNEL: tl.constexpr,
) -> tuple:
    begin = block * BLOCK_K
    k_NK = k_desc.load([begin, 0])
    s_MN = tl.dot(q_MK, k_NK.T)
    if MASKED:
        s_MN = tl.where((begin + tl.arange(0, BLOCK_K))[None, :] < keys, s_MN, float("-inf"))
    top_M, alpha_M, p_MN = softmax_step(s_MN, top_M, scale, FP8, SCALE_PER_ROW)
    sum_M = sum_M * alpha_M + tl.sum(p_MN, 1)
    acc_MK = acc_MK * alpha_M[:, None]
    if V_BY_CHANNEL:
        v_KN = v_desc.load([0, begin])
        acc_MK = tl.dot(p_MN.to(v_KN.dtype), v_KN.T, acc_MK)
    else:
        v_NK = v_desc.load([begin, 0])
        acc_MK = tl.dot(p_MN.to(v_NK.dtype), v_NK, acc_MK)
    return top_M, sum_M, acc_MK


@triton.jit
def _unit(
    unit: tl.tensor,
    keys: tl.tensor,
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    out_ptr: tl.tensor,
    parts_ptr: tl.tensor,
    q_scale_ptr: tl.tensor,
    k_scale_ptr: tl.tensor,
    v_scale_ptr: tl.tensor,
    scale: tl.tensor,
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
    SPECIALISE: tl.constexpr,
    FP8: tl.constexpr,
    QUANTISE: tl.constexpr,
    V_BY_CHANNEL: tl.constexpr,
) -> None:
    tile = first + unit // SPLITS
    batch = (tile // query_blocks // heads).to(tl.int64)
    head = (tile // query_blocks % heads).to(tl.int64)
    first_row = (tile % query_blocks) * BLOCK_Q
    begin, end = key_blocks(unit, keys, BLOCK_K, SPLITS)

    q_desc = tl.make_tensor_descriptor(q_ptr + batch * q_sb + head * q_sh, [queries, K], [q_sl, 1], [BLOCK_Q, K])
    # A descriptor needs one row at least; without keys there is no block and nothing is loaded.
    bound = tl.maximum(keys, 1)
    k_desc = tl.make_tensor_descriptor(k_ptr + batch * k_sb + head * k_sh, [bound, K], [k_ss, 1], [BLOCK_K, K])
    v_head = v_ptr + batch * v_sb + head * v_sh
    if V_BY_CHANNEL:
        v_desc = tl.make_tensor_descriptor(v_head, [K, bound], [v_sk, 1], [K, BLOCK_K])
    else:
        v_desc = tl.make_tensor_descriptor(v_head, [bound, K], [v_ss, 1], [BLOCK_K, K])

    q_MK = q_desc.load([first_row, 0])
    v_scale = 1.0
    if FP8:
        scale *= tl.load(k_scale_ptr + head)
        v_scale = tl.load(v_scale_ptr + head)
        if QUANTISE:
            q_MK, scale_M = quantise_rows(q_MK)
            scale = scale * scale_M
        else:
            scale *= tl.load(q_scale_ptr + head)

    top_M = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    sum_M = tl.zeros([BLOCK_Q], tl.float32)
    acc_MK = tl.zeros([BLOCK_Q, K], tl.float32)
    if SPECIALISE:
        for block in tl.range(begin, end, num_stages=STAGES, warp_specialize=True):
            top_M, sum_M, acc_MK = _step(
                q_MK, k_desc, v_desc, block, keys, top_M, sum_M, acc_MK, scale, BLOCK_K, True, FP8, QUANTISE,
                V_BY_CHANNEL,
            )  # fmt: skip
    else:
        whole = tl.minimum(end, keys // BLOCK_K)
        for block in tl.range(begin, whole, num_stages=STAGES):
            top_M, sum_M, acc_MK = _step(
                q_MK, k_desc, v_desc, block, keys, top_M, sum_M, acc_MK, scale, BLOCK_K, False, FP8, QUANTISE,
                V_BY_CHANNEL,
            )  # fmt: skip
        if end > whole:
            top_M, sum_M, acc_MK = _step(
                q_MK, k_desc, v_desc, whole, keys, top_M, sum_M, acc_MK, scale, BLOCK_K, True, FP8, QUANTISE,
                V_BY_CHANNEL,
            )  # fmt: skip
    write_result(
        acc_MK, top_M, sum_M, v_scale, unit, out_ptr + batch * out_sb + head * out_sh, out_sl, parts_ptr,
        first_row, queries, BLOCK_Q, K, SPLITS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["length", "capacity", "queries", "heads", "first", "query_blocks", "units"])
def descriptor_kernel(
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
    units: tl.tensor,
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
    SPECIALISE: tl.constexpr,
    PERSISTENT: tl.constexpr,
    LENGTH_IN_MEMORY: tl.constexpr,
    FP8: tl.constexpr,
    QUANTISE: tl.constexpr,
    V_BY_CHANNEL: tl.constexpr,
) -> None:
    """One program per unit, or, persistent, one per multiprocessor that takes every so-many-th unit."""
    keys = read_length(length, capacity, LENGTH_IN_MEMORY)
    if PERSISTENT:
        for unit in tl.range(tl.program_id(0), units, tl.num_programs(0)):
            _unit(
                unit, keys, q_ptr, k_ptr, v_ptr, out_ptr, parts_ptr, q_scale_ptr, k_scale_ptr, v_scale_ptr, scale,
                queries, heads, first, query_blocks, q_sb, q_sl, q_sh, k_sb, k_ss, k_sh, v_sb, v_ss, v_sh, v_sk,
                out_sb, out_sl, out_sh, K, BLOCK_Q, BLOCK_K, SPLITS, STAGES, SPECIALISE, FP8, QUANTISE, V_BY_CHANNEL,
            )  # fmt: skip
    else:
        _unit(
            tl.program_id(0), keys, q_ptr, k_ptr, v_ptr, out_ptr, parts_ptr, q_scale_ptr, k_scale_ptr, v_scale_ptr,
            scale, queries, heads, first, query_blocks, q_sb, q_sl, q_sh, k_sb, k_ss, k_sh, v_sb, v_ss, v_sh, v_sk,
            out_sb, out_sl, out_sh, K, BLOCK_Q, BLOCK_K, SPLITS, STAGES, SPECIALISE, FP8, QUANTISE, V_BY_CHANNEL,
        )  # fmt: skip
