"""The benchmark: a story of many shots on a loaded runtime, timed from outside and inside. No files, no screen.

What a figure means. `fps`: frames per second of making, all chunks, nothing written. First frame: from a shot's caption
to its first frames on the host. Memory: resident set of this process (and the GPU's peak). Drift: the time of a
chunk in a late shot against the same chunk of an early one, taken in turns. A warm-up shot in a session of its own is
not counted.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from shotstream.runtime.doctor import commit_of_checkout, processor
from shotstream.runtime.runtime import Runtime
from shotstream.runtime.sinks.base import replace_file
from shotstream.runtime.story import Story, parse_text

DEFAULT_CHUNKS = 7
PAIRED_ROUNDS = 5
EARLY_SHOT, LATE_SHOT = 2, 20  # counted from 1, as people do: shot 1 has no history yet
BENCH_STORY = parse_text(
    """A story about a red cat with a blue scarf and a white rabbit. Setting: meadow by day.
    Wide shot: the red cat stands still and the white rabbit waves.
    Medium shot: the red cat waves.
    Close-up: the white rabbit stands still.
    Wide shot: the red cat walks right.
    Medium shot: the red cat jumps and the white rabbit dances.""",
    "benchmark",
)


@dataclass(frozen=True)
class ChunkSample:
    """One chunk's times in seconds."""

    shot: int
    chunk: int
    frames: int
    waited: float
    parts: dict[str, float]


@dataclass(frozen=True)
class PositionFigures:
    """Medians over all shots for one position of a chunk in its shot, milliseconds."""

    chunk: int
    waited_ms: float
    parts_ms: dict[str, float]


