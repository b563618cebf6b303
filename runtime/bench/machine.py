"""On what a benchmark ran: commit, versions, processor, GPU with driver and clocks. It measures nothing itself."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from shotstream.runtime.bench.report import GpuState, Machine
from shotstream.runtime.doctor import commit_of_checkout, processor

UNKNOWN = "unknown"
CHECKOUT = Path(__file__).resolve().parents[2]
"""Where this code lies, if it was not installed as a package."""
_PATIENCE_S = 10.0
_ASKED = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw")


@dataclass(frozen=True)
class GpuReading:
    """What nvidia-smi says at one moment."""

    driver: str = UNKNOWN
    state: GpuState | None = None


def machine_facts(device: torch.device, before: GpuReading | None, after: GpuReading | None) -> Machine:
    """Everything about this machine, now; `before` and `after`: readings around the measurement, on a GPU."""
    cuda = device.type == "cuda"
    return Machine(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit_of_checkout() or UNKNOWN,
        changed_files=changed_files(),
        shotstream=_version("shotstream"),
        python=platform.python_version(),
        torch=str(torch.__version__),
        triton=_version("triton"),
        cuda=torch.version.cuda or "none",
        platform=platform.platform(),
        processor=processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        device=torch.cuda.get_device_name(device) if cuda else "cpu",
        driver=before.driver if before is not None else "none",
        gpu_before=before.state if before is not None else None,
        gpu_after=after.state if after is not None else None,
    )


def changed_files(root: Path = CHECKOUT) -> int | None:
    """How many tracked files differ from the commit, so that it does not say what ran; None where git does not tell."""
    if not (root / ".git").exists():
        return None
    told = _answer(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return None if told is None else len(told.splitlines())


def read_gpu(device: torch.device, program: str = "nvidia-smi") -> GpuReading | None:
    """Driver and clocks of this GPU, `unknown` where nvidia-smi does not tell; None on a CPU."""
    if device.type != "cuda":
        return None
    told = _answer(
        [program, f"--id={_name_for_smi(device)}", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader,nounits"]
    )
    return GpuReading() if told is None else parse_reading(told)


def parse_reading(line: str) -> GpuReading:
    """One line of values in the order of the query; what is no number (``[N/A]``) becomes None."""
    values = [value.strip() for value in line.strip().splitlines()[0].split(",")] if line.strip() else []
    if len(values) != len(_ASKED):
        return GpuReading()
    return GpuReading(values[0] or UNKNOWN, GpuState(*(_number(value) for value in values[1:])))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _name_for_smi(device: torch.device) -> str:
    """Its UUID: numbers may count another set of GPUs, since torch sees those that CUDA_VISIBLE_DEVICES leaves."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return f"GPU-{uuid}" if uuid else str(device.index or 0)


def _answer(command: list[str]) -> str | None:
    """What a program prints; None if it is not there, fails, or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
