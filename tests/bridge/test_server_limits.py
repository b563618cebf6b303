"""Many clients, greedy clients, strange clients: the server's core in virtual time."""

from __future__ import annotations

import pytest
from virtual import VirtualClient, VirtualServer

from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.limits import PROTO, Limits


def test_sessions_share_the_model_by_who_runs_dry_first() -> None:
    server = VirtualServer(chunk_s=0.25)
    clients = [VirtualClient(server, bytes([97 + i])) for i in range(2)]
    for client in clients:
        client.ask(m.Prompt, text="a fox", chunks=100)
    shown = [0, 0]
    for tick in range(16 * 20):
        server.run(1 / 16)
        for i, client in enumerate(clients):
            shown[i] = min(shown[i] + 1, len(client.frames))
            if tick % 6 == i:
                client.grant(shown[i])
    assert min(shown) > 0.95 * 16 * 19
    assert abs(shown[0] - shown[1]) < 12


def test_a_session_that_stalls_costs_nothing() -> None:
    server = VirtualServer(chunk_s=0.5)
    stalled, lively = VirtualClient(server, b"a"), VirtualClient(server, b"b")
    for client in (stalled, lively):
        client.ask(m.Prompt, text="a fox", chunks=100)
    lively.watch(3)
    begun = len(lively.frames)
    lively.watch(10)
    assert len(stalled.frames) == 21
    assert len(lively.frames) - begun >= 0.95 * 160


def test_limits_hold_before_anything_is_made() -> None:
    server = VirtualServer(limits=Limits(sessions=2, requests_per_s=1000))
    clients = [VirtualClient(server, bytes([97 + i])) for i in range(2)]
    server.say(b"z", m.Hello(proto=PROTO))
    server.say(b"z", m.OpenSession(id=1))
    error = server.told[b"z"][-1]
    assert (error.code, error.retryable, error.re) == ("busy", True, 1)
    assert len(server.model.opened) == len(clients)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"model": "other"}, "not_supported"),
        ({"width": 640, "height": 480}, "not_supported"),
        ({"fps": 24}, "not_supported"),
        ({"director": "nobody"}, "not_supported"),
        ({"policy": "latest"}, "not_supported"),
    ],
)
def test_what_a_server_cannot_do_is_said_at_the_door(fields: dict[str, object], code: str) -> None:
    server = VirtualServer()
    server.say(b"z", m.Hello(proto=PROTO))
    server.say(b"z", m.OpenSession(id=1, **fields))  # type: ignore[arg-type]
    assert server.told[b"z"][-1].code == code


def test_nobody_is_served_before_hello_and_versions_must_fit() -> None:
    server = VirtualServer()
    server.say(b"z", m.OpenSession(id=1))
    assert server.told[b"z"][-1].code == "hello_required"
    server.say(b"z", m.Hello(proto=(9, 0)))
    assert (server.told[b"z"][-1].code, server.told[b"z"][-1].fatal) == ("version", True)
    assert not server.hub.peers


def test_a_flood_is_slowed_and_junk_is_shown_the_door() -> None:
    server = VirtualServer(limits=Limits(requests_per_s=30))
    client = VirtualClient(server)
    for _ in range(60):
        client.ask(m.Pause)
    assert [e.code for e in client.all(m.Error)].count("rate_limited") >= 30
    for _ in range(30):
        server.hub.receive(b"a", [b"SST/1", b"\xc1"], server.now)
    server.settle()
    assert isinstance(client.told[-1], m.ServerGoodbye)
    server.say(b"a", m.Hello(proto=PROTO))
    assert isinstance(client.told[-1], m.ServerGoodbye)  # not heard for a while


def test_clocks_that_jump_do_no_harm() -> None:
    client = VirtualClient(VirtualServer())
    client.ask(m.Prompt, text="a fox", chunks=20)
    client.watch(1)
    client.server.now -= 0.7
    client.watch(2)
    assert [f.seq for f in client.frames] == list(range(len(client.frames)))
    assert len(client.frames) > 20
