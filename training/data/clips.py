"""A pool of short rendered clips that a background process keeps fresh; what the codec stage trains on.

Which clips the pool holds depends on the training step alone, never on timing: clip number n is rendered from seed
`first_seed + n`, and after step s the pool holds the newest `size` of the clips 0 .. start + s*rate. A stage that was
killed therefore resumes with the same pool. Sampling and cropping are the caller's.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shotstream.training.world import render_shot, sample_held_out_story, sample_story

Clip = NDArray[np.uint8]
ClipSource = Callable[[int, int, int, int], Clip]
"""(seed, frames, height, width) -> uint8 [frames, height, width, 3]; a module-level function, equal for equal seeds."""


def to_pixels(clips: Clip) -> Tensor:
    """uint8 [B, T, H, W, 3] -> float [B, T, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(clips)).permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def world_clip(seed: int, frames: int, height: int, width: int) -> Clip:
    """A random stretch of a random shot of the story world; never of a held-out story."""
    rng = np.random.default_rng(seed)
    story = sample_story(int(rng.integers(2**31)))
    shot = int(rng.integers(len(story.shots)))
    start = int(rng.integers(max(1, 33 - frames + 1)))
    return render_shot(story, shot, frames=range(start, start + frames), height=height, width=width)


def held_out_clip(seed: int, frames: int, height: int, width: int) -> Clip:
    """The first frames of a shot of a held-out story."""
    rng = np.random.default_rng(seed)
    story = sample_held_out_story(int(rng.integers(2**31)))
    shot = int(rng.integers(len(story.shots)))
    return render_shot(story, shot, frames=range(frames), height=height, width=width)


@dataclasses.dataclass(frozen=True)
class PoolConfig:
    """`start` clips are there before the first step, `rate` more come with every step, at most `size` are kept."""

    size: int = 600
    start: int = 160
    rate: float = 0.5
    frames: int = 9
    height: int = 160
    width: int = 256
    first_seed: int = 0
    background: bool = True


def _render_forever(source: ClipSource, config: PoolConfig, first: int, pipe: Connection) -> None:
    """Body of the worker: clips from number `first` on, until the other end of the pipe is gone."""
    number = first
    try:
        while True:
            clip = source(config.first_seed + number, config.frames, config.height, config.width)
            pipe.send_bytes(np.ascontiguousarray(clip).tobytes())
            number += 1
    except (BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return


class ClipPool:
    """A ring of clips; `advance(step)` brings it to that step, `clips()` is what may be sampled now."""

    def __init__(self, source: ClipSource, config: PoolConfig, step: int = 0) -> None:
        self.config = config
        self._source = source
        self._ring = np.empty((config.size, config.frames, config.height, config.width, 3), np.uint8)
        self._next = max(0, self._wanted(step) - config.size)
        self._filled = 0
        self._pipe: Connection | None = None
        self._process: multiprocessing.process.BaseProcess | None = None
        if config.background:
            # spawn, not fork: the parent has torch threads. The child holds only the sending end, so that a parent
            # killed outright closes the pipe and the child leaves.
            context = multiprocessing.get_context("spawn")
            self._pipe, sender = context.Pipe(duplex=False)
            self._process = context.Process(
                target=_render_forever, args=(source, config, self._next, sender), daemon=True
            )
            self._process.start()
            sender.close()
        self.advance(step)

    def _wanted(self, step: int) -> int:
        return self.config.start + int(step * self.config.rate)

    def _render(self, number: int) -> Clip:
        shape = self._ring.shape[1:]
        if self._pipe is None:
            return self._source(self.config.first_seed + number, shape[0], shape[1], shape[2])
        try:
            return np.frombuffer(self._pipe.recv_bytes(), np.uint8).reshape(shape)
        except (EOFError, OSError) as error:
            raise RuntimeError("the clip worker died; its own output says why") from error

    def advance(self, step: int) -> None:
        """Bring the pool to `step`, waiting for the worker where it lags."""
        while self._next < self._wanted(step):
            self._ring[self._next % self.config.size] = self._render(self._next)
            self._next += 1
        self._filled = min(self._wanted(step), self.config.size)

    def clips(self) -> Clip:
        """uint8 [n, frames, height, width, 3], a view that later steps change."""
        return self._ring[: self._filled]

    def close(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.terminate()
            self._process.join()

    def __enter__(self) -> ClipPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
