"""What a multi-shot video with captions is, before anything is read from its pictures: description, checks, refusals.

The description is the json beside a video (`NAME.json`) and inside our tar shards. Where such files are found is in
``video_sources``, how pictures are read in ``video_frames``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec


class BadVideo(Exception):
    """This video cannot be used; the text is the reason, without the video's name. Never ends a whole run."""


class DescribedShot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One shot: its caption, and its frames `[start, end)` counted from the video's first; None where not known."""

    caption: str = ""
    interval: tuple[int, int] | None = None


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The json of a video. ``fps`` overrides what the file says; ``source`` says where the video came from."""

    global_caption: str = ""
    shots: tuple[DescribedShot, ...] = ()
    fps: float | None = None
    source: str = ""

    @property
    def intervals(self) -> list[tuple[int, int]]:
        """`[start, end)` of every shot; empty where the description names none."""
        return [shot.interval for shot in self.shots if shot.interval is not None]


@dataclass(frozen=True)
class MultiShotVideo:
    """A described video: a file, or the bytes of one. ``name`` is the same whenever the same source is read."""

    name: str
    video: Path | bytes
    description: Description

    @property
    def size(self) -> int:
        """Bytes of the video file."""
        return len(self.video) if isinstance(self.video, bytes) else self.video.stat().st_size


@dataclass(frozen=True)
class Refused:
    """A video, a row of a table or a shard that cannot be used, and why."""

    name: str
    reason: str


def read_description(data: bytes) -> Description:
    """The checked description from json; BadVideo says what is wrong with it."""
    try:
        description = msgspec.json.decode(data, type=Description)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadVideo(f"its json cannot be used: {error}") from error
    check_description(description)
    return description


def check_description(description: Description) -> None:
    """BadVideo if only some shots have intervals, or if these are empty, unsorted or overlap."""
    intervals = description.intervals
    if intervals and len(intervals) != len(description.shots):
        raise BadVideo(f"{len(intervals)} of its {len(description.shots)} shots have an interval; give all or none")
    for start, end in intervals:
        if start < 0 or end <= start:
            raise BadVideo(f"the interval [{start}, {end}) holds no frames")
    for (start, end), (next_start, next_end) in pairwise(intervals):
        if next_start < end:
            kind = "are not in order" if next_start < start else "overlap"
            raise BadVideo(f"the intervals [{start}, {end}) and [{next_start}, {next_end}) {kind}")
    if description.fps is not None and not 0 < description.fps < 1000:
        raise BadVideo(f"{description.fps:g} frames a second cannot be right")