@dataclass(frozen=True)
class BenchReport:
    """The figures, and everything one needs to know to compare them with others."""

    model: str
    shots: int
    chunks: int
    frames: int
    fps: float
    realtime: float
    """fps over the film's own speed."""
    first_frame_ms_cold: float
    """The first shot's, which has no history to encode."""
    first_frame_ms_p50: float
    first_frame_ms_p95: float
    chunk_ms_p50: float
    chunk_ms_p95: float
    positions: list[PositionFigures]
    rss_mb_after_shot: list[float]
    rss_growth_mb: float | None
    """From the end of shot 2 to the end of the last one; None for fewer than three shots."""
    gpu_peak_mb: float | None
    late_over_early: float | None
    """Median of a late shot's chunks (20, or the last) against shot 2's, chunk for chunk; None under three shots."""
    late_shot: int
    machine: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report for people."""
        machine = self.machine
        found = [
            f"{self.model}: {self.shots} shots x {self.chunks} chunks, {self.frames} frames at "
            f"{machine['frame_size']}, {machine['device']}, {machine['dtype']}, {machine['threads']} threads, "
            f"{machine['engine']} engine, {machine['weights']} weights",
            f"{machine['processor']}; torch {machine['torch']}; commit {machine['commit'][:12]}; {machine['date']}",
            f"speed           {self.fps:8.1f} fps ({self.realtime:.2f} x real time)",
            f"first frame     {self.first_frame_ms_p50:8.0f} ms p50, {self.first_frame_ms_p95:.0f} ms p95, "
            f"{self.first_frame_ms_cold:.0f} ms in shot 1",
            f"chunk           {self.chunk_ms_p50:8.0f} ms p50, {self.chunk_ms_p95:.0f} ms p95",
        ]
        names = list(self.positions[0].parts_ms) if self.positions else []
        found.append("ms by position   waited" + "".join(f"{name:>9}" for name in names))
        for position in self.positions:
            parts = "".join(f"{position.parts_ms[name]:9.1f}" for name in names)
            found.append(f"  chunk {position.chunk + 1:<3}    {position.waited_ms:9.1f}{parts}")
        memory = f"memory          {self.rss_mb_after_shot[-1]:8.0f} MB resident after the last shot"
        if self.rss_growth_mb is not None:
            memory += f", {self.rss_growth_mb:+.1f} MB since shot {EARLY_SHOT}"
        found.append(memory)
        if self.gpu_peak_mb is not None:
            found.append(f"gpu memory      {self.gpu_peak_mb:8.0f} MB at most")
        if self.late_over_early is not None:
            change = 100 * (self.late_over_early - 1)
            found.append(f"shot {self.late_shot:<3} against shot {EARLY_SHOT}: chunk time {change:+.1f} %")
        return found


def measure(
    runtime: Runtime,
    *,
    shots: int = 5,
    chunks: int | None = None,
    story: Story = BENCH_STORY,
    on_shot: Callable[[int], None] = lambda shot: None,
) -> BenchReport:
    """Play `shots` shots of `chunks` chunks (default 7) and measure. The captions of `story` go round.

    `on_shot` is told each shot before it begins."""
    chunks = chunks or DEFAULT_CHUNKS
    with runtime.open(
        story.global_caption, seed=1
    ) as session:  # warm-up: allocations, kernels, caches of the first shapes
        for shot in story.shots[:2]:
            session.begin_shot(shot.caption, min(chunks, 2))
            for _ in session.chunks():
                pass
    if runtime.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(runtime.device)
    samples: list[ChunkSample] = []
    rss: list[float] = []
    late = min(LATE_SHOT, shots)
    boundaries: dict[int, bytes] = dict.fromkeys((EARLY_SHOT - 1, late - 1) if late > EARLY_SHOT else (), b"")
    with runtime.open(story.global_caption, seed=0) as session:
        for number in range(shots):
            on_shot(number)
            if number in boundaries:
                boundaries[number] = session.snapshot()
            begin = time.perf_counter()
            session.begin_shot(story.shots[number % len(story.shots)].caption, chunks)
            while (chunk := session.next_chunk()) is not None:
                now = time.perf_counter()
                parts = asdict(chunk.timings)
                samples.append(ChunkSample(number, chunk.chunk, len(chunk.frames), now - begin, parts))
                begin = time.perf_counter()
            rss.append(resident_mb())
    drift = None
    if boundaries:
        caption = story.shots[0].caption
        drift = late_over_early(runtime, boundaries[EARLY_SHOT - 1], boundaries[late - 1], caption, chunks)
    return summarise(runtime, samples, rss, shots, chunks, drift)


def summarise(
    runtime: Runtime, samples: Sequence[ChunkSample], rss: list[float], shots: int, chunks: int, drift: float | None
) -> BenchReport:
    """Turn samples into the report."""
    frames = sum(sample.frames for sample in samples)
    seconds = sum(sample.waited for sample in samples)
    fps = frames / seconds
    firsts = [sample.waited for sample in samples if sample.chunk == 0]
    waited = [sample.waited for sample in samples]
    late = min(LATE_SHOT, shots)
    return BenchReport(
        model=runtime.parts.name,
        shots=shots,
        chunks=chunks,
        frames=frames,
        fps=round(fps, 2),
        realtime=round(fps / runtime.parts.frames_per_second, 3),
        first_frame_ms_cold=_ms(firsts[0]),
        first_frame_ms_p50=_ms(quantile(firsts[1:] or firsts, 0.5)),
        first_frame_ms_p95=_ms(quantile(firsts[1:] or firsts, 0.95)),
        chunk_ms_p50=_ms(quantile(waited, 0.5)),
        chunk_ms_p95=_ms(quantile(waited, 0.95)),
        positions=_positions(samples, chunks),
        rss_mb_after_shot=[round(value, 1) for value in rss],
        rss_growth_mb=round(rss[-1] - rss[EARLY_SHOT - 1], 1) if shots > EARLY_SHOT else None,
        gpu_peak_mb=_gpu_peak_mb(runtime.device),
        late_over_early=drift,
        late_shot=late,
        machine=_machine(runtime),
    )


def late_over_early(
    runtime: Runtime, early: bytes, late: bytes, caption: str, chunks: int, rounds: int = PAIRED_ROUNDS
) -> float:
    """What history costs: chunk time behind many shots over chunk time behind one, both sessions restored from
    snapshots.

    The two take turns chunk by chunk, since a machine's speed drifts by far more than the 2 % looked for; the result
    is the
    median over all pairs. The first chunk is left out: it carries the cut's work, which depends on how many earlier
    captions the context shows. Growth with the age of the process shows in the memory figure instead.
    """
    ratios: list[float] = []
    for round_ in range(rounds):
        with runtime.restore(early) as young, runtime.restore(late) as old:
            pair = [young, old] if round_ % 2 == 0 else [old, young]
            for session in pair:
                session.begin_shot(caption, chunks)
            for chunk in range(chunks):
                times = {session: _timed(session.next_chunk) for session in pair}
                if chunk or chunks == 1:
                    ratios.append(times[old] / times[young])
    return round(statistics.median(ratios), 4)


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def resident_mb() -> float:
    """Resident memory of this process in MB (10^6 bytes)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, ValueError, AttributeError):
        import resource  # not on Windows, but neither is bench promised there

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if platform.system() == "Darwin" else peak / 1e3


def write_json(report: BenchReport, path: Path) -> None:
    """Write every figure; raises UserError if the file cannot be written."""
    replace_file(path, (json.dumps(asdict(report), indent=1) + "\n").encode())


def _positions(samples: Sequence[ChunkSample], chunks: int) -> list[PositionFigures]:
    found = []
    for chunk in range(chunks):
        here = [sample for sample in samples if sample.chunk == chunk]
        parts = {name: _ms(statistics.median(sample.parts[name] for sample in here)) for name in here[0].parts}
        found.append(PositionFigures(chunk, _ms(statistics.median(sample.waited for sample in here)), parts))
    return found


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


def _gpu_peak_mb(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None


def _machine(runtime: Runtime) -> dict[str, str]:
    device = runtime.device
    height, width = runtime.parts.frame_size
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit_of_checkout() or "unknown",
        "shotstream": metadata.version("shotstream"),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "load_average": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(runtime.dtype).removeprefix("torch."),
        "threads": str(torch.get_num_threads()),
        "engine": runtime.options.engine,
        "attention": runtime.options.attention or "default",
        "weights": str(runtime.options.weights),
        "weights_sha256": runtime.parts.weights_hash,
        "frame_size": f"{width}x{height}",
    }
