"""How one chunk is made: denoised, decoded, copied to the host; on a GPU with the next chunk's first step meanwhile.

A GPU decodes and copies on a stream of its own. While the host waits for the frames, the chunk after them is begun (its
first step, joined by some engines with this one's clean pass), and no more than that: a cut then costs a step at
most. On a CPU one thing follows the other. It knows no captions and no history.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shotstream.runtime.chunk import to_bytes
from shotstream.runtime.engine import Engine, StepwiseEngine
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.noise import CONTEXT, START, NoiseSource
from shotstream.runtime.plugins import ModelParts
from shotstream.runtime.shot import RunningShot
from shotstream.runtime.timing import Stopwatch


@dataclass(frozen=True)
class MadeChunk:
    """remembered [1, F, C, h, w]: the latents as later chunks see them; pixels [f, 3, H, W] in [-1, 1]; frames
    [f, H, W, 3], 0..255, on the host.

    cleaned: the engine has had the chunk's `clean` already.
    """

    remembered: Tensor
    pixels: Tensor
    frames: npt.NDArray[np.uint8]
    cleaned: bool


class ChunkMaker:
    """Makes one session's chunks with its part of the engine."""

    def __init__(
        self, parts: ModelParts, engine: Engine, state: Any, noise: NoiseSource, watch: Stopwatch, run_ahead: bool
    ) -> None:
        self._parts = parts
        self._engine = engine
        self._state = state
        self._noise = noise
        self._watch = watch
        self._run_ahead = run_ahead
        self._shape = (1, parts.config.chunk_frames, *parts.latent_shape)
        self._schedule = NoiseSchedule(parts.config.shift, noise.device)
        self._lane = _Lane(noise.device)
        self._begun: tuple[int, int] | None = None
        """(shot, chunk) whose first step is queued up."""

    def make(self, shot: RunningShot, heed: Callable[[], None]) -> MadeChunk:
        """Make the shot's next chunk. `heed` is asked before each piece of work and raises to abandon the chunk."""
        where = (shot.number, shot.made)

        def renoise(step: int) -> Tensor:
            noise = self._noise.draw(*where, START + 1 + step, self._shape)
            heed()  # between two steps, whichever engine makes them
            return noise

        with self._watch.lap("denoise"):
            if isinstance(self._engine, StepwiseEngine):
                if self._begun != where:
                    self._begin(self._engine, shot, shot.made, heed)
                self._begun = None  # if it is abandoned it has to be begun anew
                latents = self._engine.finish(self._state, renoise)
            else:
                noise = self._noise.draw(*where, START, self._shape)
                heed()
                latents = self._engine.denoise(self._state, shot.next_frame, noise, renoise)
            heed()  # decoding moves the stream on, so this is the last moment
        self._lane.borrow(latents)
        with self._lane.work():
            with self._watch.lap("decode"):
                pixels = self._parts.decoder.decode_chunk(latents, shot.stream)[0]
            with self._watch.lap("copy"):
                fetch = self._lane.to_host(pixels)
        remembered = self._schedule.remembered(
            latents, self._parts.config.context_noise, lambda: self._noise.draw(*where, CONTEXT, self._shape)
        )
        cleaned = self._go_ahead(shot, remembered)
        return MadeChunk(remembered, pixels, fetch(), cleaned)

    def encode(self, frame_CHW: Tensor) -> Tensor:
        """One frame that may become context to its latent [C, h, w], beside what else the GPU does."""
        self._lane.borrow(frame_CHW)
        with self._lane.work(), self._watch.lap("encode"):
            latent = self._parts.decoder.encode_frames(frame_CHW[None])[0]
        self._lane.share(latent)
        return latent

    def join(self) -> None:
        """Let what comes next on the main stream wait for all encoding so far."""
        self._lane.join()

    def restart(self) -> None:
        """As `join`, and the next chunk begins anew: caches are about to change."""
        self._begun = None
        self._lane.join()

    def _go_ahead(self, shot: RunningShot, remembered: Tensor) -> bool:
        """Queue up the next chunk's first step, if there is to be one and somebody to wait for it meanwhile."""
        following = shot.made + 1
        if not (self._run_ahead and isinstance(self._engine, StepwiseEngine) and following < shot.chunks):
            return False
        with self._watch.lap("clean", later=True):
            self._engine.clean(self._state, shot.next_frame, remembered)
        with self._watch.lap("denoise", later=True):
            self._begin(self._engine, shot, following, lambda: None)
        return True

    def _begin(self, engine: StepwiseEngine, shot: RunningShot, chunk: int, heed: Callable[[], None]) -> None:
        noise = self._noise.draw(shot.number, chunk, START, self._shape)
        heed()
        engine.start(self._state, chunk * self._parts.config.chunk_frames, noise)
        self._begun = (shot.number, chunk)


class _Lane:
    """A CUDA stream for pixels, beside the one that denoises; on a CPU nothing at all."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._host: Tensor | None = None

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Run the body beside the main stream, behind all that it has been given so far."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def to_host(self, pixels_FCHW: Tensor) -> Callable[[], npt.NDArray[np.uint8]]:
        """Begin to copy frames as bytes; the result waits for them. Inside `work`."""
        frames = to_bytes(pixels_FCHW)
        if not self._cuda:
            return frames.numpy
        if self._host is None or self._host.shape[0] < frames.shape[0]:
            self._host = torch.empty(frames.shape, dtype=torch.uint8, pin_memory=True)
        host = self._host[: frames.shape[0]]
        host.copy_(frames, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()

        def fetch() -> npt.NDArray[np.uint8]:
            arrived.synchronize()
            return host.numpy().copy()  # the pinned memory is the next chunk's

        return fetch

    def borrow(self, given: Tensor) -> None:
        """Keep the memory of a tensor of the main stream until this one is done with it, too."""
        if self._stream is not None:
            given.record_stream(self._stream)

    def share(self, made: Tensor) -> None:
        """Keep the memory of a tensor made in `work` until the main stream is done with it, too."""
        if self._stream is not None:
            made.record_stream(torch.cuda.current_stream(self._device))

    def join(self) -> None:
        """Let the main stream wait for this one."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
