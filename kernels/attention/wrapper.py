"""`cache_attention`: attention of a chunk over the filled part of a key and value buffer, checked and launched."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from functools import cache

import torch
import triton
from torch import Tensor

from shotstream.kernels.attention import config as tuning
from shotstream.kernels.attention.config import Config
from shotstream.kernels.attention.launch import launch
from shotstream.kernels.attention.scales import FP8, Scales, quantise
from shotstream.kernels.attention.schedule import MOST_SPLITS, plan

log = logging.getLogger(__name__)

_FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_BLOCKS_PER_PIECE = 4
"""A tile is not cut into pieces of fewer key blocks than that when the buffer is full."""
_INTERPRETED = ((9, 0), 4)
"""What the interpreter plays: capability and multiprocessors."""


def cache_attention(
    q_BLHK: Tensor,
    k_BSHK: Tensor,
    v_BSHK: Tensor,
    length: Tensor | int,
    *,
    scales: Scales | None = None,
    out: Tensor | None = None,
    config: Config | None = None,
) -> Tensor:
    """Unmasked softmax attention of ``q`` over the first ``length`` keys, scale ``1/sqrt(K)``, as ``[B, L, H, K]``.

    q, k and v have one dtype of bfloat16, float16 and float32; or k and v are float8_e4m3fn with ``scales`` (then q is
    bfloat16 or float16 and is quantised in the kernel, or float8 with ``scales.q_H``). Heads of 64 or 128 channels that
    lie next to each other; other strides are free. Float8 values may lie key by key instead (`scales.empty_values`).

    ``length``: an int, or an int32 tensor of one element on the device, which is read when the kernel runs: one graph
    serves every fill level. It is clamped to 0 .. S; 0 gives zeros. Memory behind ``length`` keys is never read.

    ``out``: what is written and returned, ``[B, L, H, K]``, a new tensor of q's dtype (bfloat16 for float8 q) without
    it. ``config``: this configuration instead of the tuned one. The same call gives the same bits on the same GPU.

    Raises ValueError for arguments that do not fit, before anything is launched.
    """
    out = _check(q_BLHK, k_BSHK, v_BSHK, length, scales, out)
    if q_BLHK.numel() == 0:
        return out
    capability, processors = _device_facts(q_BLHK.device)
    given = config is not None
    chosen = config if config is not None else choose(q_BLHK, k_BSHK, v_BSHK, capability)[0]
    on_device = torch.cuda.device(q_BLHK.device) if q_BLHK.is_cuda else contextlib.nullcontext()
    with on_device:
        try:
            _run(q_BLHK, k_BSHK, v_BSHK, length, scales, out, chosen, processors)
        except Exception as error:
            if given or chosen.path != "descriptor" or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            # A compiler that gives up on descriptors costs speed, not the session.
            _refused[capability] = f"Triton {triton.__version__} could not build it: {_first_line(error)}"
            log.warning("attention falls back to the pointer kernel: %s", _refused[capability])
            chosen = choose(q_BLHK, k_BSHK, v_BSHK, capability)[0]
            _run(q_BLHK, k_BSHK, v_BSHK, length, scales, out, chosen, processors)
    return out


_refused: dict[tuple[int, int], str] = {}
"""Capability -> why the descriptor kernel is not used on it in this process."""


def choose(q_BLHK: Tensor, k_BSHK: Tensor, v_BSHK: Tensor, capability: tuple[int, int]) -> tuple[Config, str]:
    """The configuration for these tensors, and why not the descriptor kernel where it is not that (else "").

    Raises ValueError where no kernel can run: a GPU older than all tuning files, or float8 before sm_89.
    """
    arch = tuning.nearest_architecture(capability)
    if arch is None:
        raise ValueError(f"GPUs of capability {capability} are too old; 8.0 is the oldest that is supported")
    configs = tuning.configs_of(arch)
    head_dim, dtype = q_BLHK.shape[-1], k_BSHK.dtype
    pointer = configs.get(tuning.key("pointer", head_dim, dtype))
    descriptor = configs.get(tuning.key("descriptor", head_dim, dtype))
    if descriptor is None:
        reason = f"no configuration for {tuning.dtype_name(dtype)} with descriptors on sm_{arch}"
    elif capability in _refused:
        reason = _refused[capability]
    else:
        reason = _why_not_descriptors(q_BLHK, k_BSHK, v_BSHK)
    if descriptor is not None and not reason:
        return descriptor, ""
    if pointer is None:
        raise ValueError(f"{tuning.dtype_name(dtype)} keys and values cannot be attended over on sm_{arch}")
    return pointer, reason


def _run(q: Tensor, k: Tensor, v: Tensor, length: Tensor | int, scales: Scales | None, out: Tensor, config: Config,
         processors: int) -> None:  # fmt: skip
    if config.specialise and k.dtype == FP8 and q.dtype != FP8:
        # Warps are specialised only if nothing happens to q between its load and its product.
        q, q_scale_H = quantise(q)
        scales = replace(scales, q_H=q_scale_H) if scales is not None else None
    tiles = -(-q.shape[1] // config.block_q) * q.shape[0] * q.shape[2]
    blocks = -(-k.shape[1] // config.block_k)
    shared = plan(tiles, processors, min(MOST_SPLITS, blocks // _BLOCKS_PER_PIECE))
    launch(q, k, v, length, scales, out, config, shared, processors)


def _why_not_descriptors(q: Tensor, k: Tensor, v: Tensor) -> str:
    """The copy engine wants addresses and strides in multiples of 16 bytes, and for float8 values key by key."""
    if v.dtype == FP8 and v.stride(1) != 1:
        return "float8 values lie channel by channel; allocate them with scales.empty_values"
    for name, x in (("q", q), ("k", k), ("v", v)):
        strides = [stride for stride in x.stride() if stride != 1]
        if x.data_ptr() % 16 or any(stride * x.element_size() % 16 for stride in strides):
            return f"{name} does not lie in steps of 16 bytes"
    return ""


@cache
def _device_facts(device: torch.device) -> tuple[tuple[int, int], int]:
    if device.type != "cuda":
        return _INTERPRETED
    facts = torch.cuda.get_device_properties(device)
    return (facts.major, facts.minor), facts.multi_processor_count


def _check(q: Tensor, k: Tensor, v: Tensor, length: Tensor | int, scales: Scales | None, out: Tensor | None) -> Tensor:
    if q.dim() != 4 or k.dim() != 4:
        raise ValueError(f"q and k must be [B, L, H, K] and [B, S, H, K]; they are {list(q.shape)}, {list(k.shape)}")
    head_dim = q.shape[3]
    if k.shape != v.shape or k.shape[0] != q.shape[0] or k.shape[2:] != q.shape[2:] or k.shape[1] == 0:
        raise ValueError(f"k {list(k.shape)} and v {list(v.shape)} do not fit q {list(q.shape)}")
    if head_dim not in tuning.HEAD_DIMS:
        raise ValueError(f"heads must have {tuning.HEAD_DIMS} channels, not {head_dim}")
    if not q.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(f"the kernels need a CUDA device, q is on {q.device}")
    if len({q.device, k.device, v.device}) > 1:
        raise ValueError(f"q, k and v are on different devices: {q.device}, {k.device}, {v.device}")
    _check_dtypes(q, k, v, scales)
    by_key = v.dtype == FP8 and v.stride(1) == 1
    if q.stride(3) != 1 or k.stride(3) != 1 or (v.stride(3) != 1 and not by_key):
        raise ValueError("the channels of a head must lie next to each other in memory")
    if isinstance(length, Tensor):
        if length.dtype != torch.int32 or length.numel() != 1 or length.device != q.device:
            raise ValueError(f"length must be one int32 on {q.device}, not {length.dtype} {list(length.shape)}")
    elif not 0 <= length <= k.shape[1]:
        raise ValueError(f"length {length} is outside 0 .. {k.shape[1]}")
    if out is None:
        return torch.empty(q.shape, dtype=torch.bfloat16 if q.dtype == FP8 else q.dtype, device=q.device)
    if out.shape != q.shape or out.device != q.device or out.dtype not in _FLOATS or out.stride(3) != 1:
        raise ValueError(f"out must be {list(q.shape)} in a float dtype on {q.device} with heads in one piece")
    return out


def _check_dtypes(q: Tensor, k: Tensor, v: Tensor, scales: Scales | None) -> None:
    names = ", ".join(tuning.dtype_name(x.dtype) for x in (q, k, v))
    if k.dtype != FP8:
        if scales is not None or len({q.dtype, k.dtype, v.dtype}) > 1 or q.dtype not in _FLOATS:
            raise ValueError(f"q, k, v of {names} do not go together, or scales were given without float8")
        return
    if v.dtype != FP8 or q.dtype not in (torch.bfloat16, torch.float16, FP8):
        raise ValueError(f"q, k, v of {names} do not go together")
    if scales is None or (q.dtype == FP8) != (scales.q_H is not None):
        raise ValueError("float8 keys and values need scales; q_H is given if and only if q is float8 as well")
    for scale in (scales.k_H, scales.v_H, scales.q_H):
        if scale is not None and (scale.dtype != torch.float32 or scale.shape != (k.shape[2],)):
            raise ValueError(f"a scale must be float32 [{k.shape[2]}], not {scale.dtype} {list(scale.shape)}")
        if scale is not None and (scale.device != k.device or not scale.is_contiguous()):
            raise ValueError(f"scales must lie in one piece on {k.device}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
