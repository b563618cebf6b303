"""A story through a session into sinks: the loop behind `play`, `demo` and the benchmark.

It knows the order of things and what must happen when something stops in the middle; it knows no files (sinks do), no
tensors (the session does) and no screen (an observer does).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Protocol

import torch

from shotstream.runtime.runtime import Runtime
from shotstream.runtime.session import Chunk, Session
from shotstream.runtime.sinks.base import FilmChunk, FilmInfo, Sink
from shotstream.runtime.storyline import Scene, StoryShot, StorySource, Taken, check_length, check_lengths

log = logging.getLogger(__name__)

_RECORDED_PACKAGES = ("shotstream", "torch", "numpy", "av")


class Observer(Protocol):
    """Told what happens, for a progress display. All times are seconds of wall clock."""

    def waiting(self, shot: int) -> None:
        """The next shot's caption is not there yet; it may take as long as a person types."""
        ...

    def chosen(self, taken: Taken) -> None:
        """A choice was made, by whomever; the next shot is the first of what was taken."""
        ...

    def scene_begins(self, scene: Scene) -> None: ...
    def shot_begins(self, shot: int, caption: str, chunks: int, total_shots: int | None) -> None: ...
    def chunk_made(self, made: Made) -> None: ...


@dataclass(frozen=True)
class Made:
    """One chunk, as timed from outside: `seconds` is how long the caller waited for its frames."""

    chunk: Chunk
    seconds: float
    first_frame_seconds: float | None
    """From the shot's caption to its first frames; None but for a shot's first chunk."""


@dataclass
class Film:
    """What has been made so far. Filled while the film is running, so that it is right after an interruption too."""

    shots: int = 0
    frames: int = 0
    seconds: float = 0.0
    """Time spent making chunks, without waiting for captions."""
    first_frame_seconds: float | None = None
    """From the first shot's caption to its first frames."""
    complete: bool = False
    files: list[Path] = field(default_factory=list)

    @property
    def frames_per_second(self) -> float:
        """Frames made per second of making."""
        return self.frames / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class FilmPlan:
    """What to play. `chunks` overrides the length of every shot; None leaves it to the story and the preset."""

    source: StorySource
    seed: int = 0
    chunks: int | None = None
    sinks: Sequence[Sink] = ()


def make_film(
    runtime: Runtime,
    plan: FilmPlan,
    film: Film,
    observer: Observer,
    shield: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Play a story; `film` tells what came of it, also when this raises.

    Sinks are closed whatever happens, under `shield`, a context manager that holds back Ctrl-C meanwhile. Captions
    that the model cannot read to their end are refused before the first frame, live ones when they arrive.
    """
    parts = runtime.parts
    check_lengths(plan.source, parts.config.text_len, parts.text.tokens)
    opened: list[Sink] = []
    observer.waiting(0)
    try:
        with runtime.open(plan.source.global_caption, seed=plan.seed) as session:
            info = film_info(runtime, session)
            for sink in plan.sinks:
                opened.append(sink)  # before open, so that half of an open is closed too
                sink.open(info)
            for number, shot in enumerate(plan.source):
                _announce(shot, observer)
                scene = shot.scene
                if scene is not None and not scene.keep_memory:
                    session.forget()
                global_caption = session.global_caption if scene is None else scene.global_caption
                label = session.shots_begun - session.memory_begins
                check_length(plan.source.name, global_caption, label, shot, parts.config.text_len, parts.text.tokens)
                _play_shot(session, shot, plan, film, observer, shield)
                observer.waiting(number + 1)
        film.complete = True
    finally:
        with shield():
            film.files = _close_all(opened, film.complete)


def _announce(shot: StoryShot, observer: Observer) -> None:
    for taken in shot.taken:
        observer.chosen(taken)
    if shot.scene is not None:
        observer.scene_begins(shot.scene)


def _play_shot(
    session: Session,
    shot: StoryShot,
    plan: FilmPlan,
    film: Film,
    observer: Observer,
    shield: Callable[[], AbstractContextManager[None]],
) -> None:
    begin = time.perf_counter()
    chunks = plan.chunks or shot.chunks or session.runtime.parts.default_chunks
    session.begin_shot(shot.caption, chunks, global_caption=shot.scene.global_caption if shot.scene else None)
    observer.shot_begins(film.shots, shot.caption, chunks, plan.source.total_shots)
    while (chunk := session.next_chunk()) is not None:
        seconds = time.perf_counter() - begin
        first = seconds if chunk.chunk == 0 else None
        if film.first_frame_seconds is None:
            film.first_frame_seconds = first
        film.shots = chunk.shot + 1
        film.frames += len(chunk.frames)
        film.seconds += seconds
        with shield():
            for sink in plan.sinks:
                sink.write(film_chunk(chunk, chunks, shot))
        observer.chunk_made(Made(chunk, seconds, first))
        begin = time.perf_counter()


def film_chunk(chunk: Chunk, chunks: int, shot: StoryShot) -> FilmChunk:
    """A session's chunk as sinks take it, with what the story says of its shot."""
    seconds = asdict(chunk.timings) | {"total": chunk.timings.total}
    return FilmChunk(chunk.shot, chunk.chunk, chunks, chunk.caption, chunk.frames, seconds, shot.scene, shot.taken)


def film_info(runtime: Runtime, session: Session) -> FilmInfo:
    """What sinks are told before the first frame."""
    parts = runtime.parts
    height, width = parts.frame_size
    versions = {name: _version(name) for name in _RECORDED_PACKAGES}
    versions |= {"weights_sha256": parts.weights_hash, "device": str(runtime.device)}
    versions["engine"] = runtime.engine_choice.sentence
    versions |= {"dtype": str(runtime.dtype).removeprefix("torch."), "threads": str(torch.get_num_threads())}
    return FilmInfo(
        width=width,
        height=height,
        frames_per_second=parts.frames_per_second,
        model=parts.name,
        seed=session.seed,
        global_caption=session.global_caption,
        versions=versions,
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _close_all(sinks: Sequence[Sink], complete: bool) -> list[Path]:
    """Close every sink; one that fails is logged and does not keep the others from finishing."""
    files: list[Path] = []
    for sink in sinks:
        try:
            files += sink.close(complete)
        except Exception as error:
            log.error("%s could not finish its work: %s", type(sink).__name__, error)
    return files
