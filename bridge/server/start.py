"""Puts a server together from its options."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import zmq

from shotstream.bridge.director import Director, load_map
from shotstream.bridge.model.options import WorkerOptions
from shotstream.bridge.protocol.limits import Limits
from shotstream.bridge.record import Recorder
from shotstream.bridge.server.directed import DirectedWords
from shotstream.bridge.server.gateway import Gateway
from shotstream.bridge.server.hub import Hub
from shotstream.bridge.server.keys import secure_with
from shotstream.bridge.server.words import Words
from shotstream.runtime.errors import UserError

PART_BYTES = 64 * 1024
"""No message of a client has a payload yet, so nothing larger than a header need ever be held."""
LOOPBACK = ("tcp://127.", "tcp://localhost:", "tcp://[::1]:", "ipc://", "inproc://")


def check_bind(bind: str, *, secure: bool) -> None:
    """UserError for addresses that cannot be, or that others could reach without a key."""
    if not bind.startswith(("tcp://", "ipc://")):
        raise UserError(f"--bind {bind!r} is no address; write tcp://HOST:PORT or ipc://FILE")
    port = bind.rpartition(":")[2]
    if bind.startswith("tcp://") and port != "*" and not (port.isdecimal() and int(port) < 2**16):
        raise UserError(f"--bind {bind!r} has no port from 0 to 65535 at its end; 0 picks a free one")
    if not secure and not bind.startswith(LOOPBACK):
        raise UserError(
            f"{bind} can be reached from other machines, and without keys anybody there could use it; "
            "bind 127.0.0.1, or give --curve-keys DIR"
        )


def check_model(model: str) -> None:
    """UserError for a model that is not there, before a process is started for it."""
    from shotstream.runtime.runtime import preset_names

    known = [*preset_names(), "mock"]
    if model not in known:
        raise UserError(f"there is no model {model!r}; there is {', '.join(known)}")


def directors(event_map: str = "") -> dict[str, Words]:
    """The directors that sessions can ask for: those of all plugins, and ``event_map`` (a yaml file) as own.
    Raises UserError for what is wrong with the file."""
    from shotstream.runtime.runtime import assemble_registry

    registry = assemble_registry()
    names = registry.names("director")
    found: dict[str, Words] = {name: DirectedWords(name, registry.factory("director", name)({})) for name in names}
    if event_map:
        found["own"] = DirectedWords("own", Director(load_map(Path(event_map))))
    return found


def usual_director(model: str, event_map: str = "") -> str:
    """The director of sessions that name none: the user's, else the one that speaks the model's language."""
    if event_map:
        return "own"
    return "tiny" if model == "tiny" else "cinematic"


def make_gateway(
    options: WorkerOptions, bind: str, *, sessions: int = 4, token: str = "", words: Mapping[str, Words] | None = None,
    default_words: str = "", limits: Limits | None = None, curve_keys: Path | None = None, record: Path | None = None,
) -> Gateway:  # fmt: skip
    """A gateway that listens already; `Gateway.run` starts the model. ``default_words``: the director of sessions that
    name none."""
    limits = limits or Limits(sessions=sessions, part_bytes=PART_BYTES)
    if record is not None:
        options = replace(options, digests=True)
    hub = Hub(
        limits, words or {}, default_words, lambda: secrets.token_urlsafe(12), lambda: secrets.randbelow(2**31),
        token=token, model=options.model,
    )  # fmt: skip
    recorder = Recorder(record, options, metadata.version("shotstream")) if record is not None else None
    where = bind[:-1] + "*" if bind.endswith(":0") else bind
    secure = secure_with(curve_keys) if curve_keys is not None else None
    try:
        return Gateway(hub, options, where, secure=secure, recorder=recorder)
    except zmq.ZMQError as error:
        raise UserError(f"cannot listen on {bind}: {error.strerror}; choose another address with --bind") from None
