"""Compile kernels ahead of time, without a GPU, and read registers, spills and shared memory from the machine code.

How a kernel takes part: its folder has a module with a function ``specs() -> list[KernelSpec]`` that returns one spec
for every specialisation that the product launches (dtype, head width, block sizes), and that module is named in
`SOURCES` below. Nothing else is needed: the report and the tests read `SOURCES`. A spec says

- ``kernel``: the ``@triton.jit`` function,
- ``signature``: for every argument that is not a constexpr its type as Triton writes it: ``"*bf16"`` and ``"*fp8e4nv"``
  for pointers, ``"i32"``, ``"fp32"`` for scalars,
- ``constants``: every constexpr argument by name (and any argument that is compiled in as a constant, such as None),
- ``divisible``: integer arguments that are multiples of 16 in every call (strides, say). Pointers always count as
  such, as addresses from torch do; a pointer that may not be is listed in ``unaligned``,
- ``num_warps``, ``num_stages`` and further compile options as they are given at the launch,
- ``architectures``: where this specialisation is launched, and ``spill_limit``: the bytes of stack per thread that are
  accepted (0 unless a note says why).

Sources are listed by hand as import strings, so that importing this module needs no Triton.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shotstream.runtime.errors import UserError

SOURCES: tuple[str, ...] = ("shotstream.kernels.attention.specs:specs", "shotstream.kernels.fused.specs:specs")
"""Where the specs come from, ``module:function``, one line per folder of kernels."""

ARCHITECTURES: tuple[int, ...] = (80, 86, 89, 90, 100, 120)
"""Compute capabilities (times ten) that every kernel is compiled for unless its spec says less."""

SHARED_LIMIT: Mapping[int, int] = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes of shared memory that one block may use, by architecture."""

REGISTERS_PER_THREAD = 255
REGISTERS_PER_BLOCK = 65_536


@dataclass(frozen=True)
class KernelSpec:
    """One specialisation of one kernel, as it is launched. See the module's docstring."""

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    divisible: Sequence[str] = ()
    unaligned: Sequence[str] = ()
    num_warps: int = 4
    num_stages: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)
    architectures: Sequence[int] = ARCHITECTURES
    spill_limit: int = 0


@dataclass(frozen=True)
class Compiled:
    """What became of one spec on one architecture. ``error`` is empty if it compiled."""

    name: str
    arch: int
    warps: int = 0
    """Warps of a block, those that warp specialisation adds included."""
    registers: int = 0
    """Per thread, at launch."""
    stack: int = 0
    """Bytes of stack per thread: registers that were spilled to memory."""
    shared: int = 0
    """Bytes of shared memory per block, static and dynamic."""
    spill_limit: int = 0
    instructions: str = ""
    """Which matrix and copy instructions the machine code has, such as ``wgmma tma``."""
    error: str = ""

    def faults(self) -> list[str]:
        """What is over a limit, in words; empty if all is well."""
        if self.error:
            return [f"does not compile: {self.error}"]
        found = []
        if self.stack > self.spill_limit:
            found.append(f"{self.stack} bytes of stack, allowed are {self.spill_limit}")
        if self.registers > REGISTERS_PER_THREAD:
            found.append(f"{self.registers} registers, allowed are {REGISTERS_PER_THREAD}")
        if self.registers * self.warps * 32 > REGISTERS_PER_BLOCK:
            found.append(f"{self.registers * self.warps * 32} registers in a block, there are {REGISTERS_PER_BLOCK}")
        if self.shared > SHARED_LIMIT[self.arch]:
            found.append(f"{self.shared} bytes of shared memory, there are {SHARED_LIMIT[self.arch]}")
        return found


def collect(sources: Iterable[str] = SOURCES) -> list[KernelSpec]:
    """All specs of all sources, in order; raises UserError where Triton is missing or runs its interpreter."""
    require_compiler()
    found: list[KernelSpec] = []
    for source in sources:
        module, _, function = source.partition(":")
        found += getattr(importlib.import_module(module), function)()
    return found


