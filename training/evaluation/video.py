"""Finished films from files: an mp4 and, beside it, a json that says what was asked for. Nothing is measured here.

The json has the mp4's name. Two layouts are read: what `shotstream play` writes beside its film, and

    {"global_caption": ..., "shots": [{"caption": ..., "start": 0, "end": 81}, ...], "seconds": 12.5}

with shots as numbers of frames, the end not included. `seconds`, how long the film took to make, may be left out; the
global caption is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import msgspec
import numpy as np
from numpy.typing import NDArray

from shotstream.runtime.errors import UserError
from shotstream.training.evaluation.axes import Pace

LARGEST = 8 * 2**30
"""Bytes of decoded frames; about ten minutes of 480x832 at 16 frames a second."""


@dataclass(frozen=True)
class AskedShot:
    """A shot that was asked for: its caption, and the frames it should fill, the last not included."""

    caption: str
    start: int
    end: int


@dataclass(frozen=True)
class Asked:
    """What a film was asked to show; `pace` where its record says how long it took."""

    shots: tuple[AskedShot, ...]
    pace: Pace | None = None


class _Chunk(msgspec.Struct):
    frames: int
    seconds: dict[str, float]


class _Shot(msgspec.Struct):
    caption: str
    start: int | None = None
    end: int | None = None
    frames: int | None = None
    chunks: list[_Chunk] | None = None


class _Record(msgspec.Struct):
    shots: list[_Shot]
    seconds: float | None = None


def find_films(path: Path) -> list[Path]:
    """The mp4 itself, or all in a folder and below it, by name. UserError if there is none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"there is no film at {path}: --video wants an mp4 or a folder of them")
    films = sorted(path.rglob("*.mp4"))
    if not films:
        raise UserError(f"there is no mp4 in {path} or below it")
    return films


def read_asked(film: Path) -> Asked:
    """The record beside a film. UserError when it is missing, is no such record, or its shots overlap."""
    path = film.with_suffix(".json")
    if not path.is_file():
        raise UserError(f"{film} has no record of what was asked for: {path.name} is not beside it")
    try:
        record = msgspec.json.decode(path.read_bytes(), type=_Record)
    except (msgspec.DecodeError, OSError) as error:
        raise UserError(f"{path} is not a record of a film: {error}") from None
    shots: list[AskedShot] = []
    for number, shot in enumerate(record.shots):
        # A player's record counts frames; they follow one another.
        before = shots[-1].end if shots else 0
        start = before if shot.start is None else shot.start
        end = start + shot.frames if shot.end is None and shot.frames is not None else shot.end
        if end is None:
            raise UserError(f"shot {number} in {path} says neither where it ends nor how many frames it has")
        if not before <= start < end:
            raise UserError(f"shot {number} in {path} is from {start} to {end}, behind one that ends at {before}")
        shots.append(AskedShot(shot.caption, start, end))
    if not shots:
        raise UserError(f"{path} names no shots")
    return Asked(tuple(shots), _pace(record, sum(shot.end - shot.start for shot in shots)))


def check_readable(film: Path, asked: Asked) -> None:
    """UserError for a file that is no video or says that it is too short: asked of all films before any is measured."""
    try:
        with av.open(str(film)) as container:
            known = container.streams.video[0].frames
    except (av.FFmpegError, OSError, IndexError) as error:
        raise UserError(f"{film} cannot be read as a video: {error}") from None
    if 0 < known < asked.shots[-1].end:
        raise _too_short(film, known, asked)


def read_frames(film: Path, asked: Asked) -> NDArray[np.uint8]:
    """The film's frames from the first asked shot to the last, uint8 [F, H, W, 3].

    UserError for a file that cannot be decoded, that is shorter than the shots asked for, or too large for memory.
    """
    first, last = asked.shots[0].start, asked.shots[-1].end
    frames: list[NDArray[np.uint8]] = []
    number = 0
    try:
        with av.open(str(film)) as container:
            for number, frame in enumerate(container.decode(video=0), 1):
                if first < number <= last:
                    frames.append(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))
                    if len(frames) * frames[0].nbytes > LARGEST:
                        raise UserError(f"{film} is too long to be measured at once; cut it into films of some shots")
                if number == last:
                    break
    except (av.FFmpegError, OSError, IndexError) as error:
        raise UserError(f"{film} cannot be read as a video: {error}") from None
    if number < last:
        raise _too_short(film, number, asked)
    return np.stack(frames)


def asked_cuts(asked: Asked) -> list[int]:
    """Where cuts were asked for, counted from the first shot's first frame."""
    return [shot.start - asked.shots[0].start for _, shot in pairwise(asked.shots)]


def _too_short(film: Path, frames: int, asked: Asked) -> UserError:
    return UserError(f"{film} has {frames} frames, but the last shot in its json ends at {asked.shots[-1].end}")


def _pace(record: _Record, frames: int) -> Pace | None:
    if record.seconds is not None:
        return Pace(frames, record.seconds)
    chunks = [chunk for shot in record.shots for chunk in shot.chunks or ()]
    if not chunks:
        return None
    waits = tuple(chunk.seconds.get("total", 0.0) for chunk in chunks)
    return Pace(sum(chunk.frames for chunk in chunks), sum(waits), waits)
