"""Our attention kernel as machine code that a plan can carry, and its launch through the CUDA driver without Triton.

Experimental: it compiles here for every architecture, its arguments are tested against the program's own list, and
nobody has launched it on a GPU.

The kernel reads keys and values from one buffer each, so cached and new ones are first copied into a workspace: two
times as much traffic as the caches hold, per layer and pass. The engine's own kernels between segments need none.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import msgspec

from shotstream.runtime.errors import UserError

ARCHITECTURES = (80, 86, 89, 120)
"""What TensorRT-RTX builds for and the kernel is tuned for."""
_ALIGNMENT = 256
_THREADS_PER_WARP = 32


@dataclass(frozen=True)
class Kernel:
    """Machine code of one architecture. parameters: name and Triton's type of each argument, in order.

    shared: bytes of dynamic shared memory. block_q: queries of one program.
    """

    arch: int
    cubin: bytes
    entry: str
    parameters: tuple[tuple[str, str], ...]
    warps: int
    shared: int
    block_q: int


@dataclass(frozen=True)
class Call:
    """Addresses and sizes of one layer's attention; `scale` is that of the scores. Tensors lie densely."""

    q: int
    k: int
    v: int
    k_cache: int
    v_cache: int
    out: int
    workspace: int
    tokens: int
    cached: int
    heads: int
    head_dim: int
    item_bytes: int
    scale: float

    @property
    def row_bytes(self) -> int:
        """Of one token's keys."""
        return self.heads * self.head_dim * self.item_bytes


class Driver(Protocol):
    """What a launch asks of CUDA, on the current context."""

    def architecture(self) -> int:
        """Compute capability times ten."""
        ...

    def copy(self, to: int, source: int, size: int, stream: int) -> None: ...

    def set_int(self, to: int, value: int, stream: int) -> None: ...

    def launch(self, kernel: Kernel, programs: int, arguments: bytes, stream: int) -> None:
        """arguments: as :func:`packed` makes them."""
        ...


@cache
def compile_kernels(head_dim: int, dtype: str, architectures: tuple[int, ...]) -> tuple[Kernel, ...]:
    """The product's own specialisation for whole tiles, for each architecture. dtype: bfloat16 or float16.

    Needs Triton and no GPU. UserError if Triton is missing or there is no kernel for such heads.
    """
    from shotstream.kernels.aot import require_compiler

    require_compiler()
    return tuple(_compile(head_dim, dtype, arch) for arch in architectures)


def configuration(head_dim: int, dtype: str, arch: int) -> Any:
    """Tile sizes of the kernel for an architecture (80 for sm_80); UserError if there is none for such heads."""
    from shotstream.kernels.attention import config as tuning

    found = tuning.configs_of(arch).get(f"pointer/{head_dim}/{dtype}")
    if found is None:
        raise UserError(f"the attention plugin has no kernel for heads of {head_dim} channels in {dtype} on sm_{arch}")
    return found


def _compile(head_dim: int, dtype: str, arch: int) -> Kernel:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget

    from shotstream.kernels.attention.specs import attention_spec

    config = configuration(head_dim, dtype, arch)
    spec = attention_spec(config, head_dim, getattr(torch, dtype), 1)
    names = list(spec.kernel.arg_names)
    aligned = {name for name, kind in spec.signature.items() if kind.startswith("*")} - set(spec.unaligned)
    aligned |= set(spec.divisible)
    source = triton.compiler.ASTSource(
        fn=spec.kernel,
        signature={name: spec.signature.get(name, "constexpr") for name in names},
        constexprs=dict(spec.constants),
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in aligned},
    )
    options = {"num_warps": spec.num_warps, "num_stages": spec.num_stages, **spec.options}
    made = triton.compile(source, target=GPUTarget("cuda", arch, _THREADS_PER_WARP), options=options)
    if made.metadata.global_scratch_size:
        raise UserError(f"the kernel for sm_{arch} wants scratch memory, which a plugin cannot give it")
    return Kernel(
        arch,
        made.asm["cubin"],
        made.metadata.name,
        tuple((name, spec.signature[name]) for name in names if name in spec.signature),
        made.metadata.num_warps,
        made.metadata.shared,
        config.block_q,
    )


def dump(kernels: Iterable[Kernel]) -> bytes:
    """For a plan."""
    return msgspec.msgpack.encode(tuple(kernels))


def load(data: bytes) -> tuple[Kernel, ...]:
    """Inverse of :func:`dump`."""
    return msgspec.msgpack.decode(data, type=tuple[Kernel, ...])


def workspace_bytes(tokens: int, cached: int, row_bytes: int) -> int:
    """The number of keys, then all keys and all values."""
    return _ALIGNMENT + 2 * _aligned((tokens + cached) * row_bytes)


