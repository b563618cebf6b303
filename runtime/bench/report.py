"""The report of a benchmark as data and as a file. Format 2: every sample is in it, figures follow from them.

`write_json` and `read_json` are the only places that know the file. Reading imports no torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shotstream.runtime.bench.samples import ChunkSample, Summary, summarise
from shotstream.runtime.errors import UserError
from shotstream.runtime.memory import MemoryUse
from shotstream.runtime.sinks.base import replace_file

FORMAT = 2


@dataclass(frozen=True)
class GpuState:
    """A moment of a GPU; None for what nvidia-smi does not tell."""

    sm_mhz: float | None = None
    memory_mhz: float | None = None
    max_sm_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


@dataclass(frozen=True)
class Machine:
    """What it ran on."""

    date: str
    commit: str
    changed_files: int | None
    """Tracked files that differ from the commit; None where that is not known."""
    shotstream: str
    python: str
    torch: str
    triton: str
    cuda: str
    platform: str
    processor: str
    cores: int
    """That this process may use."""
    load_average: float | None
    device: str
    driver: str
    gpu_before: GpuState | None = None
    """After the warm-up, right before the first timed chunk."""
    gpu_after: GpuState | None = None
    """Right after the last."""


@dataclass(frozen=True)
class Setting:
    """What ran."""

    model: str
    device: str
    dtype: str
    threads: int
    engine: str
    engine_options: str
    """NAME=VALUE, a comma between them; empty: as the engine likes."""
    attention: str
    ops: str
    run_ahead: bool
    """A chunk may be begun while the one before is decoded."""
    decoder: str
    weights: str
    weights_sha256: str
    frame_size: str
    """WIDTHxHEIGHT in pixels."""
    frames_per_second: int
    steps: str
    """Denoising steps: their number and their places before warping."""
    chunks: int
    """Of each shot."""
    shots: int
    warm_up: int
    """Shots of as many chunks in a session of their own before, not counted."""


@dataclass(frozen=True)
class HistoryCost:
    """A late shot's chunks against an early shot's, chunk for chunk."""

    early_shot: int
    """Counted from 1, as `late_shot`."""
    late_shot: int
    ratio: float
    """Median of `ratios`."""
    ratios: list[float]


@dataclass(frozen=True)
class BenchReport:
    """A whole measurement."""

    setting: Setting
    machine: Machine
    summary: Summary
    memory: MemoryUse
    samples: list[ChunkSample]
    history: HistoryCost | None = None
    """None for fewer than three shots, or where a second session has no room."""
    format: int = FORMAT


@dataclass(frozen=True)
class _Format:
    format: int


def write_json(report: BenchReport, path: Path) -> None:
    """Write every figure and every sample; raises UserError if the file cannot be written."""
    replace_file(path, (json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> BenchReport:
    """Read what `write_json` wrote; its figures are made anew from the samples. UserError says what is wrong."""
    import msgspec  # here, because a bare GPU machine measures without it

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        found = msgspec.json.decode(data, type=_Format).format
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UserError(
            f"{path} is not a benchmark of format {FORMAT}; write one with: shotstream bench --json"
        ) from None
    if found != FORMAT:
        raise UserError(
            f"{path} is a benchmark of format {found}, but this version reads format {FORMAT}; measure again"
        )
    try:
        report = msgspec.json.decode(data, type=BenchReport)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} says it is a benchmark, but is damaged: {error}") from None
    rate, samples = report.setting.frames_per_second, report.samples
    if rate <= 0 or not samples or any(sample.took_s <= 0 or sample.frames <= 0 for sample in samples):
        raise UserError(f"{path} says it is a benchmark, but is damaged: it has no samples, or some that took no time")
    return replace(report, summary=summarise(samples, rate))
