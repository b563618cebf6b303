"""Test vectors that every implementation of the protocol runs: messages as bytes, and bytes that are no message.

Each message comes with its required fields only and with every field at an unusual value; both are made from the types,
so that a new message or field cannot be forgotten. What deserves a closer look is written out below them.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec
from msgspec import inspect

from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.envelope import pack
from shotstream.bridge.protocol.limits import BIGGEST, MAGIC

Message = m.ClientMessage | m.ServerMessage

UNUSUAL = 'Zoë 犬🐕 "\\\n'
PARAMS: dict[str, bool | int | float | str | None] = {
    "": None, "größe": 0.1, "π": -BIGGEST, "big": BIGGEST, "-1": -1, "-32": -32, "-33": -33, "-128": -128, "-129": -129,
    "-32769": -32769, "127": 127, "128": 128, "256": 256, "65536": 65536, "2^32": 2**32, "whole": 2.0,
    "minus zero": -0.0, "tiny": 5e-324, "far": -1.5e300, "yes": True, "no": False, "empty": "", "nul": "a\0b",
    "wide": "𝔊" * 64,
}  # fmt: skip


def _plain(kind: inspect.Type) -> Any:
    """The dullest value of a type."""
    match kind:
        case inspect.BoolType():
            return False
        case inspect.IntType():
            return kind.ge or 0
        case inspect.FloatType():
            return 0.0
        case inspect.StrType():
            return "x"
        case inspect.LiteralType():
            return kind.values[0]
        case inspect.TupleType():
            return tuple(_plain(item) for item in kind.item_types)
        case inspect.ListType():
            return [_plain(kind.item_type)] * (kind.min_length or 0)
        case inspect.StructType():
            return _make(kind.cls, False)
        case _:
            raise TypeError(f"no plain value for {kind}")


def _unusual(kind: inspect.Type) -> Any:
    """A value of a type that finds careless decoders: not ASCII, at its limits, not a whole number."""
    match kind:
        case inspect.BoolType():
            return True
        case inspect.IntType():
            return kind.le or BIGGEST
        case inspect.FloatType():
            return 1234.0625
        case inspect.StrType():
            return UNUSUAL
        case inspect.LiteralType():
            return kind.values[-1]
        case inspect.TupleType():
            return tuple(_unusual(item) for item in kind.item_types)
        case inspect.ListType():
            return [_unusual(kind.item_type), _plain(kind.item_type)]
        case inspect.DictType():
            return PARAMS
        case inspect.UnionType():
            return next(_unusual(one) for one in kind.types if not isinstance(one, inspect.NoneType))
        case inspect.StructType():
            return _make(kind.cls, True)
        case _:
            raise TypeError(f"no unusual value for {kind}")


def _make(cls: type[Any], full: bool) -> Any:
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    if full:
        values = {field.name: _unusual(field.type) for field in info.fields}
        for field in info.fields:  # a flag whose default is the unusual value would be left out
            if values[field.name] == field.default:
                values[field.name] = _plain(field.type)
    else:
        values = {field.name: _plain(field.type) for field in info.fields if field.required}
    return cls(**values)


def _written_out() -> dict[str, Message]:
    welcome = m.Welcome(
        proto=(1, 0), server="", enc=[], models=[], limits=m.Limits(), features=[], directors=[], clock_us=0
    )
    return {
        "welcome/empty_lists": welcome,
        "event/longest_name": m.Event(id=1, session="s" * 128, kind="ä" * 128, tags=[""] * 16),
        "event/strings_at_size_steps": m.Event(
            id=1, session="", kind="k" * 31, actor="a" * 32, params={"255": "p" * 255, "256": "p" * 256}
        ),
        "prompt/longest_text": m.Prompt(id=BIGGEST, session="s", text="é" * 4096, at="now"),
        "choices/empty_texts": m.Choices(id=1, session="s", options=[m.Option(key=""), m.Option(key="b")]),
        "ack/beginning_of_the_film": m.Ack(re=1, at=m.Place()),
        "open_session/seed_zero": m.OpenSession(id=1, seed=0),
        "frame/65536": m.Frame(
            session="s", shot=255, chunk=256, index=65535, seq=65536, epoch=2**32 - 1, pts=2**32, w=832, h=480
        ),
    }


def vectors() -> dict[str, Message]:
    """Name -> message; the name begins with the message's type."""
    made: dict[str, Message] = {}
    for side, union in (("client", m.FromClient), ("server", m.FromServer)):
        for cls in get_args(union):
            for what in ("minimal", "full"):
                made[f"{cls.__struct_config__.tag}/{side}/{what}"] = _make(cls, what == "full")
    return made | _written_out()


