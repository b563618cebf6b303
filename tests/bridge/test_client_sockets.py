"""The client over real sockets: steering, faults of the server and of the network, and that no call ever hangs."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from itertools import islice

import numpy as np
import pytest
import zmq
from PIL import Image

from shotstream.bridge import Client
from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.envelope import pack
from shotstream.bridge.protocol.limits import MAGIC
from shotstream.runtime.errors import UserError

HANG_S = 0.05
"""Far above what a call needs, far below what a player would notice as a hang."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def assert_nothing_hangs(client: Client, turns: int = 30) -> None:
    """A game that does all it can do; its slowest call is measured, the worst one left out for the machine's sake."""
    times = [timed(lambda: client.open("a story")) if not client.films else 0.0]
    film = client.films[0]
    for _ in range(turns):
        times += [
            timed(client.poll),
            timed(film.frame),
            timed(lambda: film.event("Door", params={"side": "left"})),
            timed(lambda: film.prompt("a shot", at="now")),
            timed(lambda: list(film.events())),
            timed(lambda: film.statistics),
        ]
    assert sorted(times)[-2] < HANG_S
    assert timed(lambda: client.close(linger_ms=0)) < HANG_S + 0.1


@contextmanager
def opened(server, **arguments):
    with Client(server.endpoint) as client:
        film = client.open("a story", **arguments)
        assert client.wait(lambda: film.state == "open", 5)
        yield client, film


def test_a_game_steers_a_film_and_sees_it(server) -> None:
    with opened(server) as (client, film):
        told: list[str] = []
        shots: list[int] = []
        film.on_shot_begin = lambda begin: shots.append(begin.shot)
        receipt = film.prompt("a cat", on_change=lambda r: told.append(r.status))
        assert client.wait(lambda: film.frame() is not None, 5)
        assert receipt.status == "applied"
        assert told[-1] == "applied"
        assert shots == [0]
        assert client.wait(lambda: film.frame().seq >= 12, 5)
        frame = film.frame()
        assert frame.pixels.shape == (2, 4, 3)
        assert not frame.pixels.flags.writeable
        assert frame.pixels[0, 0, 0] == frame.seq
        assert film.showing.caption == "shot 0"
        assert any(isinstance(event, m.ShotBegin) for event in film.events())
        assert film.statistics.dropped == 0
        assert film.statistics.transport_ms is None or film.statistics.transport_ms > -1000


def test_tools_get_every_frame_as_fast_as_it_comes(server) -> None:
    with opened(server) as (_, film):
        film.prompt("a cat")
        seen = []
        for frame in film.frames(timeout_s=2):
            seen.append(frame.seq)
            if len(seen) == 100:
                break
        assert seen == list(range(100))


def test_a_jpeg_is_decoded_when_its_pixels_are_asked_for(server) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (4, 2), (200, 30, 60)).save(picture, "JPEG", quality=95)
    server.script.pictures = lambda seq: b"junk" if seq == 1 else picture.getvalue()
    with opened(server, enc="jpeg") as (_, film):
        film.prompt("a cat")
        good, bad = [frame for frame in islice(film.frames(timeout_s=2), 2)]
        assert np.abs(good.pixels[0, 0].astype(int) - (200, 30, 60)).max() < 12
        with pytest.raises(UserError, match="JPEG of frame 1"):
            _ = bad.pixels


def test_pictures_with_four_channels_are_read_as_such(server) -> None:
    server.script.pictures = lambda seq: bytes([10, 20, 30, 255] * 8)
    with opened(server, enc="rgba32") as (_, film):
        film.prompt("a cat")
        frame = next(film.frames(timeout_s=2))
        assert frame.pixels.shape == (2, 4, 4)
        assert frame.rgb[0, 0].tolist() == [10, 20, 30]


def test_a_broken_connection_is_taken_up_again_without_a_hole(serve) -> None:
    port = free_port()
    with serve(port=port) as first, opened(first) as (client, film):
        film.prompt("a cat")
        seen = [frame.seq for frame in islice(film.frames(timeout_s=2), 30)]
        first.stop()
        with serve(port=port) as second:
            second.script.sessions = first.script.sessions
            second.script.disconnect()
            assert client.wait(lambda: film.state == "detached", 5)
            seen += [frame.seq for frame in islice(film.frames(timeout_s=5), 60)]
            assert film.state == "open"
            assert seen == list(range(90))
            assert film.statistics.resumed == 1
            assert film.statistics.dropped == 0


@pytest.mark.parametrize("reopen", [False, True])
def test_a_restarted_server_loses_the_film_unless_it_may_be_reopened(serve, reopen) -> None:
    port = free_port()
    with serve(port=port) as first, opened(first, reopen=reopen) as (client, film):
        states: list[str] = []
        film.on_state = lambda change: states.append(change.state)
        first.stop()
        with serve(port=port):
            assert client.wait(lambda: film.state == ("open" if reopen else "lost") and "detached" in states, 5)
            if reopen:
                film.prompt("a cat")
                assert client.wait(lambda: film.frame() is not None, 5)
                assert film.statistics.reopened == 1
            else:
                assert "no_session" in film.error


def test_junk_and_messages_of_newer_servers_are_counted_and_left_out(server) -> None:
    with opened(server) as (client, film):
        server.send_raw(b"GET / HTTP/1.1")
        server.send_raw(MAGIC, b"\xff\xff\xff")
        server.send_raw(MAGIC, b"\x81\xa1t\xa9telepathy")
        server.send_raw(MAGIC, pack(m.Ack(re=12345, session="nobody")))
        assert client.wait(lambda: client.statistics.junk == 2 and client.statistics.unknown == 1, 5)
        assert film.state == "open"


