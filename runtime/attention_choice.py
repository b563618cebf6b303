"""The attention `auto`: of the backends that are there, the first that runs on this device and computes rightly.

Each is tried on small shapes before the first film: several lengths, odd ones too, and NaN behind them, where nobody
may read. The result is held to float64, as near as torch's own products come.
Which backend is quickest is not measured here (`shotstream bench attention` does that): the order says it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.ops import FP8, FP8_MAX
from shotstream.runtime.model.attention import Attention, Prefix, attend, matmul_softmax, reads_device_length

log = logging.getLogger(__name__)

ORDER: tuple[str, ...] = ("triton", "flash", "sdpa")
"""Names of the slot `attention`, the one to be preferred first. Others are taken by name only."""

SLACK = 2.0
"""How many times the error of torch's own products is accepted."""
LEAST_ALLOWED: Mapping[torch.dtype, float] = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}
"""What is accepted however near torch comes: half a unit of the dtype, and for float32 the order of its sums."""
EIGHT_BIT_ALLOWED = 0.06
"""Of float8 keys and values, where probabilities may be rounded to eight bits too."""

_QUERIES, _CAPACITY, _TEXT = 37, 300, 77
_LENGTHS = (1, 17, 128, 255, 300)


@dataclass(frozen=True)
class Choice:
    """The backend that was taken. reasons: for every candidate one sentence why it was taken or not."""

    name: str
    attention: Attention
    reasons: Mapping[str, str]


@dataclass(frozen=True)
class _Shapes:
    """What a backend is tried on."""

    device: torch.device
    dtype: torch.dtype
    heads: int
    head_dim: int
    eight_bit: bool


def choose_attention(
    candidates: Mapping[str, Callable[[], Attention]],
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    head_dim: int,
    eight_bit: bool = False,
    order: Sequence[str] = ORDER,
) -> Choice:
    """The first of the candidates, in this order, that can be made here and passes the check.

    candidates: factories by name, as in the slot `attention`. eight_bit: keys and values will be float8_e4m3fn. What
    comes after the one that is taken is not made. Raises UserError if none passes.
    """
    shapes = _Shapes(device, dtype, heads, head_dim, eight_bit)
    reasons: dict[str, str] = {}
    found: tuple[str, Attention] | None = None
    for name in order:
        if name not in candidates:
            continue
        if found is not None:
            reasons[name] = f"not tried, '{found[0]}' comes first"
            continue
        attention, reasons[name] = _tried(name, candidates[name], shapes)
        if attention is not None:
            found = (name, attention)
    reasons |= {name: "only taken by name" for name in candidates if name not in reasons}
    for name, reason in reasons.items():
        log.info("attention %s: %s", name, reason)
    if found is None:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "there is none"
        raise UserError(f"no attention works on {device} in {dtype}: {listed}")
    return Choice(*found, reasons)


def _tried(name: str, factory: Callable[[], Attention], shapes: _Shapes) -> tuple[Attention | None, str]:
    """The backend, or None, and why. Whatever a backend raises costs that backend only."""
    try:
        attention = factory()
        fault = check_attention(attention, shapes.device, shapes.dtype, shapes.heads, shapes.head_dim, shapes.eight_bit)
    except UserError as error:
        said = str(error).removeprefix(f"the attention '{name}' ")
        return None, said.partition(";")[0]
    except Exception as error:
        log.debug("attention %s raised", name, exc_info=True)
        line = (str(error).strip().splitlines() or [""])[0][:200]
        return None, f"raised {type(error).__name__}: {line}"
    return (attention, "taken, its check passed") if fault is None else (None, fault)