def lenient() -> dict[str, tuple[dict[str, Any], Message]]:
    """Maps that differ from what we would send and still are a message: name -> (map on the wire, message)."""
    pause = m.Pause(id=1, session="s")
    unknown = {"new": {"a": [1, None, {"b": b"\x00"}]}, "t": "pause", "id": 1, "session": "s", "": 0}
    return {
        "unknown_fields": (unknown, pause),
        "type_last": ({"session": "s", "id": 1, "t": "pause"}, pause),
        "defaults_spelled_out": (
            {"t": "prompt", "id": 1, "session": "s", "text": "x", "at": "auto", "chunks": 0},
            m.Prompt(id=1, session="s", text="x"),
        ),
        "none_where_optional": ({"t": "open_session", "id": 1, "seed": None}, m.OpenSession(id=1)),
        "whole_number_for_a_float": (
            {"t": "event", "id": 1, "session": "s", "kind": "k", "ts": 3},
            m.Event(id=1, session="s", kind="k", ts=3.0),
        ),
    }


def document() -> dict[str, Any]:
    """What ``spec/vectors.json`` holds."""
    return {
        "about": "header: the MessagePack map in hex, numbers and lengths in their shortest form; json: what it says. "
        "Encodes back to the same bytes. also: the same map with a longer length in front, as some encoders write it. "
        "lenient: other maps that are understood as the message whose shortest form is `canonical`.",
        "vectors": [_entry(name, message) for name, message in vectors().items()],
        "lenient": [
            {
                "name": name,
                "from": _side(message),
                "json": msgspec.to_builtins(message),
                "header": msgspec.msgpack.encode(wire).hex(),
                "canonical": shortest(message).hex(),
            }
            for name, (wire, message) in lenient().items()
        ],
    }


def shortest(message: Message) -> bytes:
    """The header with the shortest map length. `pack` takes a longer one where a struct has more than 15 fields."""
    return msgspec.msgpack.encode(msgspec.to_builtins(message))


def _entry(name: str, message: Message) -> dict[str, Any]:
    header, packed = shortest(message), pack(message)
    entry = {"name": name, "from": _side(message), "json": msgspec.to_builtins(message), "header": header.hex()}
    return entry if packed == header else {**entry, "also": packed.hex()}


def _side(message: Message) -> str:
    return "client" if isinstance(message, m.ClientMessage) else "server"


