"""Films by a model of the runtime."""

from __future__ import annotations

from collections.abc import Callable

import torch

from shotstream.bridge.model.options import WorkerOptions
from shotstream.bridge.model.orders import Facts, NewShot
from shotstream.bridge.model.studio import Piece, Stopped, Tell
from shotstream.runtime.runtime import Runtime
from shotstream.runtime.session import Chunk, ChunkCancelled, Session


class RuntimeFilm:
    """A `Session` behind the interface of films."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def begin(self, shot: NewShot) -> None:
        """Cut to a new shot; a running one ends with the chunk it has reached."""
        if shot.forget:
            self.session.end_shot()
            self.session.forget()
        self.session.cut(shot.caption, chunks=shot.chunks or None, global_caption=shot.global_caption)

    def steer(self, caption: str) -> None:
        """Another caption for the running shot."""
        self.session.steer(caption)

    def make(self, stop: Callable[[], bool]) -> Piece | None:
        """The next chunk, or None if no shot runs; Stopped if ``stop`` said so."""
        try:
            made: Chunk | None = self.session.next_chunk(stop)
        except ChunkCancelled:
            raise Stopped from None
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from None
        return None if made is None else Piece(made.frames, made.shot, made.chunk, made.caption, made.last)

    def settle(self) -> None:
        """Use an idle moment for what the next chunk would have to do first."""
        self.session.settle()

    def keep(self) -> tuple[int, bytes]:
        """Number of the next shot and the film as if the running one ended here."""
        return self.session.shots_begun, self.session.snapshot(mid_shot=True)

    def branch(self) -> RuntimeFilm:
        """A second film from here on."""
        return RuntimeFilm(self.session.fork(mid_shot=True))

    def close(self) -> None:
        """Free the caches."""
        self.session.close()


class RuntimeStudio:
    """A model of the runtime."""

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self._runtime: Runtime | None = None

    def prepare(self, tell: Tell) -> Facts:
        """Load and warm up."""
        options = self.options
        if options.threads:
            torch.set_num_threads(options.threads)
        tell("loading", f"loading {options.model}")
        self._runtime = runtime = Runtime(
            options.model,
            device=options.device,
            weights=options.weights,
            engine=options.engine,
            engine_options=options.engine_options,
            engine_fallback=options.engine_fallback,
            say=lambda text: tell("loading", text),
        )
        tell("warming_up", "making a first chunk that nobody sees")
        runtime.warm_up()
        parts = runtime.parts
        frames = 4 * parts.config.chunk_frames
        return Facts(
            name=parts.name, width=parts.frame_size[1], height=parts.frame_size[0], fps=parts.frames_per_second,
            chunk_frames=frames, first_chunk_frames=frames - 3, max_shot_chunks=100,
            usual_shot_chunks=parts.default_chunks,
            description=f"{parts.name} on {runtime.device}, {runtime.engine_choice.sentence}",
        )  # fmt: skip

    def open(self, seed: int, global_caption: str, saved: bytes) -> RuntimeFilm:
        """A new film, or one that goes on from a shot boundary."""
        assert self._runtime is not None, "prepare comes first"
        if saved:
            return RuntimeFilm(self._runtime.restore(saved))
        return RuntimeFilm(self._runtime.open(global_caption, seed=seed))

    def close(self) -> None:
        """Close all films and the model."""
        if self._runtime is not None:
            self._runtime.close()