@torch.inference_mode()
def check_attention(
    attention: Attention, device: torch.device, dtype: torch.dtype, heads: int, head_dim: int, eight_bit: bool = False
) -> str | None:
    """None if the backend computes what it should on small shapes, else one sentence with what is wrong."""
    generator = torch.Generator().manual_seed(0)

    def draw(batch: int, length: int) -> Tensor:
        return torch.randn((batch, length, heads, head_dim), generator=generator).to(device, dtype)

    q = draw(1, _QUERIES)
    k, v = draw(1, _CAPACITY), draw(1, _CAPACITY)
    for length in _LENGTHS:
        prefix, exact_k, exact_v = _prefix(attention, k, v, length, eight_bit)
        fault = _fault(attend(attention, q, prefix), q, exact_k, exact_v, eight_bit)
        if fault is not None:
            return f"over {length} of {_CAPACITY} keys {fault}"
    # As cross-attention calls it: several clips, all keys.
    q, k, v = draw(2, _QUERIES), draw(2, _TEXT), draw(2, _TEXT)
    fault = _fault(attention(q, k, v), q, k, v, eight_bit=False)
    return None if fault is None else f"over all of {_TEXT} keys {fault}"


def _prefix(attention: Attention, k: Tensor, v: Tensor, length: int, eight_bit: bool) -> tuple[Prefix, Tensor, Tensor]:
    """A buffer that is filled to a length, and what its keys and values stand for."""
    scales: tuple[Tensor | None, Tensor | None] = (None, None)
    held_k, held_v = k.clone(), v.clone()
    if eight_bit:
        (held_k, k_scale), (held_v, v_scale) = _rounded(k), _rounded(v)
        held_v = _by_channel(held_v)
        scales = (k_scale, v_scale)
        k, v = (held.double() * scale[:, None] for held, scale in ((held_k, k_scale), (held_v, v_scale)))
    nan = torch.full_like(held_k[:, length:], 0, dtype=torch.float32).fill_(torch.nan).to(held_k.dtype)
    for held in (held_k, held_v):
        _bytes(held)[:, length:] = _bytes(nan)
    # One that claims to read the length from the device is told a wrong one by the host.
    filled = held_k.shape[1] if reads_device_length(attention, eight_bit) else length
    length_1 = torch.tensor([length], dtype=torch.int32, device=k.device)
    return Prefix(held_k, held_v, length_1, filled, *scales), k[:, :length], v[:, :length]


def _fault(got: Tensor, q: Tensor, k: Tensor, v: Tensor, eight_bit: bool) -> str | None:
    """What is wrong with a result, in words that go on after what it was computed over."""
    if got.shape != q.shape or got.dtype != q.dtype:
        return f"it gives {list(got.shape)} in {got.dtype}, not {list(q.shape)} in {q.dtype}"
    exact = matmul_softmax(q.double(), k.double(), v.double())
    allowed = EIGHT_BIT_ALLOWED
    if not eight_bit:
        allowed = max(SLACK * _error(matmul_softmax(q, k, v), exact), LEAST_ALLOWED.get(q.dtype, 0.0))
    error = _error(got, exact)
    if error <= allowed:
        return None
    if not torch.isfinite(got).all():
        return "it gives numbers that are not finite: it reads what lies behind them, or overflows"
    return f"its error is {error:.1e}, and {allowed:.1e} is allowed"


def _error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


def _rounded(x_BSHK: Tensor) -> tuple[Tensor, Tensor]:
    """Float8 with a scale per head."""
    scale_H = x_BSHK.float().abs().amax(dim=(0, 1, 3)) / FP8_MAX
    return (x_BSHK.float() / scale_H[:, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale_H


def _by_channel(x_BSHK: Tensor) -> Tensor:
    """A copy whose slots lie next to each other in memory, as the engine lays eight-bit values."""
    batch, slots, heads, width = x_BSHK.shape
    padded = -(-slots // 16) * 16
    memory = torch.zeros((batch, heads, width, padded), device=x_BSHK.device, dtype=x_BSHK.dtype)
    laid = memory[..., :slots].permute(0, 3, 1, 2)
    _bytes(laid).copy_(_bytes(x_BSHK))
    return laid


def _bytes(x: Tensor) -> Tensor:
    """Eight-bit floats called bytes, since torch does little with them under their own name."""
    return x.view(torch.uint8) if x.dtype == FP8 else x
