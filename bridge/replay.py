"""Makes the films of a recording again, and says whether they came out bit for bit the same."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shotstream.bridge.model import orders
from shotstream.bridge.model.studio import Film, Studio
from shotstream.bridge.model.worker import digest_of, make_studio
from shotstream.bridge.record import Entry, Shown, Start, read_recording
from shotstream.runtime.errors import UserError
from shotstream.runtime.session import MAX_CHUNKS
from shotstream.runtime.sinks.base import FilmChunk, FilmInfo
from shotstream.runtime.sinks.mp4 import Mp4Sink

log = logging.getLogger(__name__)


@dataclass
class Replayed:
    """What came of it. ``differing`` names chunks as (film, shot, chunk)."""

    chunks: int = 0
    differing: list[tuple[int, int, int]] = field(default_factory=list)
    films: list[Path] = field(default_factory=list)
    frames: dict[str, int] = field(default_factory=dict)
    """Session -> frames that its client was sent."""


def replay(path: Path, out: Path | None = None, tell: Callable[[str], None] = log.info) -> Replayed:
    """Make everything again; with ``out`` every session becomes an MP4 there, frame by frame as its client was sent it.

    Raises UserError for files that are no recordings and models that cannot be loaded.
    """
    entries = list(read_recording(path))
    if not entries or not isinstance(entries[0], Start):
        raise UserError(f"{path} says nothing; the server ended before it had begun")
    options = entries[0].options
    options = replace(options, mock=replace(options.mock, chunk_s=0.0, jitter_s=0.0, load_s=0.0))
    studio = make_studio(options)
    facts = studio.prepare(lambda state, step: tell(step))
    try:
        return _Replay(studio, facts, entries, out).run()
    finally:
        studio.close()


class _Track:
    """One session's frames, written in the order in which they were sent, whatever the order of making."""

    def __init__(self, shown: list[Shown], sink: Mp4Sink | None) -> None:
        self._order = deque(sorted(shown, key=lambda s: s.seq))
        self._ready: dict[int, tuple[orders.Made, npt.NDArray[np.uint8]]] = {}
        self._sink, self._written = sink, 0
        self.frames = 0

    def add(self, made: orders.Made, frames: npt.NDArray[np.uint8]) -> None:
        """A chunk that was sent at some time; written as soon as those before it are there."""
        self._ready[made.ticket] = made, frames
        while self._order and (found := self._ready.pop(self._order[0].ticket, None)) is not None:
            self._order.popleft()
            self.frames += len(found[1])
            if self._sink is not None:
                self._sink.write(FilmChunk(found[0].shot, self._written, MAX_CHUNKS, found[0].caption, found[1]))
            self._written += 1

    def close(self) -> list[Path]:
        """The file, if there is one."""
        return self._sink.close() if self._sink is not None else []


class _Replay:
    def __init__(self, studio: Studio, facts: orders.Facts, entries: list[Entry], out: Path | None) -> None:
        self.studio, self.entries = studio, entries
        self.outcomes = {e.ticket: e for e in entries if isinstance(e, (orders.Made, orders.NotMade))}
        shown = [e for e in entries if isinstance(e, Shown)]
        self.session_of = {e.ticket: e.session for e in shown}
        self.films: dict[int, Film] = {}
        self.tracks: dict[str, _Track] = {}
        for number, session in enumerate(dict.fromkeys(e.session for e in shown), 1):
            sink = None
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                sink = Mp4Sink(out / f"session-{number}.mp4")
                sink.open(FilmInfo(facts.width, facts.height, facts.fps, facts.name, 0, ""))
            self.tracks[session] = _Track([e for e in shown if e.session == session], sink)
        self.result = Replayed()

    def run(self) -> Replayed:
        for entry in self.entries:
            match entry:
                case orders.OpenFilm():
                    self.films[entry.film] = self.studio.open(entry.seed, entry.global_caption, entry.saved)
                case orders.BranchFilm():
                    if entry.of in self.films:
                        self.films[entry.film] = self.films[entry.of].branch()
                case orders.CloseFilm():
                    if film := self.films.pop(entry.film, None):
                        film.close()
                case orders.Make():
                    self._make(entry)
        for session, track in self.tracks.items():
            self.result.films += track.close()
            self.result.frames[session] = track.frames
        return self.result

    def _make(self, make: orders.Make) -> None:
        """Chunks that were refused or given up changed nothing, and are left out."""
        made, film = self.outcomes.get(make.ticket), self.films.get(make.film)
        if film is None or not isinstance(made, orders.Made):
            return
        if make.shot is not None:
            film.begin(make.shot)
        elif make.steer:
            film.steer(make.steer)
        piece = film.make(lambda: False)
        self.result.chunks += 1
        if piece is None or digest_of(piece.frames) != made.digest:
            self.result.differing.append((make.film, made.shot, made.chunk))
        if piece is not None and make.ticket in self.session_of:
            self.tracks[self.session_of[make.ticket]].add(made, piece.frames)
