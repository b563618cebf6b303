"""What the ahead-of-time report compiles of this folder: every specialisation that an engine launches.

Widths are those of `wan-1.3b` in bfloat16 and of `tiny` in float32. What ends in eight bits needs hardware that knows
float8_e4m3fn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from shotstream.kernels.aot import ARCHITECTURES, KernelSpec
from shotstream.kernels.fused import gelu, noise, norm, prologue, quantise, residual, rms, values
from shotstream.kernels.fused.launch import block_lanes, warps
from shotstream.runtime.config import TINY, WAN_1_3B

_EPS = WAN_1_3B.eps
_WIDE, _HIDDEN, _HEAD = WAN_1_3B.dim, WAN_1_3B.ffn_dim, WAN_1_3B.head_dim
_SMALL, _SMALL_HIDDEN, _SMALL_HEAD = TINY.dim, TINY.ffn_dim, TINY.head_dim
_WITH_FP8 = tuple(arch for arch in ARCHITECTURES if arch >= 89)
_NO_GPU = torch.device("cpu")
_AFFINE, _MODULATED = ("weight_ptr", "bias_ptr"), ("scale_ptr", "shift_ptr")
_NORM_PARTS = (*_AFFINE, *_MODULATED)


def specs() -> list[KernelSpec]:
    """All specialisations, for :mod:`shotstream.kernels.aot`."""
    found = [
        _prologue("bf16", "bf16"),
        _prologue("bf16", "bf16", ring=False),
        _prologue("bf16", "bf16", queries=False),
        _prologue("bf16", "fp8e4nv"),
        _prologue("bf16", "fp8e4nv", values=False),
        _values("bf16", "fp8e4nv"),
        _prologue("fp16", "fp16"),
        _prologue("fp32", "fp32", width=_SMALL, head_dim=_SMALL_HEAD),
        _norm("bf16", _MODULATED),
        _norm("bf16", _AFFINE),
        _norm("bf16", _MODULATED, fp8=True),
        _norm("bf16", _AFFINE, fp8=True),
        _norm("fp32", _MODULATED, width=_SMALL),
        _residual("bf16"),
        _residual("fp32", width=_SMALL),
        _residual_norm("bf16", True, _AFFINE),
        _residual_norm("bf16", False, _MODULATED),
        _residual_norm("bf16", True, _MODULATED),
        _residual_norm("bf16", True, _AFFINE, fp8=True),
        _residual_norm("bf16", False, _MODULATED, fp8=True),
        _residual_norm("bf16", True, _MODULATED, fp8=True),
        _residual_norm("fp32", True, _MODULATED, width=_SMALL),
        _rms("bf16"),
        _rms("fp32", width=_SMALL),
        _gelu("bf16"),
        _gelu("bf16", fp8=True),
        _gelu("fp32", width=_SMALL_HIDDEN),
        _quantise("bf16", _WIDE),
        _quantise("bf16", _HIDDEN),
        *(_noise(kind) for kind in ("bf16", "fp16", "fp32")),
    ]
    return found


def _spec(
    name: str,
    kernel: Any,
    width: int,
    pointers: Mapping[str, str | None],
    integers: Mapping[str, bool],
    constants: Mapping[str, Any],
    *,
    label: str,
    block: int = 0,
) -> KernelSpec:
    """A spec from pointers (None: left out) and integers (True: a multiple of 16)."""
    signature = {key: f"*{kind}" for key, kind in pointers.items() if kind is not None}
    absent = {key: None for key, kind in pointers.items() if kind is None}
    lanes = block or block_lanes(width)
    return KernelSpec(
        name=f"fused/{name} {label}",
        kernel=kernel,
        signature={**signature, **dict.fromkeys(integers, "i32")},
        constants={**constants, **absent, "D": width, "BLOCK": lanes},
        divisible=[key for key, aligned in integers.items() if aligned],
        num_warps=warps(name, block or width, _NO_GPU),
        architectures=_WITH_FP8 if "*fp8e4nv" in signature.values() else ARCHITECTURES,
    )


def _prologue(
    kind: str,
    cache: str,
    *,
    width: int = _WIDE,
    head_dim: int = _HEAD,
    ring: bool = True,
    queries: bool = True,
    values: bool = True,
) -> KernelSpec:
    scale = "fp32" if cache == "fp8e4nv" else None
    pointers = {
        "qkv_ptr": kind,
        "bias_ptr": kind,
        "norm_q_ptr": kind if queries else None,
        "norm_k_ptr": kind,
        "cos_ptr": "fp32",
        "sin_ptr": "fp32",
        "q_ptr": kind if queries else None,
        "k_ptr": cache,
        "v_ptr": cache if values else None,
        "k_scale_ptr": scale,
        "v_scale_ptr": scale if values else None,
        "start_ptr": "i32",
    }
    # A chunk's tokens are no multiple of 16; the table's stride over the batch is zero or one of the head's width.
    integers = {
        "tokens": False,
        "slots": False,
        "ring_begin": False,
        "qkv_stride_b": True,
        "qkv_stride_l": True,
        "table_stride_b": True,
    }
    label = f"{kind} to {cache} {width}{' ring' if ring else ''}{'' if queries else ' no q'}{'' if values else ' no v'}"
    constants = {"eps": _EPS, "K": head_dim, "RING": ring}
    return _spec("qk_prologue", prologue.qk_prologue_kernel, width, pointers, integers, constants, label=label)


def _values(kind: str, cache: str) -> KernelSpec:
    tile = {"TOKENS": values.TOKENS, "CHANNELS": values.CHANNELS}
    return KernelSpec(
        name=f"fused/values_by_channel {kind} to {cache} {_WIDE}",
        kernel=values.values_by_channel_kernel,
        signature={
            "v_ptr": f"*{kind}",
            "bias_ptr": f"*{kind}",
            "scale_ptr": "*fp32",
            "out_ptr": f"*{cache}",
            "start_ptr": "*i32",
            **dict.fromkeys(("tokens", "slots", "ring_begin"), "i32"),
            **dict.fromkeys(("v_stride_b", "v_stride_l", "out_stride_b", "out_stride_c"), "i32"),
        },
        constants={"D": _WIDE, "K": _HEAD, "RING": True, **tile},
        divisible=("v_stride_b", "v_stride_l", "out_stride_b", "out_stride_c"),
        num_warps=values.tile_warps(_NO_GPU),
        architectures=_WITH_FP8,
    )


def _norm_pointers(kind: str, parts: tuple[str, ...], fp8: bool) -> dict[str, str | None]:
    present = {key: kind if key in parts else None for key in _NORM_PARTS}
    return {**present, "out_ptr": "fp8e4nv" if fp8 else kind, "row_scale_ptr": "fp32" if fp8 else None}


def _norm(kind: str, parts: tuple[str, ...], *, width: int = _WIDE, fp8: bool = False) -> KernelSpec:
    pointers = {"x_ptr": kind, **_norm_pointers(kind, parts, fp8)}
    integers = {"x_stride": True, "scale_stride": True, "shift_stride": True, "rows_per_vector": False}
    label = f"{kind} {width} {'affine' if parts is _AFFINE else 'modulated'}"
    name = "norm_modulate_fp8" if fp8 else "norm_modulate"
    return _spec(name, norm.norm_modulate_kernel, width, pointers, integers, {"eps": _EPS}, label=label)


def _residual(kind: str, *, width: int = _WIDE) -> KernelSpec:
    pointers = {"x_ptr": kind, "y_ptr": kind, "gate_ptr": kind}
    integers = {"x_stride": True, "y_stride": True, "gate_stride": True, "rows_per_gate": False}
    label = f"{kind} {width}"
    return _spec("gated_residual", residual.gated_residual_kernel, width, pointers, integers, {}, label=label)


def _residual_norm(
    kind: str, gate: bool, parts: tuple[str, ...], *, width: int = _WIDE, fp8: bool = False
) -> KernelSpec:
    pointers = {
        "x_ptr": kind,
        "y_ptr": kind,
        "gate_ptr": kind if gate else None,
        **_norm_pointers(kind, parts, fp8),
    }
    integers = {
        "x_stride": True,
        "y_stride": True,
        "gate_stride": True,
        "rows_per_gate": False,
        "scale_stride": True,
        "shift_stride": True,
        "rows_per_vector": False,
    }
    label = f"{kind} {width}{' gated' if gate else ''} {'affine' if parts is _AFFINE else 'modulated'}"
    name = "gated_residual_norm_fp8" if fp8 else "gated_residual_norm"
    kernel = residual.gated_residual_norm_kernel
    return _spec(name, kernel, width, pointers, integers, {"eps": _EPS}, label=label)


def _rms(kind: str, *, width: int = _WIDE) -> KernelSpec:
    pointers = {"x_ptr": kind, "weight_ptr": kind, "bias_ptr": kind, "out_ptr": kind}
    return _spec(
        "rms_norm",
        rms.rms_norm_kernel,
        width,
        pointers,
        {"x_stride": True},
        {"eps": _EPS},
        label=f"{kind} {width}",
    )


def _gelu(kind: str, *, width: int = _HIDDEN, fp8: bool = False) -> KernelSpec:
    pointers = {"x_ptr": kind, "bias_ptr": kind, "out_ptr": "fp8e4nv" if fp8 else kind}
    integers, label = {"x_stride": True}, f"{kind} {width}"
    if fp8:
        pointers["row_scale_ptr"] = "fp32"
        return _spec("gelu_tanh_fp8", gelu.gelu_tanh_fp8_kernel, width, pointers, integers, {}, label=label)
    return _spec("gelu_tanh", gelu.gelu_tanh_kernel, width, pointers, integers, {}, label=label, block=gelu.part(width))


def _quantise(kind: str, width: int) -> KernelSpec:
    pointers = {"x_ptr": kind, "out_ptr": "fp8e4nv", "row_scale_ptr": "fp32"}
    kernel, label = quantise.quantise_kernel, f"{kind} {width}"
    return _spec("quantise_fp8_rowwise", kernel, width, pointers, {"x_stride": True}, {}, label=label)


def _noise(kind: str) -> KernelSpec:
    scalars = ("count", "key_low", "key_high", "shot", "chunk", "step")
    return KernelSpec(
        name=f"fused/draw_normal {kind}",
        kernel=noise.draw_normal_kernel,
        signature={"out_ptr": f"*{kind}", **dict.fromkeys(scalars, "i32")},
        constants={"BLOCK": noise.BLOCK},
        num_warps=noise.WARPS,
        options=noise.OPTIONS,
    )
