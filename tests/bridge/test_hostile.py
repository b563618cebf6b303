"""Whatever a client sends, the server lives, stays small, and the film beside it goes on."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import msgpack
import msgspec
import pytest
import zmq
from serving import QUICK, Server, Watcher, serving
from virtual import VirtualClient, VirtualServer

from shotstream.bridge import Client
from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.envelope import Part, pack, unpack_server
from shotstream.bridge.protocol.limits import MAGIC, PROTO, Limits
from shotstream.bridge.protocol.schema import SPEC
from shotstream.bridge.server.start import directors

VALID = [
    bytes.fromhex(vector["header"])
    for vector in msgspec.json.decode((SPEC / "vectors.json").read_bytes())["vectors"]
    if vector["from"] == "client"
]
HOSTILE = [
    [bytes.fromhex(part) for part in case["parts"]]
    for case in msgspec.json.decode((SPEC / "hostile.json").read_bytes())["hostile"]
]
TYPES = [msgpack.unpackb(header)["t"] for header in VALID]


def flipped(rng: random.Random) -> list[bytes]:
    """A message with some bits wrong."""
    header = bytearray(rng.choice(VALID))
    for _ in range(rng.randint(1, 6)):
        header[rng.randrange(len(header))] ^= 1 << rng.randrange(8)
    return [MAGIC, bytes(header)]


def wrong_types(rng: random.Random) -> list[bytes]:
    """A message whose fields hold other kinds of things, or far too much of them."""
    values = (-1, 2**63, 1.5, None, True, "x", b"x", "x" * 5000, [], [[]], {}, {"a": 1}, [1] * 1000, float("nan"))
    message = msgpack.unpackb(rng.choice(VALID))
    for key in rng.sample(sorted(message), rng.randint(1, len(message))):
        message[key] = rng.choice((*TYPES, 7, None)) if key == "t" else rng.choice(values)
    return [MAGIC, msgpack.packb(message)]


def bombs(rng: random.Random) -> list[bytes]:
    """Depth, and lengths that promise more than there is."""
    huge = struct.pack(">I", rng.choice((2**31, 2**32 - 1)))
    body = rng.choice((b"\x91" * 60_000, b"\x81\xa1x" * 20_000, b"\xdf" + huge, b"\xdd" + huge, b"\xdb" + huge))
    return [MAGIC, rng.choice((b"", b"\x82\xa1t\xa5pause\xa2id")) + body]


def noise(rng: random.Random) -> list[bytes]:
    """Any bytes in any number of parts."""
    parts = [rng.randbytes(rng.choice((0, 1, 5, 60, 300))) for _ in range(rng.randint(0, 12))]
    return [MAGIC, *parts] if rng.random() < 0.5 else parts


def anything(rng: random.Random) -> list[bytes]:
    """One hostile or broken message, or a valid one out of place."""
    kinds = (flipped, flipped, wrong_types, noise, bombs)
    choice = rng.randrange(10)
    if choice == 0:
        return rng.choice(HOSTILE)
    if choice == 1:
        return [MAGIC, rng.choice(VALID)]
    return kinds[choice % len(kinds)](rng)


class Crowd:
    """Strangers and clients that send anything to a server in virtual time; a good client plays beside them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.server = VirtualServer(
            chunk_s=0.3, words=directors(), default_words="cinematic", limits=Limits(sessions=8, connections=16)
        )
        self.server.on_tell = lambda peer, message: unpack_server([MAGIC, pack(message)])
        self.good = VirtualClient(self.server, b"good")
        self.good.ask(m.Prompt, text="a fox", chunks=100)
        self.peers = [bytes([number]) for number in range(12)]

    def send(self, parts: list[bytes]) -> None:
        peer = self.rng.choice(self.peers)
        if self.rng.random() < 0.1:
            self.server.hub.receive(peer, [MAGIC, pack(m.Hello(proto=PROTO))], self.server.now)
        session = self.rng.choice(tuple(self.server.hub.films.sessions))  # guessed, or overheard
        parts = [part.replace(b"\xa7session\xa1s", b"\xa7session" + msgpack.packb(session)) for part in parts]
        self.server.hub.receive(peer, parts, self.server.now)

    def assert_small(self) -> None:
        hub = self.server.hub
        assert len(hub.peers) <= hub.limits.connections
        assert len(hub.films.sessions) <= hub.limits.sessions
        assert len(hub.banned) <= 4096
        for session in hub.films.sessions.values():
            assert len(session.buffer._said) <= 8 * session.buffer.limit + 65
            assert len(session.memory._answers) <= hub.limits.ids
            assert len(session.snapshots) <= hub.limits.snapshots
            assert hub.films.slots.taken(session.name) <= hub.films.slots.share


