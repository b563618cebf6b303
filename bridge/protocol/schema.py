"""The protocol's published description, made from the structs: JSON Schema, an AsyncAPI 3 document, and test vectors.

``python -m shotstream.bridge.protocol.schema`` writes the files in ``spec/``; a test fails while they are out of date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec

from shotstream.bridge.protocol import vectors
from shotstream.bridge.protocol.limits import MAGIC, PROTO
from shotstream.bridge.protocol.messages import Frame, FromClient, FromServer

SPEC = Path(__file__).parent / "spec"
VERSION = f"{PROTO[0]}.{PROTO[1]}"
TRANSPORT = (
    f"ZeroMQ: the server is a ROUTER, every client a DEALER. A message has the parts `{MAGIC.decode()}`, a header (one "
    "MessagePack map with string keys, `t` names the message) and, where the message says so, a payload."
)


def json_schema() -> dict[str, Any]:
    """All messages of both directions and what they are made of."""
    (client, server), parts = msgspec.json.schema_components([FromClient, FromServer], ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"ShotStream protocol {VERSION}",
        "description": TRANSPORT,
        "anyOf": [{"$ref": "#/$defs/FromClient"}, {"$ref": "#/$defs/FromServer"}],
        "$defs": _tidy({"FromClient": client, "FromServer": server, **parts}),
    }


def asyncapi() -> dict[str, Any]:
    """The same as an AsyncAPI 3 document, seen from the server: it receives what clients send."""
    client, server = ([kind.__name__ for kind in get_args(side)] for side in (FromClient, FromServer))
    template = "#/components/schemas/{name}"
    schemas = _draft_07(_tidy(msgspec.json.schema_components([FromClient, FromServer], ref_template=template)[1]))
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "ShotStream", "version": VERSION, "description": TRANSPORT},
        "defaultContentType": "application/msgpack",
        "channels": {
            "connection": {
                "title": "One connection",
                "description": "Ordered in both directions; several sessions may share it.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in client + server},
            }
        },
        "operations": {
            "fromClient": _operation("receive", client, "What clients send. `hello` comes first."),
            "fromServer": _operation("send", server, "What the server sends. `welcome` answers `hello`."),
        },
        "components": {
            "messages": {kind.__name__: _message(kind, schemas) for kind in get_args(FromClient | FromServer)},
            "schemas": schemas,
        },
    }


def _operation(action: str, names: list[str], summary: str) -> dict[str, Any]:
    refs = [{"$ref": f"#/channels/connection/messages/{name}"} for name in names]
    return {"action": action, "summary": summary, "channel": {"$ref": "#/channels/connection"}, "messages": refs}


def _message(kind: type[msgspec.Struct], schemas: dict[str, Any]) -> dict[str, Any]:
    parts = [MAGIC.decode(), "header"] + (["payload, unless enc is none"] if kind is Frame else [])
    message = {"name": kind.__struct_config__.tag, "title": kind.__name__, "x-parts": parts}
    if summary := schemas[kind.__name__].get("description"):
        message["summary"] = summary
    return {**message, "payload": {"$ref": f"#/components/schemas/{kind.__name__}"}}


def _tidy(node: Any) -> Any:
    """Descriptions on one line, whatever the indentation of the docstring."""
    if isinstance(node, dict):
        return {
            key: " ".join(value.split()) if key == "description" and isinstance(value, str) else _tidy(value)
            for key, value in node.items()
        }
    return [_tidy(value) for value in node] if isinstance(node, list) else node


def _draft_07(node: Any) -> Any:
    """AsyncAPI's own dialect is draft 07, where a tuple is written as ``items`` and ``additionalItems``."""
    if isinstance(node, dict):
        node = {key: _draft_07(value) for key, value in node.items()}
        if "prefixItems" in node:
            node["additionalItems"] = node.pop("items", False)
            node["items"] = node.pop("prefixItems")
        return node
    return [_draft_07(value) for value in node] if isinstance(node, list) else node


def spec_files() -> dict[str, str]:
    """File name -> text of everything in ``spec/``."""
    documents = {
        "schema.json": json_schema(),
        "asyncapi.json": asyncapi(),
        "vectors.json": vectors.document(),
        "hostile.json": vectors.hostile_document(),
    }
    return {name: json.dumps(value, indent=1, ensure_ascii=False) + "\n" for name, value in documents.items()}


def main() -> None:
    SPEC.mkdir(exist_ok=True)
    for name, text in spec_files().items():
        (SPEC / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{SPEC / name}\n")


if __name__ == "__main__":
    main()