def require_compiler() -> None:
    """Raise UserError if kernels cannot be compiled in this process."""
    try:
        import triton
    except ImportError as error:
        raise UserError("Triton is not installed; install ShotStream with the extra 'gpu'") from error
    if triton.knobs.runtime.interpret:
        raise UserError("Triton runs its interpreter here and compiles nothing; start without TRITON_INTERPRET")


def compile_spec(spec: KernelSpec, arch: int) -> Compiled:
    """Compile one spec for one architecture. What the compiler refuses is in ``error``, nothing is raised for it."""
    import triton
    from triton.backends.compiler import GPUTarget

    arguments = list(spec.kernel.arg_names)
    missing = [name for name in arguments if name not in spec.signature and name not in spec.constants]
    if missing:
        raise ValueError(f"{spec.name}: neither type nor constant for {', '.join(missing)}")
    aligned = {name for name, kind in spec.signature.items() if kind.startswith("*")} - set(spec.unaligned)
    aligned |= set(spec.divisible)
    source = triton.compiler.ASTSource(
        fn=spec.kernel,
        signature={name: "constexpr" if name in spec.constants else spec.signature[name] for name in arguments},
        constexprs=dict(spec.constants),
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(arguments) if name in aligned},
    )
    options = {"num_warps": spec.num_warps, "num_stages": spec.num_stages, **spec.options}
    # Some versions print the whole program when their assembler refuses it.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            return Compiled(spec.name, arch, error=lines[-1].strip()[:200], spill_limit=spec.spill_limit)
    usage = _resource_usage(binary.asm["cubin"])
    return Compiled(
        name=spec.name,
        arch=arch,
        warps=_total_warps(binary, spec.num_warps),
        registers=usage["REG"],
        stack=usage["STACK"],
        shared=usage["SHARED"] + int(binary.metadata.shared),
        spill_limit=spec.spill_limit,
        instructions=_instructions(binary.asm["ptx"]),
    )


def compile_all(specs: Iterable[KernelSpec], architectures: Sequence[int] = ARCHITECTURES) -> list[Compiled]:
    """Compile every spec for those of ``architectures`` that it is meant for."""
    return [compile_spec(spec, arch) for spec in specs for arch in architectures if arch in spec.architectures]


def table(rows: Sequence[Compiled]) -> str:
    """The report as a Markdown table."""
    lines = [
        "| kernel | arch | warps | registers | stack B | shared KiB | instructions | limits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        verdict = "; ".join(row.faults()) or "ok"
        lines.append(
            f"| {row.name} | sm_{row.arch} | {row.warps} | {row.registers} | {row.stack} | {row.shared / 1024:.1f} "
            f"| {row.instructions} | {verdict} |"
        )
    return "\n".join(lines)


def _resource_usage(cubin: bytes) -> dict[str, int]:
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        said = subprocess.run(
            [tool, "--dump-resource-usage", str(path)], capture_output=True, text=True, check=True
        ).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED):(\d+)", said)}
    return {key: usage.get(key, 0) for key in ("REG", "STACK", "SHARED")}


def _total_warps(binary: Any, num_warps: int) -> int:
    """Warps of a block from the program's own bound on its threads: specialisation adds some to those asked for."""
    found = re.search(r"\.(?:max|req)ntid\s+(\d+)", binary.asm["ptx"])
    return int(found.group(1)) // 32 if found else num_warps


def _instructions(ptx: str) -> str:
    signs = {
        "wgmma": "wgmma.mma_async",
        "tcgen05": "tcgen05.mma",
        "mma": "mma.sync",
        "tma": "cp.async.bulk.tensor",
        "cp.async": "cp.async.cg",
        "setmaxnreg": "setmaxnreg",
    }
    return " ".join(name for name, sign in signs.items() if re.search(rf"(?<![\w.]){re.escape(sign)}", ptx))