def test_another_version_is_told_once_and_then_polling_is_quiet(server) -> None:
    server.script.proto = (2, 0)
    with Client(server.endpoint) as client:
        with pytest.raises(UserError, match=r"protocol 2\.0"):
            client.wait(lambda: client.state == "welcomed", 5)
        assert client.poll() == 0
        with pytest.raises(UserError, match=r"protocol 2\.0"):
            client.open("a story")


def test_keys_that_fit_let_in_and_others_are_a_clear_error(serve) -> None:
    server_keys, ours, others = zmq.curve_keypair(), zmq.curve_keypair(), zmq.curve_keypair()
    with serve(curve=server_keys) as server:
        with Client(server.endpoint, curve=(server_keys[0], *ours)) as client:
            assert client.wait(lambda: client.state == "welcomed", 30)
        wrong = (others[0], *ours)
        with Client(server.endpoint, curve=wrong) as client, pytest.raises(UserError, match="public key"):
            client.wait(lambda: False, 30)  # ends with the error; a busy machine needs its time
    with (
        serve() as plain,
        Client(plain.endpoint, curve=(server_keys[0], *ours)) as client,
        pytest.raises(UserError, match="CURVE"),
    ):
        client.wait(lambda: False, 30)


def test_a_client_without_keys_is_told_that_they_are_wanted(serve) -> None:
    with serve(curve=zmq.curve_keypair()) as server, Client(server.endpoint) as client:
        told = ""
        try:
            if client.wait(lambda: "wants keys" in client.statistics.trouble, 30):
                told = client.statistics.trouble
        except UserError as error:  # it saw the mismatch before the server broke off
            told = str(error)
        assert "wants keys" in told or "do not agree on keys" in told


def test_a_wrong_address_or_key_is_an_error_at_once() -> None:
    for endpoint in ("bogus", "tcp://127.0.0.1", "udp://127.0.0.1:5"):
        with pytest.raises(UserError, match="cannot connect"):
            Client(endpoint)
    with pytest.raises(UserError, match="Z85"):
        Client(curve=("too short", "x", "y"))


def test_a_film_that_has_ended_refuses_what_is_asked_of_it_and_says_so(server) -> None:
    with opened(server) as (client, film):
        film.close()
        assert client.wait(lambda: film.state == "closed" and not client.films, 5)
        told: list[str] = []
        receipt = film.event("Door", on_change=lambda receipt: told.append(receipt.status))
        client.poll()
        assert (receipt.code, told) == ("no_session", ["rejected"])


def test_leaving_closes_the_films_at_the_server(server) -> None:
    with opened(server):
        assert server.script.sessions
    ends = time.time() + 2
    while server.script.sessions and time.time() < ends:
        time.sleep(0.01)
    assert not server.script.sessions


def test_no_call_hangs_without_a_server() -> None:
    client = Client(f"tcp://127.0.0.1:{free_port()}")
    assert_nothing_hangs(client)
    assert client.state == "closed"


def test_no_call_hangs_when_the_servers_name_cannot_be_found() -> None:
    assert_nothing_hangs(Client("tcp://no-such-host.invalid:5570"), turns=5)


def test_no_call_hangs_when_the_server_never_answers(server) -> None:
    server.script.mute = True
    client = Client(server.endpoint)
    film = client.open("a story")
    assert not client.wait(lambda: film.state == "open", 0.3)
    assert_nothing_hangs(client)


def test_no_call_hangs_when_something_else_listens_there() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        client = Client(f"tcp://127.0.0.1:{other.getsockname()[1]}")
        client.wait(lambda: False, 0.2)
        assert_nothing_hangs(client)


def test_no_call_hangs_when_the_server_stops_in_the_middle(server) -> None:
    with Client(server.endpoint) as client:
        film = client.open("a story")
        film.prompt("a cat")
        assert client.wait(lambda: film.frame() is not None, 5)
        server.stop()
        assert_nothing_hangs(client)


def test_no_call_hangs_when_the_servers_process_is_frozen() -> None:
    code = (
        "import zmq; router = zmq.Context().socket(zmq.ROUTER)\n"
        "print(router.bind_to_random_port('tcp://127.0.0.1'), flush=True)\n"
        "while True: router.recv_multipart()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            client = Client(f"tcp://127.0.0.1:{int(process.stdout.readline())}")
            client.open("a story")
            client.wait(lambda: False, 0.2)
            process.send_signal(signal.SIGSTOP)
            assert_nothing_hangs(client)
        finally:
            process.kill()


def test_no_call_hangs_when_the_server_reads_no_more_and_everything_is_full(server) -> None:
    client = Client(server.endpoint)
    film = client.open("a story")
    assert client.wait(lambda: film.state == "open", 5)
    server.reading = False
    blob = pack(m.Ping(t0=1)) + bytes(60_000)
    filled = 0
    while client._link.send(blob) and filled < 5000:
        filled += 1
    assert filled < 5000, "the queue is full"
    assert_nothing_hangs(client)


def test_a_closed_client_leaves_nothing_running(server) -> None:
    with opened(server):
        pass
    assert not [thread for thread in threading.enumerate() if thread.name == "shotstream-link-end"]


def test_a_forgotten_client_does_not_keep_a_program_from_ending() -> None:
    code = (
        "from shotstream.bridge import Client\n"
        "client = Client('tcp://127.0.0.1:9'); film = client.open('a'); film.event('b'); client.poll()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=20, check=False).returncode == 0


def test_importing_the_bridge_loads_no_sockets() -> None:
    code = "import sys, shotstream.bridge.client; assert not {'zmq', 'numpy', 'torch'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=20, check=False).returncode == 0
