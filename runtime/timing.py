"""Where a chunk's time goes: named laps that cost no synchronisation on a GPU until they are read.

On CUDA a lap is a pair of events, read once the frames have reached the host anyway; elsewhere it is the wall clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch


@dataclass(frozen=True)
class Timings:
    """Seconds spent on behalf of one chunk.

    `clean` and `encode` are work that the previous chunk left behind (its clean pass, or those of all cached chunks
    after a steer; the encoding of its candidate frames): it is done when the next chunk is asked for, so that it never
    delays the delivery of finished frames. `text` and `context` are zero except in a shot's first chunk and, `text`,
    after a steer. `copy` turns pixels into bytes on the host. A cancelled chunk's own work is not counted. On a GPU the
    parts overlap: their sum may exceed the time that passed.
    """

    text: float = 0.0
    context: float = 0.0
    denoise: float = 0.0
    clean: float = 0.0
    decode: float = 0.0
    copy: float = 0.0
    encode: float = 0.0

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return sum(getattr(self, f.name) for f in fields(self))


class Stopwatch:
    """Collects laps until `read`, then starts afresh."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._laps: list[tuple[str, Any, Any]] = []
        self._later: list[tuple[str, Any, Any]] = []

    @contextmanager
    def lap(self, name: str, *, later: bool = False) -> Iterator[None]:
        """Add the time of the body to `name`, a field of `Timings`; `later`: not of this `read` but of the next."""
        begin = self._now()
        yield
        (self._later if later else self._laps).append((name, begin, self._now()))

    def read(self) -> Timings:
        """The laps so far, summed by name. On CUDA the device must have finished them (frames copied to the host)."""
        seconds: dict[str, float] = {}
        for name, begin, end in self._laps:
            if self._cuda:
                end.synchronize()
            lap = begin.elapsed_time(end) / 1000 if self._cuda else end - begin
            seconds[name] = seconds.get(name, 0.0) + lap
        self._laps, self._later = self._later, []
        return Timings(**seconds)

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
