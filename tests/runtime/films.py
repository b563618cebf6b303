"""What tests of engines play: one story with all that can happen, and the latents an engine makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shotstream.runtime.graph.engine import GraphEngine
from shotstream.runtime.runtime import Runtime
from shotstream.runtime.session import ChunkCancelled, Session

CHUNKS = 20
"""That `film` finishes."""


def latents_of(runtime: Runtime) -> list[Tensor]:
    """What the runtime's engine makes from now on."""
    made: list[Tensor] = []
    engine: Any = runtime.engine
    real = engine.denoise if not isinstance(engine, GraphEngine) else engine.finish

    def noted(*arguments: Any) -> Tensor:
        made.append(real(*arguments))
        return made[-1]

    setattr(engine, "denoise" if not isinstance(engine, GraphEngine) else "finish", noted)
    return made


def assert_same_film(expected: Runtime, made: Runtime) -> None:
    """Both play the story of `film`; every chunk's latents must agree, wherever they are."""
    theirs, ours = latents_of(expected), latents_of(made)
    for runtime in (expected, made):
        film(runtime.open("A forest. ", seed=3))
    assert len(ours) == len(theirs) == CHUNKS
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(b.cpu(), a.cpu(), rtol=1e-4, atol=1e-4)


def film(session: Session) -> np.ndarray:
    """A story with all that can happen: cuts at an end and before it, a steer, a long shot, an abandoned chunk."""
    frames = []

    def play(count: int) -> None:
        for _ in range(count):
            chunk = session.next_chunk()
            assert chunk is not None
            frames.append(chunk.frames)

    session.begin_shot("a fox waits", 3)
    play(3)
    session.begin_shot("a fox runs", 10)  # longer than the local cache
    play(10)
    session.cut("a hare looks up", chunks=7)
    play(2)
    session.steer("a hare dances")
    play(2)
    session.cut("a fox sleeps", chunks=3)
    play(1)
    asked = iter([False, False, False, True])
    with pytest.raises(ChunkCancelled):
        session.next_chunk(lambda: next(asked))
    play(2)
    return np.concatenate(frames)
