"""Launch one of the two kernels over a plan, and the kernel that puts cut tiles together. Checks nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from shotstream.kernels.attention.combine import ROWS, combine_kernel
from shotstream.kernels.attention.config import Config
from shotstream.kernels.attention.descriptor import descriptor_kernel
from shotstream.kernels.attention.pointer import pointer_kernel
from shotstream.kernels.attention.scales import FP8, Scales
from shotstream.kernels.attention.schedule import Plan

PRECISION = "tf32x3"
"""How float32 products are made: three passes in tf32 keep float32 accuracy. Other dtypes ignore it."""

OPTIONS: Mapping[str, Any] = {"enable_fp_fusion": True}
"""Options of every build. Multiply-adds are fused, which Triton says it will not do by default for ever."""


def scale_of(head_dim: int) -> float:
    """``log2(e) / sqrt(head_dim)``: scores in base 2."""
    return math.log2(math.e) / math.sqrt(head_dim)


def constants(config: Config, head_dim: int, splits: int, *, in_memory: bool, fp8: bool, quantise: bool,
              v_by_channel: bool) -> dict[str, Any]:  # fmt: skip
    """Every constexpr of the kernel of ``config.path``, as a launch and the ahead-of-time report give them."""
    common = {
        "K": head_dim,
        "BLOCK_Q": config.block_q,
        "BLOCK_K": config.block_k,
        "SPLITS": splits,
        "STAGES": config.stages,
        "LENGTH_IN_MEMORY": in_memory,
        "FP8": fp8,
        "QUANTISE": quantise,
    }
    if config.path == "pointer":
        return common | {"PRECISION": PRECISION}
    persistent = config.persistent and splits == 1
    return common | {"SPECIALISE": config.specialise, "PERSISTENT": persistent, "V_BY_CHANNEL": v_by_channel}


def launch(
    q_BLHK: Tensor,
    k_BSHK: Tensor,
    v_BSHK: Tensor,
    length: Tensor | int,
    scales: Scales | None,
    out_BLHK: Tensor,
    config: Config,
    plan: Plan,
    processors: int,
) -> None:
    """Fill ``out_BLHK``. At most three launches: whole tiles, pieces, combine. Nothing waits for the device."""
    queries, heads, head_dim = q_BLHK.shape[1:]
    query_blocks = -(-queries // config.block_q)
    fp8 = k_BSHK.dtype == FP8
    v_strides = v_BSHK.stride()
    scale_tensors = (scales.q_H, scales.k_H, scales.v_H) if scales is not None else (None, None, None)
    parts = None
    if plan.split:
        size = plan.pieces * config.block_q * (head_dim + 2)
        parts = torch.empty(size, dtype=torch.float32, device=q_BLHK.device)
    if config.path == "descriptor":
        # Descriptors made in a kernel live in a scratch buffer that Triton asks for; in a graph it is the graph's own.
        triton.set_allocator(_scratch)
    for first, units, splits in ((0, plan.whole, 1), (plan.whole, plan.pieces, plan.splits)):
        if not units:
            continue
        chosen = constants(
            config, head_dim, splits, in_memory=isinstance(length, Tensor), fp8=fp8,
            quantise=fp8 and q_BLHK.dtype != FP8, v_by_channel=v_strides[1] == 1 and v_strides[3] != 1,
        )  # fmt: skip
        grid = min(units, processors) if chosen.get("PERSISTENT") else units
        counts: tuple[int, ...] = (k_BSHK.shape[1], queries, heads, first, query_blocks)
        if config.path == "descriptor":
            counts = (*counts, units)
        kernel = pointer_kernel if config.path == "pointer" else descriptor_kernel
        kernel[(grid,)](
            q_BLHK, k_BSHK, v_BSHK, out_BLHK, parts if splits > 1 else None, *scale_tensors, length,
            scale_of(head_dim), *counts, *q_BLHK.stride()[:3], *k_BSHK.stride()[:3], *v_strides,
            *out_BLHK.stride()[:3], **chosen, num_warps=config.warps, num_stages=config.stages, **OPTIONS,
        )  # fmt: skip
    if plan.split:
        combine_kernel[(plan.split, config.block_q // ROWS)](
            parts, out_BLHK, scale_tensors[2], queries, heads, plan.whole, query_blocks, *out_BLHK.stride()[:3],
            K=head_dim, BLOCK_Q=config.block_q, SPLITS=plan.splits, ROWS=ROWS, FP8=fp8, num_warps=4, **OPTIONS,
        )  # fmt: skip


def _scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    return torch.empty(size, dtype=torch.int8, device="cuda")