# --- bytes that are no message --------------------------------------------------------------------------------------
def hostile() -> dict[str, tuple[list[bytes], str]]:
    """Name -> (parts as a server gets them, the error's code)."""
    envelopes = {
        "no_parts": [],
        "magic_only": [MAGIC],
        "http": [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"],
        "other_major_version": [b"SST/2", b"\x81\xa1t\xa5hello"],
        "longer_magic": [MAGIC + b"\0", b"\x80"],
        "empty_delimiter": [b"", MAGIC, b"\x80"],
        "nine_parts": [MAGIC, b"\x81\xa1t\xa5pause", *[b""] * 7],
    }
    headers = {name: ([MAGIC, header], "bad_message") for name, header in _bad_bytes().items()}
    maps = {name: ([MAGIC, msgspec.msgpack.encode(fields)], "bad_message") for name, fields in _bad_maps().items()}
    unknown = {
        "unknown_type": {"t": "levitate", "id": 7, "session": "s"},
        "empty_type": {"t": "", "id": 7},
        "type_in_other_case": {"t": "Pause", "id": 7, "session": "s"},
        "message_of_the_other_side": {"t": "welcome"},
        "unknown_type_of_300_bytes": {"t": "x" * 300, "id": 7},
    }
    return {
        **{name: (parts, "bad_envelope") for name, parts in envelopes.items()},
        **headers,
        **maps,
        **{name: ([MAGIC, msgspec.msgpack.encode(fields)], "unknown_type") for name, fields in unknown.items()},
    }


def _bad_bytes() -> dict[str, bytes]:
    event = b"\x85\xa1t\xa5event\xa2id\x01\xa7session\xa1s\xa4kind\xa1k"
    return {
        "empty_header": b"",
        "reserved_byte": b"\xc1",
        "no_map": b"\x90",
        "nil": b"\xc0",
        "map_cut_short": b"\x83\xa1t\xa5pause\xa2id",
        "trailing_byte": pack(m.Pause(id=1, session="s")) + b"\0",
        "two_messages": pack(m.Pause(id=1, session="s")) * 2,
        "map_of_2^32-1": b"\xdf\xff\xff\xff\xff\xa1t",
        "array_of_2^32-1": b"\xdd\xff\xff\xff\xff",
        "string_of_2^32-1": b"\x81\xa1t\xdb\xff\xff\xff\xff",
        "params_of_2^32-1": event + b"\xa6params\xdf\xff\xff\xff\xff",
        "tags_of_2^31": event + b"\xa4tags\xdd\x80\x00\x00\x00",
        "maps_in_keys": b"\x81" * 2000,
        "arrays_in_an_unknown_field": b"\x81\xa1x" + b"\x91" * 20000 + b"\xc0",
        "bad_utf8_text": b"\x83\xa1t\xa5pause\xa2id\x01\xa7session\xa2\xff\xfe",
        "bad_utf8_key": event + b"\xa6params\x81\xa2\xc3\x28\x01",
        "overlong_utf8": b"\x83\xa1t\xa5pause\xa2id\x01\xa7session\xa2\xc0\x80",
        "surrogate_utf8": b"\x83\xa1t\xa5pause\xa2id\x01\xa7session\xa3\xed\xa0\x80",
        "number_as_key": b"\x84\x01\x02\xa1t\xa5pause\xa2id\x01\xa7session\xa1s",
        "extension_type": b"\x83\xa1t\xa5pause\xa2id\xd4\x05\x00\xa7session\xa1s",
        "text_as_bytes": b"\x83\xa1t\xa5pause\xa2id\x01\xa7session\xc4\x01s",
    }


def _bad_maps() -> dict[str, dict[str, Any]]:
    request = {"t": "pause", "session": "s"}
    event = {"t": "event", "id": 1, "session": "s", "kind": "k"}
    return {
        "no_type": {"id": 1},
        "type_is_a_number": {"t": 5},
        "id_missing": request,
        "id_zero": {**request, "id": 0},
        "id_negative": {**request, "id": -1},
        "id_above_2^53": {**request, "id": BIGGEST + 1},
        "id_of_64_bits": {**request, "id": 2**64 - 1},
        "id_as_text": {**request, "id": "1"},
        "id_as_float": {**request, "id": 1.0},
        "id_as_bool": {**request, "id": True},
        "session_missing": {"t": "pause", "id": 1},
        "session_none": {"t": "pause", "id": 1, "session": None},
        "session_too_long": {"t": "pause", "id": 1, "session": "s" * 129},
        "kind_too_long": {**event, "kind": "k" * 129},
        "urgency_unknown": {**event, "at": "later"},
        "param_above_2^53": {**event, "params": {"a": BIGGEST + 1}},
        "param_is_a_list": {**event, "params": {"a": [1]}},
        "param_is_a_map": {**event, "params": {"a": {}}},
        "param_is_bytes": {**event, "params": {"a": b"x"}},
        "param_key_too_long": {**event, "params": {"k" * 129: 1}},
        "params_too_many": {**event, "params": {str(i): i for i in range(33)}},
        "params_are_a_list": {**event, "params": []},
        "tags_too_many": {**event, "tags": ["t"] * 17},
        "tag_is_a_number": {**event, "tags": [1]},
        "text_too_long": {"t": "prompt", "id": 1, "session": "s", "text": "x" * 4097},
        "proto_too_short": {"t": "hello", "proto": [1]},
        "proto_too_long": {"t": "hello", "proto": [1, 0, 0]},
        "role_unknown": {"t": "hello", "proto": [1, 0], "role": "god"},
        "one_choice": {"t": "choices", "id": 1, "session": "s", "options": [{"key": "a"}]},
        "five_choices": {"t": "choices", "id": 1, "session": "s", "options": [{"key": str(i)} for i in range(5)]},
        "option_without_key": {"t": "choices", "id": 1, "session": "s", "options": [{}, {"key": "b"}]},
        "quality_zero": {"t": "open_session", "id": 1, "quality": 0},
        "quality_101": {"t": "open_session", "id": 1, "quality": 101},
        "encoding_unknown": {"t": "open_session", "id": 1, "enc": "h264"},
        "ttl_negative": {"t": "open_session", "id": 1, "resume_ttl_s": -1.0},
        "ttl_not_a_number": {"t": "open_session", "id": 1, "resume_ttl_s": float("nan")},
        "nine_in_the_cast": {"t": "open_session", "id": 1, "cast": [{"key": "a"}] * 9},
        "credit_negative": {"t": "credit", "session": "s", "upto": -1},
        "ping_without_time": {"t": "ping"},
    }


def hostile_document() -> dict[str, Any]:
    """What ``spec/hostile.json`` holds."""
    return {
        "about": "Parts that a server may get, each in hex, and the code of the error that it answers. It goes on.",
        "hostile": [
            {"name": name, "parts": [part.hex() for part in parts], "code": code}
            for name, (parts, code) in hostile().items()
        ],
    }
