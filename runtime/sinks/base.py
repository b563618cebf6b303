"""What every sink gets and gives: the film's facts, one chunk of frames at a time, and the files it has made.

A sink is made by a factory `factory(target: Path, options: Mapping) -> Sink` in the slot `sink`. This file holds data
and the protocol only; no sink lives here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shotstream.runtime.errors import UserError
from shotstream.runtime.storyline import Scene, Taken

Frames = npt.NDArray[np.uint8]
"""Frames as shown: uint8 RGB [F, H, W, 3]."""

FIRST_CHUNK_FRAMES = 9
"""Frames of a shot's first chunk: three latent frames, the first of which stands for one picture."""
LATER_CHUNK_FRAMES = 12


@dataclass(frozen=True)
class FilmInfo:
    """What is known before the first frame."""

    width: int
    height: int
    frames_per_second: int
    model: str
    seed: int
    global_caption: str
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FilmChunk:
    """A decoded chunk on its way to the sinks. `shot` and `index` count from zero; `chunks` is the shot's length."""

    shot: int
    index: int
    chunks: int
    caption: str
    frames_FHWC: Frames
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall clock by part: text, context, denoise, clean, decode, encode, total."""
    scene: Scene | None = None
    """The scene that begins with this chunk's shot, if one does."""
    taken: tuple[Taken, ...] = ()
    """Choices made right before this chunk's shot."""


class Sink(Protocol):
    """Where frames go. Called in this order: open once, write for every chunk, close once, also after a failure."""

    def open(self, info: FilmInfo) -> None:
        """Get ready. Raises UserError if that is impossible (no permission, no display)."""
        ...

    def write(self, chunk: FilmChunk) -> None:
        """Take a chunk; must not hold on to `frames_FHWC`, nor wait for anything slow."""
        ...

    def close(self, complete: bool = True) -> list[Path]:
        """Finish and return the files made. `complete` is false when the film was stopped early; what has been
        written must be readable either way. A second call does nothing and returns the same."""
        ...


def shot_frames(chunks: int) -> int:
    """Pixel frames of a shot of `chunks` chunks: 9 for the first, 12 for each further one."""
    return FIRST_CHUNK_FRAMES + LATER_CHUNK_FRAMES * (chunks - 1)


def ensure_writable(folder: Path) -> None:
    """Make `folder` and prove that a file can be written there, before anything is generated; UserError if not."""
    probe = folder / f".shotstream-write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to the folder {folder}: {error.strerror or error}; choose another with --out"
        ) from None


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old one or the new one, never a half."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
