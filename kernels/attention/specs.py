"""The specialisations of the attention kernels that the product launches, for the ahead-of-time report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from shotstream.kernels.aot import KernelSpec
from shotstream.kernels.attention import config as tuning
from shotstream.kernels.attention.combine import ROWS, combine_kernel
from shotstream.kernels.attention.config import Config
from shotstream.kernels.attention.descriptor import descriptor_kernel
from shotstream.kernels.attention.launch import OPTIONS, constants
from shotstream.kernels.attention.pointer import pointer_kernel
from shotstream.kernels.attention.scales import FP8

_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", FP8: "fp8e4nv"}
_SPLITS = 5

FLOAT32_SPILLS = 160
"""Float32 products of three passes do not fit the registers at any block size; float32 is for checks, not for films."""

_AXES = (("q", "blh"), ("k", "bsh"), ("v", "bshk"), ("out", "blh"))
_STRIDES = tuple(f"{name}_s{axis}" for name, axes in _AXES for axis in axes)
_COUNTS = ("capacity", "queries", "heads", "first", "query_blocks", "units")


def specs() -> list[KernelSpec]:
    """One spec per configuration in ``tuning/``, whole and in pieces, the length in device memory."""
    found: dict[tuple[Any, ...], tuple[KernelSpec, list[int]]] = {}
    for arch in tuning.architectures():
        for name, config in tuning.configs_of(arch).items():
            _, head_dim, dtype = name.split("/")
            for splits in (1, _SPLITS):
                identity = (config, head_dim, dtype, splits)
                if identity not in found:
                    made = attention_spec(config, int(head_dim), getattr(torch, dtype), splits)
                    found[identity] = (made, [])
                found[identity][1].append(arch)
    result = [_on(spec, archs) for spec, archs in found.values()]
    return result + [_combine(head_dim, dtype) for head_dim in tuning.HEAD_DIMS for dtype in tuning.DTYPES]


def attention_spec(config: Config, head_dim: int, dtype: torch.dtype, splits: int) -> KernelSpec:
    """The spec of one launch with a full set of strides in multiples of 16."""
    fp8 = dtype == FP8
    # Queries are quantised in the kernel where warps are not specialised, in front of it where they are.
    query = (FP8 if config.specialise else torch.bfloat16) if fp8 else dtype
    by_channel = fp8 and config.path == "descriptor"
    fixed = constants(
        config, head_dim, splits, in_memory=True, fp8=fp8, quantise=fp8 and query != FP8, v_by_channel=by_channel
    )
    fixed["v_ss" if by_channel else "v_sk"] = 1
    types = dict.fromkeys((*_STRIDES, *_COUNTS), "i32")
    types |= {"q_ptr": f"*{_TYPES[query]}", "k_ptr": f"*{_TYPES[dtype]}", "v_ptr": f"*{_TYPES[dtype]}"}
    types |= {"out_ptr": f"*{_TYPES[torch.bfloat16 if query == FP8 else query]}", "length": "*i32", "scale": "fp32"}
    fixed |= {} if splits > 1 else {"parts_ptr": None}
    fixed |= {} if fp8 else dict.fromkeys(("q_scale_ptr", "k_scale_ptr", "v_scale_ptr"))
    if fp8 and query != FP8:
        fixed["q_scale_ptr"] = None
    for name in ("parts_ptr", "q_scale_ptr", "k_scale_ptr", "v_scale_ptr"):
        types[name] = "*fp32"
    kernel = pointer_kernel if config.path == "pointer" else descriptor_kernel
    part = "whole" if splits == 1 else "piece"
    return KernelSpec(
        name=f"attention {config.path} {head_dim} {_TYPES[dtype]} {config.block_q}x{config.block_k} {part}",
        kernel=kernel,
        signature={name: kind for name, kind in types.items() if name in kernel.arg_names and name not in fixed},
        constants=fixed,
        divisible=[name for name in _STRIDES if name not in fixed],
        unaligned=["length"],
        num_warps=config.warps,
        num_stages=config.stages,
        options=OPTIONS,
        spill_limit=FLOAT32_SPILLS if dtype == torch.float32 else 0,
    )


def _on(spec: KernelSpec, archs: list[int]) -> KernelSpec:
    return replace(spec, architectures=tuple(archs))


def _combine(head_dim: int, dtype: torch.dtype) -> KernelSpec:
    fp8 = dtype == FP8
    types = dict.fromkeys(("queries", "heads", "first", "query_blocks", "out_sb", "out_sl", "out_sh"), "i32")
    types |= {"parts_ptr": "*fp32", "out_ptr": f"*{_TYPES[torch.bfloat16 if fp8 else dtype]}"}
    types |= {"v_scale_ptr": "*fp32"} if fp8 else {}
    fixed = {"K": head_dim, "BLOCK_Q": 128, "SPLITS": _SPLITS, "ROWS": ROWS, "FP8": fp8}
    return KernelSpec(
        name=f"attention combine {head_dim} {_TYPES[dtype]}",
        kernel=combine_kernel,
        signature=types,
        constants=fixed if fp8 else fixed | {"v_scale_ptr": None},
        divisible=("out_sb", "out_sl", "out_sh"),
        num_warps=4,
        options=OPTIONS,
    )
