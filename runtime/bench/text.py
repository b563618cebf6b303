"""A report as lines for people: what ran, times by position, where they go, misses, memory. It computes no figure."""

from __future__ import annotations

from collections.abc import Sequence

from shotstream.runtime.bench.report import BenchReport, GpuState, Machine, Setting
from shotstream.runtime.bench.samples import SAMPLES_FOR_P95, SAMPLES_FOR_P99, Position, Spread
from shotstream.runtime.memory import GpuMemory, MemoryUse, size

_LABEL = 15


def lines(report: BenchReport) -> list[str]:
    """The whole report, some twenty-five lines of at most 120 columns for the usual seven chunks."""
    found = [*_heading(report.setting, report.summary.frames), *_machine(report.machine), ""]
    found += [_row("first frame", _first_frame(report)), *_positions(report.summary.positions), ""]
    found += [*_split(report.summary.positions), "", _row("playout", _playout(report)), _row("speed", _speed(report))]
    return [*found, _row("history", _history(report)), *memory_lines(report.memory)]


def columns(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Rows of cells under one another: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        indent + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def machine_line(machine: Machine) -> str:
    """The commit, versions and processor in one line."""
    commit = machine.commit[:12]
    if machine.changed_files:
        commit += f" + {counted(machine.changed_files, 'changed file')}"
    versions = f"torch {machine.torch}, triton {machine.triton}"
    return f"{device_line(machine)}; {versions}; commit {commit}; {machine.date}"


def device_line(machine: Machine) -> str:
    """The processor, or the GPU with its driver."""
    return machine.processor if machine.device == "cpu" else f"{machine.device}, driver {machine.driver}"


def counted(number: int, thing: str) -> str:
    """``1 shot``, ``2 shots``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _heading(setting: Setting, frames: int) -> list[str]:
    s = setting
    return [
        f"{s.model}: {counted(s.shots, 'shot')} x {counted(s.chunks, 'chunk')}, {frames} frames of {s.frame_size} at "
        f"{s.frames_per_second} fps, after {counted(s.warm_up, 'warm-up shot')}",
        f"{s.device}, {s.dtype}, {counted(s.threads, 'thread')}, {s.weights} weights, {s.steps} steps; {_parts(s)}",
    ]


def _parts(s: Setting) -> str:
    engine = f"{s.engine} ({s.engine_options})" if s.engine_options else s.engine
    ahead = ", runs ahead" if s.run_ahead else ""
    return f"engine {engine}{ahead}, attention {s.attention}, decoder {s.decoder}"


def _machine(machine: Machine) -> list[str]:
    found = [machine_line(machine)]
    if machine.device != "cpu":
        found.append(f"clocks before: {_gpu(machine.gpu_before)}; after: {_gpu(machine.gpu_after)}")
    elif machine.load_average is not None:
        found[0] += f"; load {machine.load_average:.2f}, {counted(machine.cores, 'core')} usable"
    return found


def _gpu(state: GpuState | None) -> str:
    if state is None:
        return "unknown"
    asked = (
        (state.sm_mhz, "MHz"), (state.max_sm_mhz, "MHz at most"), (state.memory_mhz, "MHz memory"),
        (state.temperature_c, "C"), (state.power_w, "W"),
    )  # fmt: skip
    return ", ".join(f"{value:.0f} {unit}" for value, unit in asked if value is not None) or "unknown"


def _first_frame(report: BenchReport) -> str:
    spread, cold = report.summary.first_frame, report.summary.first_frame_cold_ms
    if report.setting.shots == 1:
        return f"{cold:.0f} ms in the only shot"
    highest = f"{spread.max_ms:.0f} ms at most" if spread.p99_ms is None else f"{spread.p99_ms:.0f} ms p99"
    return f"{spread.p50_ms:.0f} ms p50, {highest}, of {spread.samples} cuts; {cold:.0f} ms in shot 1"


def _positions(positions: Sequence[Position]) -> list[str]:
    fewest = min(position.time.samples for position in positions)
    last = "p99" if fewest >= SAMPLES_FOR_P99 else "max"
    rows = [["ms by position", "samples", "p50", "p95", last, "jitter", "limit", "over", "late"]]
    rows += [
        [
            f"  chunk {p.chunk + 1}", f"{p.time.samples}", f"{p.time.p50_ms:.1f}", f"{p.time.p95_ms:.1f}",
            f"{_worst(p.time):.1f}", f"{p.jitter:.3f}", f"{p.limit_ms:.1f}", f"{p.over_limit}", f"{p.late}",
        ]
        for p in positions
    ]  # fmt: skip
    found = columns(rows, indent="")
    if fewest < SAMPLES_FOR_P99:
        also = "p95 and " if fewest < SAMPLES_FOR_P95 else ""
        found.append(
            f"  fewer than {SAMPLES_FOR_P99} samples: {also}max {'are' if also else 'is'} the largest, "
            f"and jitter is max / p50"
        )
    return found


def _worst(spread: Spread) -> float:
    return spread.max_ms if spread.p99_ms is None else spread.p99_ms


def _split(positions: Sequence[Position]) -> list[str]:
    names = list(dict.fromkeys(name for position in positions for name in position.parts_ms))
    rows = [["mean ms by part", *names, "sum"]]
    for position in positions:
        parts = [position.parts_ms.get(name, 0.0) for name in names]
        rows.append([f"  chunk {position.chunk + 1}", *(f"{value:.1f}" for value in [*parts, sum(parts)])])
    found = columns(rows, indent="")
    if any(position.parts_ms.get("other", 0.0) < 0 for position in positions):
        found.append("  parts overlap here: together they took longer than the chunk, and other is below zero")
    return found


def _playout(report: BenchReport) -> str:
    s, count = report.summary, len(report.samples)
    stalls = f", longest stall {s.longest_stall_ms:.0f} ms, {s.stalled_ms:.0f} ms in all" if s.late else ""
    return f"{s.late} of {count} chunks late{stalls}; {s.over_limit} took longer than their own frames last"


def _history(report: BenchReport) -> str:
    cost = report.history
    if cost is None:
        reason = "fewer than three shots" if report.setting.shots < 3 else "no memory for a second session"
        return f"not measured: {reason}"
    change = f"{100 * (cost.ratio - 1):+.1f} % chunk time in shot {cost.late_shot} against shot {cost.early_shot}"
    return f"{change} ({len(cost.ratios)} pairs, in turns)"


def _speed(report: BenchReport) -> str:
    s = report.summary
    slowest = max(position.time.max_ms for position in s.positions)
    return f"{s.fps:.1f} fps over the story, {s.realtime:.2f} x real time; slowest chunk {slowest:.0f} ms"


def memory_lines(memory: MemoryUse) -> list[str]:
    """What was taken, beside the plan."""
    found = [*_gpu_memory(memory.gpu)] if memory.gpu is not None else []
    grown = _grown(memory.after_shot_mb)
    found.append(
        _row(
            "memory" if memory.gpu is None else "host memory",
            f"{memory.peak_mb:.0f} MB at most, {memory.after_shot_mb[-1]:.0f} MB after the last shot{grown}; "
            f"{memory.before_load_mb:.0f} MB before loading",
        )
    )
    if memory.plan is None or memory.of_plan is None:
        return [*found, _row("plan", "none for this model")]
    planned = f"{memory.of_plan:.2f} x the plan of {size(memory.plan.total)}"
    found.append(_row("plan", f"{size(1e6 * memory.taken_mb)} taken, {planned}; ~ marks estimates"))
    rows = [[item.name, f"{'' if item.exact else '~'}{size(item.nbytes)}"] for item in memory.plan.largest_first()]
    return [*found, *columns(rows, indent=" " * (_LABEL + 1))]


def _gpu_memory(gpu: GpuMemory) -> list[str]:
    most = f"{gpu.peak_mb:.0f} MB at most ({gpu.load_peak_mb:.0f} while loading, {gpu.reserved_peak_mb:.0f} reserved)"
    last = f"{gpu.after_shot_mb[-1]:.0f} MB after the last shot{_grown(gpu.after_shot_mb)}"
    return [_row("gpu memory", f"{most}, {last}")]


def _grown(after_shot_mb: Sequence[float]) -> str:
    return f", {after_shot_mb[-1] - after_shot_mb[1]:+.1f} MB since shot 2" if len(after_shot_mb) > 2 else ""


def _row(label: str, text: str) -> str:
    return f"{label:<{_LABEL}} {text}"
