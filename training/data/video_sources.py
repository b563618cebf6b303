"""Where multi-shot videos come from: a folder of video files, the reference's csv, or our own WebDataset tar shards.

Every reader yields :class:`MultiShotVideo`, or :class:`Refused` with the reason; nothing in the data ends the reading.

- folder: every video file in it and below; `NAME.json` beside `NAME.mp4` describes it (see ``videos.Description``).
- csv: columns `video_path`, `json_path`, `frame_number` (a list of `[start, end)` as text) and
  `shot_num_from_caption`; the json has `global_caption`, `shot1`, `shot2`, ... Paths are looked for beside the csv,
  then in the working directory. Source: reference ``utils/dataset.py``.
- tar shards: per video `KEY.json` and `KEY.mp4` (or another suffix), as :func:`write_shards` makes them.
"""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import msgspec

from shotstream.runtime.errors import UserError
from shotstream.runtime.optional import require
from shotstream.training.data.videos import (
    BadVideo,
    DescribedShot,
    Description,
    MultiShotVideo,
    Refused,
    check_description,
    read_description,
)

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
_COLUMNS = ("shot_num_from_caption", "json_path", "video_path", "frame_number")
_UNREADABLE = (OSError, UnicodeDecodeError, csv.Error)


@dataclass(frozen=True)
class VideoSource:
    """Videos to read once, and how many entries there are, None where only reading tells."""

    videos: Iterator[MultiShotVideo | Refused]
    total: int | None


def open_source(path: Path) -> VideoSource:
    """The reader that fits ``path``: a csv file, a tar shard, a video, or a folder of videos and tar shards.

    Raises UserError if there is nothing of that kind.
    """
    path = path.resolve()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in (*VIDEO_SUFFIXES, ".tar") and p.is_file())
    elif path.is_file():
        found = [path]
    else:
        raise UserError(f"there is no folder or file {path}; give a folder of videos, a csv or a tar shard")
    if not found:
        raise UserError(f"{path} holds no videos; looked for *{', *'.join(VIDEO_SUFFIXES)} and tar shards (*.tar)")
    if path.suffix.lower() == ".csv" and path.is_file():
        rows = _rows(path)
        return VideoSource(_from_csv(path, rows), len(rows))
    shards = any(p.suffix.lower() == ".tar" for p in found)
    return VideoSource(_from_files(path.parent, found), None if shards else len(found))


def _from_files(root: Path, files: list[Path]) -> Iterator[MultiShotVideo | Refused]:
    for file in files:
        name = file.relative_to(root).as_posix()
        if file.suffix.lower() == ".tar":
            yield from _from_shard(file, name)
            continue
        sidecar = file.with_suffix(".json")
        try:
            data = sidecar.read_bytes() if sidecar.is_file() else b"{}"
            yield MultiShotVideo(name, file, read_description(data))
        except (BadVideo, OSError) as error:
            yield Refused(name, str(error))


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in _COLUMNS if column not in (reader.fieldnames or ())]
            rows = [] if missing else list(reader)
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be read as csv: {error}") from error
    if missing:
        raise UserError(f"{path} is not a table of videos: it has no column {', '.join(missing)}")
    return rows


def _from_csv(path: Path, rows: list[dict[str, Any]]) -> Iterator[MultiShotVideo | Refused]:
    for number, row in enumerate(rows, start=1):
        name = f"{path.name}/{row['video_path'] or f'row {number}'}"
        try:
            description = _described_row(path, row)
            yield MultiShotVideo(name, _beside(path, row["video_path"]), description)
        except (BadVideo, *_UNREADABLE) as error:
            yield Refused(f"{name} (row {number})", str(error))


