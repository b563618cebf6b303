"""What the attention benchmark measures: shapes of a model's shot, their operands, and every backend that is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from shotstream.kernels.attention.backend import make_attention
from shotstream.kernels.attention.flash import make_flash_attention
from shotstream.kernels.attention.reference import reference_attention
from shotstream.kernels.attention.scales import FP8, empty_values, quantise
from shotstream.kernels.sizes import ModelSizes
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.attention import Attention, Prefix, attend, matmul_softmax, sdpa

TORCHS_OWN: Mapping[str, SDPBackend] = {
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""Torch's kernels one by one, on a GPU; `sdpa` is the one that torch takes by itself."""


@dataclass(frozen=True)
class Shape:
    """One call: a chunk's queries over the first ``keys`` of a buffer of ``capacity``."""

    name: str
    queries: int
    keys: int
    capacity: int
    heads: int
    head_dim: int

    @property
    def flops(self) -> int:
        """Two products, two operations per multiply-add; the softmax is not counted."""
        return 4 * self.queries * self.keys * self.heads * self.head_dim


def chunk_shape(sizes: ModelSizes, chunk: int) -> Shape:
    """A denoising step of a shot's chunk 0, 1, ...: its queries see the context, the chunks before and their own."""
    keys = sizes.context_tokens + (chunk + 1) * sizes.chunk_tokens
    heads, head_dim = sizes.config.heads, sizes.config.head_dim
    return Shape(f"chunk {chunk}", sizes.chunk_tokens, keys, sizes.capacity, heads, head_dim)


def shapes_of(sizes: ModelSizes) -> tuple[Shape, ...]:
    """The calls of one shot: its chunks until the local cache is full, and the context pass."""
    config, context = sizes.config, sizes.context_tokens
    chunks = config.local_frames // config.chunk_frames
    own = Shape("context", context, context, sizes.capacity, config.heads, config.head_dim)
    return (*(chunk_shape(sizes, chunk) for chunk in range(chunks)), own)


def inputs(shape: Shape, device: str, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, and keys and values of the whole buffer: normal numbers."""
    generator = torch.Generator(device).manual_seed(seed)
    sizes = (shape.queries, shape.capacity, shape.capacity)
    made = [
        torch.randn((1, size, shape.heads, shape.head_dim), generator=generator, device=device).to(dtype)
        for size in sizes
    ]
    return made[0], made[1], made[2]


def exact_result(q: Tensor, k: Tensor, v: Tensor, keys: int) -> Tensor:
    """Float64, head by head: all heads at once are tens of gigabytes of scores."""
    heads = [
        reference_attention(q[:, :, h : h + 1], k[:, :, h : h + 1], v[:, :, h : h + 1], keys, dtype=torch.float64)
        for h in range(q.shape[2])
    ]
    return torch.cat(heads, dim=2).float()


@dataclass(frozen=True)
class Backends:
    """Attentions by name, each over a prefix as the engine calls it; absent: why others are not there."""

    by_name: Mapping[str, Attention]
    absent: Mapping[str, str] = field(default_factory=dict)


def backends(device: str) -> Backends:
    """All that can be made on this device."""
    found: dict[str, Attention] = {}
    absent: dict[str, str] = {}
    candidates: dict[str, Callable[[], Attention]] = {"triton": make_attention, "flash": make_flash_attention}
    for name, make in candidates.items():
        try:
            found[name] = make()
        except UserError as error:
            absent[name] = str(error).removeprefix(f"the attention '{name}' ").partition(";")[0]
    found["sdpa"] = sdpa
    if torch.device(device).type == "cuda":
        found |= {name: _only(backend) for name, backend in TORCHS_OWN.items()}
    else:
        found["matmul_softmax"] = matmul_softmax
    return Backends(found, absent)


def calls(there: Backends, q: Tensor, k: Tensor, v: Tensor, keys: int) -> dict[str, Callable[[], Tensor]]:
    """One call of every backend over the first keys; also over eight-bit ones, where a backend takes them."""
    plain = Prefix(k, v, torch.tensor([keys], dtype=torch.int32, device=q.device), keys)
    found: dict[str, Callable[[], Tensor]] = {}
    for name, attention in there.by_name.items():
        found[name] = _call(attention, q, plain)
        if getattr(attention, "eight_bit", False):
            found[f"{name} float8"] = _call(attention, q, in_eight_bits(plain))
    return found


def in_eight_bits(prefix: Prefix) -> Prefix:
    """The same keys and values rounded to float8, values laid out channel by channel as the engine does."""
    k8, k_scale = quantise(prefix.k_BSHK)
    v8, v_scale = quantise(prefix.v_BSHK)
    batch, capacity, heads, head_dim = v8.shape
    assert v8.dtype == FP8
    laid = empty_values(batch, capacity, heads, head_dim, v8.device).copy_(v8)
    return Prefix(k8, laid, prefix.length_1, prefix.filled, k_scale, v_scale)


def _call(attention: Attention, q: Tensor, prefix: Prefix) -> Callable[[], Tensor]:
    return lambda: attend(attention, q, prefix)


def _only(backend: SDPBackend) -> Attention:
    def attention(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, mask: Tensor | None = None) -> Tensor:
        with sdpa_kernel(backend):
            return sdpa(q_BLHK, k_BLHK, v_BLHK, mask)

    return attention
