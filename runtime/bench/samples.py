"""What one chunk took, and the figures that follow from many of them. Pure: no model, no clock, no files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shotstream.runtime.bench.playout import Playout, play_out

SAMPLES_FOR_P95 = 20
SAMPLES_FOR_P99 = 100
"""With fewer, what 99 % do not exceed is the largest value, and says nothing about one chunk in a hundred."""


@dataclass(frozen=True)
class ChunkSample:
    """One chunk. Times in seconds on a clock that starts with the story and stands still while nobody waits."""

    shot: int
    """Zero-based, as `chunk`, which counts inside the shot."""
    chunk: int
    frames: int
    asked_s: float
    """When the chunk was asked for; for a shot's first chunk, when its caption was given."""
    arrived_s: float
    """When its frames were on the host."""
    parts_s: dict[str, float]
    """Seconds by part, the fields of `Timings`."""

    @property
    def took_s(self) -> float:
        """From asking to frames."""
        return self.arrived_s - self.asked_s


@dataclass(frozen=True)
class Spread:
    """How times of one kind are spread, in milliseconds. Percentiles are values that were measured, none between."""

    samples: int
    p50_ms: float
    p95_ms: float
    """The largest value where there are fewer than 20 samples."""
    p99_ms: float | None
    """None where there are fewer than 100 samples."""
    max_ms: float

    @property
    def jitter(self) -> float:
        """p99 over p50; the largest value over p50 where there is no p99."""
        return (self.max_ms if self.p99_ms is None else self.p99_ms) / self.p50_ms


@dataclass(frozen=True)
class Position:
    """All chunks at one place of their shots."""

    chunk: int
    time: Spread
    jitter: float
    """p99 (or the largest, see `Spread`) over p50."""
    limit_ms: float
    """How long the chunk's own frames are shown."""
    over_limit: int
    """Chunks that took longer than that."""
    late: int
    """Chunks that came after the frames before them had run out, for the player of `playout`."""
    parts_ms: dict[str, float]
    """Mean by part; with `other` (what no part accounts for) they add up to the mean time. Below zero, `other` says by
    how much parts overlapped."""


@dataclass(frozen=True)
class Summary:
    """What a report says; it follows from the samples alone."""

    frames: int
    seconds: float
    """Of making, all chunks; nothing was shown or written."""
    fps: float
    realtime: float
    """fps over the film's own speed."""
    first_frame_cold_ms: float
    """Shot 1, which has no history to encode."""
    first_frame: Spread
    """From a caption to its shot's first frames, all later shots (shot 1 if there is only one)."""
    positions: list[Position]
    late: int
    longest_stall_ms: float
    stalled_ms: float
    """All stalls together."""
    over_limit: int


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered) - 1e-9) - 1))]


def spread(seconds: Sequence[float]) -> Spread:
    """Percentiles of at least one time."""
    enough = len(seconds) >= SAMPLES_FOR_P99
    return Spread(
        samples=len(seconds),
        p50_ms=_ms(quantile(seconds, 0.5)),
        p95_ms=_ms(quantile(seconds, 0.95)),
        p99_ms=_ms(quantile(seconds, 0.99)) if enough else None,
        max_ms=_ms(max(seconds)),
    )


def summarise(samples: Sequence[ChunkSample], frames_per_second: float) -> Summary:
    """The figures of a story in the order in which it was made; at least one sample."""
    played = play_out([s.arrived_s for s in samples], [s.frames for s in samples], frames_per_second)
    frames = sum(sample.frames for sample in samples)
    seconds = sum(sample.took_s for sample in samples)
    firsts = [sample.took_s for sample in samples if sample.chunk == 0]
    positions = [
        _position(chunk, samples, played, frames_per_second) for chunk in sorted({sample.chunk for sample in samples})
    ]
    return Summary(
        frames=frames,
        seconds=round(seconds, 4),
        fps=round(frames / seconds, 2),
        realtime=round(frames / seconds / frames_per_second, 3),
        first_frame_cold_ms=_ms(firsts[0]),
        first_frame=spread(firsts[1:] or firsts),
        positions=positions,
        late=played.late,
        longest_stall_ms=_ms(played.longest_s),
        stalled_ms=_ms(played.total_s),
        over_limit=sum(position.over_limit for position in positions),
    )


def _position(chunk: int, samples: Sequence[ChunkSample], played: Playout, frames_per_second: float) -> Position:
    here = [(sample, stall) for sample, stall in zip(samples, played.stalls_s, strict=True) if sample.chunk == chunk]
    times = [sample.took_s for sample, _ in here]
    names = list(dict.fromkeys(name for sample, _ in here for name in sample.parts_s))
    parts = {name: sum(sample.parts_s.get(name, 0.0) for sample, _ in here) / len(here) for name in names}
    parts["other"] = sum(times) / len(times) - sum(parts.values())
    found = spread(times)
    return Position(
        chunk=chunk,
        time=found,
        jitter=round(found.jitter, 4),
        limit_ms=_ms(here[0][0].frames / frames_per_second),
        over_limit=sum(sample.took_s > sample.frames / frames_per_second for sample, _ in here),
        late=sum(stall > 0 for _, stall in here),
        parts_ms={name: _ms(value) for name, value in parts.items()},
    )


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