def test_nothing_that_is_sent_brings_the_core_down(caplog: pytest.LogCaptureFixture) -> None:
    crowd = Crowd(1)
    for number in range(96_000):
        crowd.send(anything(crowd.rng))
        if number % 50 == 0:
            crowd.server.settle()
            crowd.good.watch(1 / 16)
            crowd.assert_small()
            for told in crowd.server.told.values():
                if told is not crowd.good.told:
                    told.clear()
    assert not [record for record in caplog.records if record.exc_info], "an exception met nobody expected"
    seconds = crowd.server.now - 100
    numbers = [frame.seq for frame in crowd.good.frames]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= min(16 * seconds * 0.9, 1100)


def test_limits_hold_before_anything_is_allocated() -> None:
    server = VirtualServer()
    VirtualClient(server, b"good")
    before = len(server.hub.films.sessions)
    parts: list[list[Part]] = [
        [MAGIC, b"\xdf\xff\xff\xff\xff" + b"\0" * 100],
        [MAGIC, bytes(server.limits.header_bytes + 1)],
        [MAGIC, b"\x80", *[b""] * 100],
        [MAGIC, b"\x80", bytes(server.limits.part_bytes + 1)],
    ]
    began = time.perf_counter()
    for _ in range(1000):
        for message in parts:
            server.hub.receive(b"stranger", message, server.now)
    assert time.perf_counter() - began < 10, "a message is refused in less than a few ms"
    assert len(server.hub.films.sessions) == before
    assert b"stranger" not in server.hub.peers


def test_a_defect_met_by_one_client_is_told_to_it_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = VirtualServer()
    good, other = VirtualClient(server, b"good"), VirtualClient(server, b"other")
    good.ask(m.Prompt, text="a fox", chunks=50)
    session = server.hub.films.sessions[other.session]

    def defect(*anything: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(session.words, "prompt", defect, raising=False)
    monkeypatch.setattr(server.hub.films.sessions[good.session], "words", type(session.words)())
    request = other.ask(m.Prompt, text="a hare")
    assert other.answers(request)[-1].code == "internal"
    assert "a defect" in caplog.text
    good.watch(3)
    monkeypatch.setattr(session, "made", defect)
    monkeypatch.setattr(session, "words", type(session.words)())
    other.ask(m.Prompt, text="a hare")
    good.watch(5)
    assert other.last(m.SessionClosed).code == "internal"
    assert good.session in server.hub.films.sessions
    assert len(good.frames) > 16 * 7


# --- over sockets -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("hostile"), *QUICK) as started:
        yield started.ready()


def flood(server: Server, player: Watcher, messages: int, rng: random.Random) -> None:
    """Send so many messages over connections that are given up now and then, a film playing beside them."""
    context = zmq.Context()
    host, port = server.endpoint.removeprefix("tcp://").split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(20)]
    sent, turn = 0, 0
    while sent < messages:
        turn += 1
        dealer = context.socket(rng.choice((zmq.DEALER, zmq.DEALER, zmq.REQ)))
        dealer.setsockopt(zmq.LINGER, 100)
        dealer.setsockopt(zmq.SNDTIMEO, 50)
        dealer.connect(server.endpoint)
        with suppress(zmq.ZMQError):
            dealer.send_multipart([MAGIC, pack(m.Hello(proto=PROTO))])
            for _ in range(min(200, messages - sent)):
                sent += 1
                parts = anything(rng) or [b""]
                dealer.send_multipart([*parts[:-1], bytes(9 << 20)] if sent % 997 == 0 else parts)
        dealer.close()
        with suppress(OSError), socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(
                rng.choice((b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 40, rng.randbytes(3000), b"\xff" + bytes(9)))
            )
        player.watch_for(0.05)
    for connection in silent:
        connection.close()
    context.destroy(0)


def assert_played_beside(server: Server, attack: partial[None]) -> None:
    """A film goes on without a hole while something happens, and the server is no larger afterwards."""
    with Client(server.endpoint) as client:
        film = client.open()
        player = Watcher(client, film)
        film.prompt("a fox", chunks=100)
        player.watch(lambda: player.last > 5)
        memory, files = server.memory_mb, server.frame_files()
        attack(player=player)
        at = player.last
        if film.showing is not None and at > 900:
            film.prompt("a hare", chunks=100)
        player.watch(lambda: player.last > at + 20)
        player.assert_no_hole()
        assert film.statistics.resumed == 0
        assert server.process.poll() is None
        assert server.frame_files() == files
        assert server.memory_mb < memory + 60, "MiB more than before"
        assert "Traceback" not in server.said, server.said


def test_a_film_goes_on_beside_thousands_of_broken_messages(server: Server) -> None:
    assert_played_beside(server, partial(flood, server, messages=4000, rng=random.Random(2)))


@pytest.mark.slow
def test_a_film_goes_on_beside_a_hundred_thousand_broken_messages(server: Server) -> None:
    assert_played_beside(server, partial(flood, server, messages=100_000, rng=random.Random(3)))