def attend(driver: Driver, kernels: Iterable[Kernel], call: Call, stream: int) -> None:
    """Queue one layer's attention up on a stream. UserError where no kernel fits the GPU."""
    kernel = _fitting(kernels, driver.architecture())
    length, keys = call.workspace, call.workspace + _ALIGNMENT
    values = keys + _aligned((call.cached + call.tokens) * call.row_bytes)
    behind = call.cached * call.row_bytes
    for to, cached, new in ((keys, call.k_cache, call.k), (values, call.v_cache, call.v)):
        if behind:
            driver.copy(to, cached, behind, stream)
        driver.copy(to + behind, new, call.tokens * call.row_bytes, stream)
    driver.set_int(length, call.cached + call.tokens, stream)
    query_blocks = -(-call.tokens // kernel.block_q)
    arguments = packed(kernel, _arguments(call, length, keys, values, query_blocks))
    driver.launch(kernel, query_blocks * call.heads, arguments, stream)


def packed(kernel: Kernel, values: Mapping[str, float]) -> bytes:
    """The arguments as they lie in the program's parameter space, with the two addresses that Triton adds."""
    kinds = [kind for _, kind in kernel.parameters] + ["*scratch", "*profile"]
    numbers = [values[name] for name, _ in kernel.parameters] + [0, 0]
    layout = "@" + "".join("P" if kind.startswith("*") else {"i32": "i", "fp32": "f"}[kind] for kind in kinds)
    return struct.pack(layout, *numbers)


def _arguments(call: Call, length: int, keys: int, values: int, query_blocks: int) -> dict[str, float]:
    row = call.heads * call.head_dim
    made: dict[str, float] = {
        "q_ptr": call.q,
        "k_ptr": keys,
        "v_ptr": values,
        "out_ptr": call.out,
        "length": length,
        "scale": call.scale * math.log2(math.e),  # the kernel's scores are in base 2
        "capacity": call.cached + call.tokens,
        "queries": call.tokens,
        "heads": call.heads,
        "first": 0,
        "query_blocks": query_blocks,
    }
    for name, along, rows in (("q", "l", call.tokens), ("k", "s", 0), ("v", "s", 0), ("out", "l", call.tokens)):
        made |= {f"{name}_sb": rows * row, f"{name}_s{along}": row, f"{name}_sh": call.head_dim}
    return made


def _fitting(kernels: Iterable[Kernel], arch: int) -> Kernel:
    """Machine code runs on later GPUs of its generation."""
    fitting = [kernel for kernel in kernels if kernel.arch // 10 == arch // 10 and kernel.arch <= arch]
    if not fitting:
        raise UserError(f"the engine's plugin carries no kernel for sm_{arch}; build it for this GPU")
    return max(fitting, key=lambda kernel: kernel.arch)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class CudaDriver:
    """`libcuda` by ctypes. Never run: no GPU was at hand."""

    _MAJOR, _MINOR, _MAX_DYNAMIC_SHARED = 75, 76, 8

    def __init__(self) -> None:
        """UserError without a driver."""
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise UserError(f"the attention plugin needs an NVIDIA driver: {error}") from error
        self._functions: dict[Kernel, ctypes.c_void_p] = {}

    def architecture(self) -> int:
        device = ctypes.c_int()
        self._do("cuCtxGetDevice", ctypes.byref(device))
        numbers = [ctypes.c_int(), ctypes.c_int()]
        for number, attribute in zip(numbers, (self._MAJOR, self._MINOR), strict=True):
            self._do("cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
        return numbers[0].value * 10 + numbers[1].value

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        self._do("cuMemcpyDtoDAsync_v2", _u64(to), _u64(source), ctypes.c_size_t(size), _u64(stream))

    def set_int(self, to: int, value: int, stream: int) -> None:
        self._do("cuMemsetD32Async", _u64(to), ctypes.c_uint(value), ctypes.c_size_t(1), _u64(stream))

    def launch(self, kernel: Kernel, programs: int, arguments: bytes, stream: int) -> None:
        buffer, size = ctypes.create_string_buffer(arguments, len(arguments)), ctypes.c_size_t(len(arguments))
        # Pairs of a tag and an address: 1 the buffer, 2 its size, 0 the end.
        extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(buffer), 2, ctypes.addressof(size), 0)
        grid, block = (programs, 1, 1), (kernel.warps * _THREADS_PER_WARP, 1, 1)
        self._do(
            "cuLaunchKernel", self._function(kernel), *map(ctypes.c_uint, (*grid, *block, kernel.shared)),
            _u64(stream), None, extra,
        )  # fmt: skip

    def _function(self, kernel: Kernel) -> ctypes.c_void_p:
        if kernel not in self._functions:
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            self._do("cuModuleLoadData", ctypes.byref(module), kernel.cubin)
            self._do("cuModuleGetFunction", ctypes.byref(function), module, kernel.entry.encode())
            self._do("cuFuncSetAttribute", function, self._MAX_DYNAMIC_SHARED, kernel.shared)
            self._functions[kernel] = function
        return self._functions[kernel]

    def _do(self, name: str, *arguments: object) -> None:
        if code := getattr(self._cuda, name)(*arguments):
            raise RuntimeError(f"{name} returned {code}")


def _u64(number: int) -> ctypes.c_uint64:
    return ctypes.c_uint64(number)
