"""What this machine and this installation can do, as data: versions, processor, GPU, which engines and attention
backends will work and why the others will not, and whether the embedded weights are there. It draws nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from shotstream.runtime.plugins import Registry

PACKAGES = (
    "shotstream", "torch", "triton", "numpy", "av", "pillow", "safetensors", "diffusers", "transformers",
    "huggingface_hub", "flash_attn", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx_cu13_bindings",
)  # fmt: skip
_CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
_HIDDEN = ("asimd", "sve", "bf16")


@dataclass(frozen=True)
class Check:
    """One line of the report. `ok` None: for information only."""

    group: str
    name: str
    value: str
    ok: bool | None = None


def examine(registry: Registry) -> list[Check]:
    """All checks, in order."""
    return [*_system(), *_packages(), *_gpu(), *_backends(registry), *_weights()]


def commit_of_checkout() -> str | None:
    """The git commit this code runs from, read from files; None for an installed wheel."""
    root = Path(__file__).resolve().parent.parent / ".git"
    try:
        head = (root / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        loose = root / name
        if loose.exists():
            return loose.read_text().strip()
        packed = (root / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)
    except OSError:
        return None


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def total_memory_bytes() -> int | None:
    """Physical memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def cpu_features() -> list[str]:
    """Instruction sets that matter here and are there."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [flag for flag in (*_CPU_FLAGS, *_HIDDEN) if flag in flags]


def _system() -> list[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [
        Check("system", "platform", platform.platform()),
        Check("system", "python", f"{platform.python_version()} ({sys.executable})", sys.version_info >= (3, 11)),
        Check("system", "processor", f"{processor()}, {cores} cores usable"),
        Check("system", "instructions", f"{' '.join(cpu_features()) or 'unknown'}; torch uses {_capability()}"),
        Check("system", "torch threads", str(torch.get_num_threads())),
    ]
    memory = total_memory_bytes()
    if memory is not None:
        found.append(Check("system", "memory", f"{memory / 2**30:.1f} GiB"))
    commit = commit_of_checkout()
    if commit is not None:
        found.append(Check("system", "commit", commit))
    return found


def _capability() -> str:
    return str(torch.backends.cpu.get_cpu_capability())


def _packages() -> list[Check]:
    found = []
    for name in PACKAGES:
        try:
            found.append(Check("packages", name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append(Check("packages", name, "not installed"))
    return found


def _gpu() -> list[Check]:
    if torch.version.cuda is None and torch.version.hip is None:
        return [Check("gpu", "cuda", "this torch is built for the CPU only", False)]
    if not torch.cuda.is_available():
        return [
            Check("gpu", "cuda", f"torch is built for CUDA {torch.version.cuda}, but no usable GPU was found", False)
        ]
    found = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        text = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, compute {facts.major}.{facts.minor}"
        found.append(Check("gpu", f"cuda:{index}", text, True))
    return found


def _backends(registry: Registry) -> list[Check]:
    """Registered ones that work here, then the known ones that do not, each with the reason."""
    found = []
    for slot, known in (("engine", _ENGINES), ("attention", _ATTENTION)):
        registered = registry.names(slot)
        for name in [*registered, *(name for name in known if name not in registered)]:
            reason = why_not(name, registered, known)
            found.append(Check(slot, name, reason or "usable", reason is None))
    return found


@dataclass(frozen=True)
class _Needs:
    """What a backend needs beside being registered by a plugin."""

    packages: tuple[str, ...] = ()
    """By the names they are imported by; any one of them."""
    cuda: bool = False


_ENGINES: Mapping[str, _Needs] = {
    "eager": _Needs(),
    "graph": _Needs(),
    "onnx": _Needs(("onnxruntime",)),
    "tensorrt": _Needs(("tensorrt",), cuda=True),
    "tensorrt-rtx": _Needs(("tensorrt_rtx", "tensorrt_rtx_bindings"), cuda=True),
}
_ATTENTION: Mapping[str, _Needs] = {
    "sdpa": _Needs(),
    "triton": _Needs(("triton",), cuda=True),
    "flash": _Needs(("flash_attn",), cuda=True),
}


def why_not(name: str, registered: list[str], known: Mapping[str, _Needs]) -> str | None:
    """None if the backend can be used here, else every reason why not."""
    needs = known.get(name, _Needs())
    reasons = []
    if name not in registered:
        reasons.append("no installed plugin offers it")
    if needs.cuda and not torch.cuda.is_available():
        reasons.append("no CUDA device")
    if needs.packages and not any(importlib.util.find_spec(package) for package in needs.packages):
        reasons.append(f"the package {needs.packages[0]} is not installed")
    return ", ".join(reasons) or None


def _weights() -> list[Check]:
    """The embedded model's files with size and the start of their SHA-256."""
    folder = resources.files("shotstream.runtime") / "weights"
    with resources.as_file(folder) as path:
        files = sorted(path.rglob("*.safetensors")) if path.is_dir() else []
        if not files:
            return [
                Check(
                    "embedded weights", "tiny", "no weights in this installation; --weights random plays noise", False
                )
            ]
        return [_weights_file(file, str(file.relative_to(path))) for file in files]


def _weights_file(file: Path, name: str) -> Check:
    """Whether a safetensors file is whole as far as its header tells, with the start of its SHA-256."""
    try:
        with safe_open(file, "pt") as opened:
            count = len(opened.keys())
    except (SafetensorError, OSError) as error:
        return Check("embedded weights", name, f"cannot be read: {error}", False)
    return Check("embedded weights", name, f"{size_of(file)}, {count} tensors, sha256 {sha256_of(file)[:16]}", True)


def size_of(path: Path) -> str:
    """A file's size for people."""
    return f"{path.stat().st_size / 2**20:.1f} MiB"


def sha256_of(path: Path) -> str:
    """A file's SHA-256 in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
