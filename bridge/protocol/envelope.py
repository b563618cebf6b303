"""From messages to parts and back: ``[MAGIC, header, payload*]``, the header one MessagePack map.

Decoding never raises anything but :class:`BadMessage`, whatever the bytes are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, get_args

import msgspec

from shotstream.bridge.protocol.limits import MAGIC
from shotstream.bridge.protocol.messages import ClientMessage, FromClient, FromServer, Name, RequestId, ServerMessage

Part: TypeAlias = bytes | bytearray | memoryview

_encoder = msgspec.msgpack.Encoder()
_from_client = msgspec.msgpack.Decoder(FromClient)
_from_server = msgspec.msgpack.Decoder(FromServer)
_CLIENT_TYPES = frozenset(kind.__struct_config__.tag for kind in get_args(FromClient))
_SERVER_TYPES = frozenset(kind.__struct_config__.tag for kind in get_args(FromServer))


class _Peek(msgspec.Struct):
    """The parts of a header that an error names, each still as bytes: one that is wrong does not hide the others."""

    t: msgspec.Raw = msgspec.Raw(b"\xc0")  # nil: no type at all, which is another fault than an empty one
    id: msgspec.Raw = msgspec.Raw(b"\x00")
    session: msgspec.Raw = msgspec.Raw(b"\xa0")


_peek = msgspec.msgpack.Decoder(_Peek)


class BadMessage(Exception):
    """What came is no message. ``code`` is one of the protocol's; ``re`` and ``session`` are 0 and "" where the header
    did not get so far."""

    def __init__(self, code: str, message: str, re: int = 0, session: str = "") -> None:
        super().__init__(message)
        self.code, self.re, self.session = code, re, session


def pack(message: ClientMessage | ServerMessage) -> bytes:
    """The header of a message."""
    return _encoder.encode(message)


def unpack_client(parts: Sequence[Part], header_bytes: int, part_bytes: int, most_parts: int = 8) -> FromClient:
    """The message in ``parts`` (identity taken off), as a server reads it; sizes are checked before anything else."""
    header = _header(parts, header_bytes, part_bytes, most_parts)
    try:
        return _from_client.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _explain(header, error, _CLIENT_TYPES) from None


def unpack_server(parts: Sequence[Part]) -> FromServer:
    """The message in ``parts``, as a client reads it. Raises `BadMessage` with ``unknown_type`` for newer messages."""
    header = _header(parts, BIG, BIG, 64)
    try:
        return _from_server.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _explain(header, error, _SERVER_TYPES) from None


BIG = 2**40
"""Sizes that a client does not bound: it trusts the server it chose."""


def _header(parts: Sequence[Part], header_bytes: int, part_bytes: int, most_parts: int) -> Part:
    if len(parts) < 2 or bytes(parts[0][: len(MAGIC) + 1]) != MAGIC:
        raise BadMessage("bad_envelope", f"a message is {MAGIC.decode()}, a header, and a payload where it has one")
    if len(parts) > most_parts or len(parts[1]) > header_bytes or any(len(p) > part_bytes for p in parts[2:]):
        raise BadMessage("bad_envelope", "more or larger parts than welcome.limits allows")
    return parts[1]


def _explain(header: Part, error: Exception, types: frozenset[str]) -> BadMessage:
    """The same fault in the protocol's words: a type that is not among ``types`` is unknown, not a bad message."""
    try:
        seen = _peek.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return BadMessage("bad_message", f"the header cannot be read: {error}")
    kind, request, session = _read(seen.t, str, None), _read(seen.id, RequestId, 0), _read(seen.session, Name, "")
    if kind is not None and kind not in types:
        return BadMessage("unknown_type", f"there is no message of type {kind[:64]!r}", request, session)
    return BadMessage("bad_message", f"{kind or 'message'}: {error}", request, session)


def _read(field: msgspec.Raw, kind: Any, otherwise: Any) -> Any:
    try:
        return msgspec.msgpack.decode(field, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return otherwise
