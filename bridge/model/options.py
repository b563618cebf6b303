"""What a model process is to load: plain values, so that the bridge needs no torch to say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MockOptions:
    """``chunk_s`` seconds of pretended work a chunk, give or take up to ``jitter_s``; ``load_s`` before it is ready."""

    width: int = 832
    height: int = 480
    fps: int = 16
    chunk_frames: int = 12
    chunk_s: float = 0.5
    jitter_s: float = 0.05
    load_s: float = 0.2
    usual_shot_chunks: int = 7


@dataclass(frozen=True)
class WorkerOptions:
    """``threads`` 0: as many as torch likes. ``mock`` counts for the model named mock only; ``engine`` and what goes
    with it for all others.
    """

    model: str = "tiny"
    device: str = "cpu"
    weights: str = "default"
    threads: int = 0
    digests: bool = False
    """Whether chunks are hashed, as a recording needs it."""
    mock: MockOptions = field(default_factory=MockOptions)
    engine: str = "eager"
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    engine_fallback: str | None = None
