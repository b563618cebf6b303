"""Recordings: every order that the model was given, with the hash of every chunk that came of it.

A film follows from its seed and its orders alone, so that is all there is to keep; `shotstream.bridge.replay` makes it
again. The file is a magic line and length-prefixed MessagePack; what is on disk is readable however the server ended.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

import msgspec

from shotstream.bridge.model import orders
from shotstream.bridge.model.options import WorkerOptions
from shotstream.bridge.protocol import messages as m
from shotstream.bridge.server.hub import Outgoing
from shotstream.runtime.errors import UserError

MAGIC = b"SHOTSTREAM RECORDING 1\n"
_LENGTH = struct.Struct("<I")
_MOST = 1 << 28
"""Longest entry: a film's saved state is a few MB."""


class Start(msgspec.Struct, frozen=True, tag=True):
    """First entry: what made the film."""

    options: WorkerOptions
    version: str


class Shown(msgspec.Struct, frozen=True, tag=True):
    """Chunk ``ticket`` was sent to a client as session ``session``, from frame ``seq`` on."""

    session: str
    ticket: int
    seq: int


Entry: TypeAlias = (
    Start | Shown | orders.OpenFilm | orders.BranchFilm | orders.CloseFilm | orders.Make | orders.Made | orders.NotMade
)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode
_KEPT = (orders.OpenFilm, orders.BranchFilm, orders.CloseFilm, orders.Make)


class Recorder:
    """Writes a recording while the server works. Raises UserError if the file cannot be created."""

    def __init__(self, path: Path, options: WorkerOptions, version: str) -> None:
        try:
            self._file: BinaryIO = path.open("xb")
        except FileExistsError:
            raise UserError(f"{path} exists already; give --record another name") from None
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        self._file.write(MAGIC)
        self._in_slot: dict[int, int] = {}
        """Ticket of the chunk that lies in each slot."""
        self._write(Start(options, version))

    def order(self, order: orders.Order) -> None:
        """An order was sent to the model."""
        if isinstance(order, _KEPT):
            self._write(order)

    def result(self, result: orders.Result) -> None:
        """The model has answered."""
        if isinstance(result, orders.Made):
            self._in_slot[result.slot] = result.ticket
        if isinstance(result, (orders.Made, orders.NotMade)):
            self._write(result)
            self._file.flush()

    def sent(self, out: Outgoing) -> None:
        """A message went to a client; only the first frame of a chunk matters."""
        message, payload = out.message, out.payload
        if isinstance(message, m.Frame) and message.index == 0 and not message.replay and payload is not None:
            self._write(Shown(message.session, self._in_slot[payload.slot], message.seq))

    def close(self) -> None:
        """Nothing more will come."""
        self._file.close()

    def _write(self, entry: Entry) -> None:
        data = _encode(entry)
        self._file.write(_LENGTH.pack(len(data)) + data)


def read_recording(path: Path) -> Iterator[Entry]:
    """All whole entries. Raises UserError for files that are no recordings; one cut short simply ends."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    with file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{path} is no recording of this version; shotstream serve --record FILE makes one")
        while len(prefix := file.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(prefix)
            data = file.read(min(length, _MOST))
            if len(data) < length:
                return
            try:
                yield _decode(data)
            except msgspec.DecodeError as error:
                raise UserError(f"{path} is damaged: {error}") from None