def _described_row(path: Path, row: dict[str, Any]) -> Description:
    try:
        intervals = msgspec.convert(ast.literal_eval(row["frame_number"] or ""), list[tuple[int, int]])
        shots = int(row["shot_num_from_caption"])
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, msgspec.ValidationError) as error:
        raise BadVideo(
            "frame_number is not a list of [start, end] pairs, or shot_num_from_caption no number"
        ) from error
    if len(intervals) != shots:
        raise BadVideo(f"frame_number has {len(intervals)} intervals, but shot_num_from_caption says {shots}")
    try:
        texts = msgspec.json.decode(_beside(path, row["json_path"]).read_bytes(), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise BadVideo(f"{row['json_path']} cannot be used: {error}") from error
    captions = [texts.get(key, "") for key in ("global_caption", *(f"shot{k}" for k in range(1, shots + 1)))]
    if not all(isinstance(caption, str) for caption in captions):
        raise BadVideo(f"{row['json_path']} cannot be used: a caption is no text")
    described = [DescribedShot(caption, interval) for caption, interval in zip(captions[1:], intervals, strict=True)]
    description = Description(captions[0], tuple(described), source=f"{path.name}: {row['video_path']}")
    check_description(description)
    return description


def _beside(table: Path, name: str | None) -> Path:
    """A file that a table names: absolute, beside the table, or in the working directory."""
    if not name:
        raise BadVideo("the row names no file")
    for candidate in (table.parent / name, Path(name)):
        if candidate.is_file():
            return candidate.resolve()
    raise BadVideo(f"there is no file {name}, neither beside {table.name} nor in the working directory")


def _from_shard(path: Path, name: str) -> Iterator[MultiShotVideo | Refused]:
    # WebDataset's own readers of open files; its URLs could name commands to run, so they are not used.
    tar = require("webdataset", "reading tar shards", "train").tariterators
    faults: list[Exception] = []

    def stop(error: Exception) -> bool:
        faults.append(error)
        return False

    with path.open("rb") as file:
        members = tar.tar_file_expander([{"url": str(path), "stream": file}], handler=stop)
        for sample in tar.group_by_keys(members, handler=stop):
            key = f"{name}/{sample['__key__']}"
            video = next((sample[s[1:]] for s in VIDEO_SUFFIXES if s[1:] in sample), None)
            if video is None or "json" not in sample:
                yield Refused(key, f"the shard has no {'video' if video is None else 'json'} of this name")
                continue
            try:
                yield MultiShotVideo(key, video, read_description(sample["json"]))
            except BadVideo as error:
                yield Refused(key, str(error))
    if faults:
        yield Refused(name, f"the shard breaks off or is damaged: {faults[0].args[0] if faults[0].args else faults[0]}")


def write_shards(videos: Iterable[MultiShotVideo], out: Path, videos_per_shard: int = 100) -> list[Path]:
    """Pack described videos into `videos_00000.tar`, ... in ``out``, each file complete or not there.

    What :func:`open_source` reads back, and any WebDataset loader: keys without dots, `json` and the video's suffix.
    """
    writer = require("webdataset", "writing tar shards", "train").TarWriter
    out.mkdir(parents=True, exist_ok=True)
    rest, numbers = iter(videos), count()
    made: list[Path] = []
    for shard in count():
        group = list(islice(rest, videos_per_shard))
        if not group:
            return made
        path = out / f"videos_{shard:05d}.tar"
        scratch = path.with_suffix(".tmp")
        with scratch.open("wb") as file, writer(file, mtime=0.0) as tar:
            for video in group:
                inside = isinstance(video.video, bytes)
                stem, suffix = (video.name, ".mp4") if inside else (Path(video.name).stem, Path(video.name).suffix)
                key = f"{next(numbers):06d}_{re.sub(r'[^A-Za-z0-9]+', '_', stem)[-60:]}"
                content = video.video if isinstance(video.video, bytes) else video.video.read_bytes()
                described = msgspec.structs.replace(video.description, source=video.description.source or video.name)
                tar.write({"__key__": key, "json": msgspec.json.encode(described), suffix[1:].lower(): content})
        scratch.replace(path)
        made.append(path)
    raise AssertionError("unreachable")
