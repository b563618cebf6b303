"""The published vectors mean the same to two implementations of MessagePack, and the published files are up to date."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgpack
import msgspec
import pytest

from shotstream.bridge.protocol import schema, vectors
from shotstream.bridge.protocol.codes import CODES
from shotstream.bridge.protocol.envelope import BadMessage, pack, unpack_client, unpack_server
from shotstream.bridge.protocol.limits import MAGIC, Limits
from shotstream.bridge.protocol.messages import FromClient, FromServer

MESSAGES = vectors.vectors()
LIMITS = Limits()


def spec(name: str) -> Any:
    return json.loads((schema.SPEC / name).read_text(encoding="utf-8"))


def read(side: str, header: bytes) -> FromClient | FromServer:
    if side == "client":
        return unpack_client([MAGIC, header], LIMITS.header_bytes, LIMITS.part_bytes)
    return unpack_server([MAGIC, header])


def refs(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(refs(value) for value in node.values()))
    return set().union(*(refs(value) for value in node)) if isinstance(node, list) else set()


def follow(document: Any, ref: str) -> Any:
    for step in ref.removeprefix("#/").split("/"):
        document = document[step]
    return document


@pytest.mark.parametrize("name", schema.spec_files())
def test_the_published_files_are_up_to_date(name: str) -> None:
    assert (schema.SPEC / name).read_text(encoding="utf-8") == schema.spec_files()[name], (
        "run python -m shotstream.bridge.protocol.schema"
    )


def test_every_message_has_a_minimal_and_a_full_vector() -> None:
    for side in (FromClient, FromServer):
        for kind in get_args(side):
            made = [message for message in MESSAGES.values() if type(message) is kind]
            assert len(made) >= 2, kind
            full = max(made, key=lambda message: len(msgspec.to_builtins(message)))
            assert set(msgspec.to_builtins(full)) == {"t", *kind.__struct_encode_fields__}, kind


@pytest.mark.parametrize("vector", spec("vectors.json")["vectors"], ids=lambda vector: vector["name"])
def test_both_decoders_read_a_vector_alike_and_write_the_same_bytes(vector: dict[str, Any]) -> None:
    header, message = bytes.fromhex(vector["header"]), MESSAGES[vector["name"]]
    plain = msgpack.unpackb(header, raw=False, strict_map_key=True)
    assert read(vector["from"], header) == message
    assert plain == json.loads(json.dumps(msgspec.to_builtins(message))) == vector["json"]
    assert vectors.shortest(message) == msgpack.packb(plain) == header
    sent = bytes.fromhex(vector.get("also", vector["header"]))
    assert pack(message) == sent
    assert msgpack.unpackb(sent, raw=False, strict_map_key=True) == plain


@pytest.mark.parametrize("vector", spec("vectors.json")["lenient"], ids=lambda vector: vector["name"])
def test_what_a_newer_or_looser_client_sends_is_understood(vector: dict[str, Any]) -> None:
    message = read(vector["from"], bytes.fromhex(vector["header"]))
    assert msgspec.to_builtins(message) == vector["json"]
    assert vectors.shortest(message).hex() == vector["canonical"]


@pytest.mark.parametrize("case", spec("hostile.json")["hostile"], ids=lambda case: case["name"])
def test_a_hostile_message_gets_its_code(case: dict[str, Any]) -> None:
    assert case["code"] in CODES
    with pytest.raises(BadMessage) as caught:
        unpack_client([bytes.fromhex(part) for part in case["parts"]], LIMITS.header_bytes, LIMITS.part_bytes)
    assert caught.value.code == case["code"]


def test_headers_and_parts_above_the_limits_are_a_bad_envelope() -> None:
    for parts in ([MAGIC, bytes(LIMITS.header_bytes + 1)], [MAGIC, b"\x80", bytes(LIMITS.part_bytes + 1)]):
        with pytest.raises(BadMessage) as caught:
            unpack_client(parts, LIMITS.header_bytes, LIMITS.part_bytes)
        assert caught.value.code == "bad_envelope"


def test_the_json_schema_has_every_message_with_every_field() -> None:
    document = spec("schema.json")
    for ref in refs(document):
        assert follow(document, ref), ref
    for kind in (*get_args(FromClient), *get_args(FromServer)):
        properties = document["$defs"][kind.__name__]["properties"]
        assert set(properties) == {"t", *kind.__struct_encode_fields__}
        assert properties["t"] == {"enum": [kind.__struct_config__.tag]}


def test_the_asyncapi_document_has_one_channel_and_every_message_in_its_direction() -> None:
    document = spec("asyncapi.json")
    assert document["asyncapi"] == "3.0.0"
    assert list(document["channels"]) == ["connection"]
    for ref in refs(document):
        assert follow(document, ref), ref
    for operation, action, side in (("fromClient", "receive", FromClient), ("fromServer", "send", FromServer)):
        found = document["operations"][operation]
        assert found["action"] == action
        names = [follow(document, follow(document, one["$ref"])["$ref"])["name"] for one in found["messages"]]
        assert names == [kind.__struct_config__.tag for kind in get_args(side)]
    assert "prefixItems" not in json.dumps(document), "tuples are written as AsyncAPI's dialect has them"
