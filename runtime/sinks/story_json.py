"""What was played, as data: captions, scenes, choices, seed, model, versions, time per chunk and part, and the SHA-256
of all frames.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shotstream.runtime.sinks.base import FilmChunk, FilmInfo, replace_file

FORMAT = 1


class StoryJsonSink:
    """Writes `target` after every shot and on close, so that a killed film leaves its record too.

    The hash covers the raw uint8 RGB frames in order, rows from the top: two films with equal hashes are equal bit for
    bit before encoding."""

    def __init__(self, target: Path, options: Mapping[str, Any] | None = None) -> None:
        self.target = target
        self._info: FilmInfo | None = None
        self._shots: list[dict[str, Any]] = []
        self._choices: list[dict[str, Any]] = []
        self._global_caption = ""
        self._hash = hashlib.sha256()
        self._frames = 0
        self._closed = False

    def open(self, info: FilmInfo) -> None:
        """Remember the film's facts."""
        self._info = info
        self._global_caption = info.global_caption

    def write(self, chunk: FilmChunk) -> None:
        """Add a chunk to the record; the file itself is rewritten at the end of each shot."""
        if chunk.index == 0 or not self._shots:
            self._begin_shot(chunk)
        self._hash.update(chunk.frames_FHWC.tobytes())
        frames = len(chunk.frames_FHWC)
        self._frames += frames
        record = self._shots[-1]
        record["frames"] += frames
        seconds = {part: round(value, 6) for part, value in chunk.seconds.items()}
        record["chunks"].append({"chunk": chunk.index, "frames": frames, "seconds": seconds})
        if chunk.index == chunk.chunks - 1:
            self._save(complete=False)

    def _begin_shot(self, chunk: FilmChunk) -> None:
        for taken in chunk.taken:
            made = {"question": taken.question, "option": taken.option, "label": taken.label}
            self._choices.append(made | {"options": list(taken.options), "before_shot": chunk.shot})
        shot: dict[str, Any] = {"shot": chunk.shot, "caption": chunk.caption}
        if chunk.scene is not None:
            self._global_caption = chunk.scene.global_caption
            shot["scene"] = {"keep_memory": chunk.scene.keep_memory}
        shot |= {"global_caption": self._global_caption, "chunks_asked": chunk.chunks, "frames": 0, "chunks": []}
        self._shots.append(shot)

    def close(self, complete: bool = True) -> list[Path]:
        """Write the final record."""
        if self._info is None:
            return []
        if not self._closed:
            self._closed = True
            self._save(complete)
        return [self.target]

    def _save(self, complete: bool) -> None:
        assert self._info is not None
        info = self._info
        record = {
            "format": FORMAT,
            "complete": complete,
            "model": info.model,
            "seed": info.seed,
            "global_caption": info.global_caption,
            "width": info.width,
            "height": info.height,
            "frames_per_second": info.frames_per_second,
            "frames": self._frames,
            "frames_sha256": self._hash.hexdigest(),
            "versions": dict(info.versions),
            "choices": self._choices,
            "shots": self._shots,
        }
        replace_file(self.target, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
