"""What goes wrong between a game and its film: processes that die or stand still, networks that break, slow readers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from network import Proxy
from serving import PATIENCE_S, QUICK, Server, Watcher, says_what_it_is, serving, until

from shotstream.bridge import Client
from shotstream.bridge.client.film import StateChanged
from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.envelope import pack, unpack_server
from shotstream.bridge.protocol.limits import MAGIC, PROTO


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for two films that the tests here share; every test leaves it empty."""
    with serving(tmp_path_factory.mktemp("serve"), *QUICK, "--sessions", "2") as started:
        yield started.ready()


PLAYER = """
import json, sys, time
from shotstream.bridge import Client
with Client(sys.argv[1]) as client:
    film = client.open(resume_ttl_s=float(sys.argv[2]))
    film.prompt("a fox", chunks=100)
    told, seen = 0, -1
    while seen < int(sys.argv[3]):
        client.poll()
        frame = film.frame()
        seen = frame.seq if frame is not None else -1
        if seen >= told + 10:
            told = seen
            print(told, flush=True)
        time.sleep(0.005)
    s = film.statistics
    print(json.dumps({"received": s.received, "next": film._core.player.next_seq, "resumed": s.resumed}), flush=True)
"""


def player_process(server: Server, ttl_s: float, frames: int) -> subprocess.Popen[str]:
    """A game in a process of its own, which shows film until it has shown so many frames."""
    command = [sys.executable, "-c", textwrap.dedent(PLAYER), server.endpoint, str(ttl_s), str(frames)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


class Raw:
    """A connection that says exactly what a test wants."""

    def __init__(self, endpoint: str, receive_hwm: int = 1000) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, receive_hwm)
        self.socket.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1000))
        self.socket.connect(endpoint)
        self.say(m.Hello(proto=PROTO))

    def say(self, message: m.ClientMessage) -> None:
        self.socket.send_multipart([MAGIC, pack(message)])

    def hear(self, kind: type) -> m.FromServer:
        """The next message of a kind."""
        while True:
            message = unpack_server(self.socket.recv_multipart())
            if isinstance(message, kind):
                return message

    def close(self) -> None:
        self.socket.close(0)
        self._context.term()


def test_a_game_that_is_killed_gives_its_place_free_and_disturbs_nobody(server: Server) -> None:
    with Client(server.endpoint) as client:
        film = client.open()
        film.prompt("a fox", chunks=100)
        player = Watcher(client, film)
        player.watch(lambda: player.last > 5)
        victim = player_process(server, ttl_s=1, frames=10_000)
        assert victim.stdout is not None
        assert victim.stdout.readline()
        victim.kill()
        victim.wait()
        opened = False
        ends = time.monotonic() + PATIENCE_S
        while not opened and time.monotonic() < ends:  # both places are taken until the dead one's time is over
            other = client.open()
            player.watch(lambda other=other: other.state in ("open", "lost"))
            opened = other.state == "open"
            player.watch_for(0.2)
        assert opened
        at = player.last
        player.watch(lambda: player.last > at + 30)
        player.assert_no_hole()


def test_a_game_that_stands_still_for_a_while_goes_on_without_a_hole(server: Server) -> None:
    game = player_process(server, ttl_s=60, frames=120)
    try:
        assert game.stdout is not None
        assert game.stdout.readline()
        os.kill(game.pid, signal.SIGSTOP)
        time.sleep(5)  # longer than the transport's heartbeat waits
        os.kill(game.pid, signal.SIGCONT)
        told = game.communicate(timeout=PATIENCE_S)[0].splitlines()
    finally:
        game.kill()
    last = json.loads(told[-1])
    assert last["received"] == last["next"] > 120
    assert last["resumed"] >= 1


def test_a_network_that_breaks_and_comes_back_costs_no_frame_and_no_request(server: Server) -> None:
    with Proxy(server.endpoint) as proxy, Client(proxy.endpoint) as client:
        film = client.open(window=96)
        film.prompt("a fox", chunks=100)
        player = Watcher(client, film)
        player.watch(lambda: player.last > 5)
        for number in range(3):
            proxy.cut()
            request = film.prompt(f"shot {number}", at="next_chunk", chunks=100)
            player.watch(lambda: film.state == "detached")
            player.watch_for(0.5)
            proxy.mend()
            player.watch(lambda request=request: request.done and player.last >= request.seq)
            assert request.status == "applied", request
        player.assert_no_hole()
        assert film.statistics.resumed == 3
        assert film.statistics.dropped == 0
        assert all(says_what_it_is(frame) for frame in player.seen)


def test_a_network_that_swallows_everything_is_noticed(server: Server) -> None:
    """Nothing is closed and nothing arrives, as when a cable is pulled."""
    with Proxy(server.endpoint) as proxy, Client(proxy.endpoint) as client:
        film = client.open()
        film.prompt("a fox", chunks=100)
        player = Watcher(client, film)
        player.watch(lambda: player.last > 5)
        proxy.swallow()
        player.watch(lambda: film.state == "detached")
        proxy.cut()
        proxy.mend()
        at = player.last
        player.watch(lambda: player.last > at + 40)
        player.assert_no_hole()


def test_a_server_that_is_killed_and_started_again_is_found_again(tmp_path: Path) -> None:
    with serving(tmp_path, *QUICK) as server, Client(server.ready().endpoint) as client:
        stays, goes = client.open(reopen=True), client.open()
        player = Watcher(client, stays)
        stays.prompt("a fox", chunks=100)
        player.watch(lambda: player.last > 5 and goes.state == "open")
        model, files, folders = server.model_pid, server.frame_files(), list(tmp_path.iterdir())
        server.process.kill()
        player.watch(lambda: stays.state == "detached")
        until(lambda: not Path(f"/proc/{model}").exists(), "the end of the model process")
        assert not [path for path in (*files, *folders) if path.exists()]
        with serving(tmp_path, *QUICK, bind=server.endpoint):
            player.watch(lambda: stays.state == "open" and goes.state == "lost")
            told = [event for event in stays.events() if isinstance(event, StateChanged)]
            assert any(event.reopened for event in told)
            assert "no session" in goes.error
            stays.prompt("a hare", chunks=100)
            player.watch(lambda: stays.showing is not None and stays.showing.caption == "a hare")


def test_a_model_that_is_killed_in_a_chunk_costs_the_shot_its_beginning_only(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "--model", "mock", "--size", "160x96", "--chunk-s", "0.5") as server,
        Client(server.ready().endpoint) as client,
    ):
        film = client.open()
        player = Watcher(client, film)
        first = film.prompt("a fox", chunks=1)
        player.watch(lambda: first.status == "applied")
        second = film.prompt("a hare", chunks=4)
        player.watch(lambda: second.status == "applied")
        player.watch_for(0.2)
        os.kill(server.model_pid, signal.SIGKILL)
        player.watch(lambda: player.last >= 9 + 9 + 9 + 36 - 1)
        begun = [event for event in film.events() if isinstance(event, m.ShotBegin)]
        assert [begin.caption for begin in begun] == ["a fox", "a hare", "a hare"]
        assert begun[-1].flush
        player.assert_no_hole()
        last_shot = [frame for frame in player.seen if frame.epoch == begun[-1].epoch]
        assert len(last_shot) >= 40
        assert all(says_what_it_is(frame) for frame in last_shot)


def test_one_who_does_not_read_takes_nothing_from_the_others(tmp_path: Path) -> None:
    with serving(tmp_path, "--model", "mock", "--chunk-s", "0.05", "--sessions", "2") as server:
        deaf = Raw(server.ready().endpoint, receive_hwm=1)
        deaf.say(m.OpenSession(id=1))
        session = deaf.hear(m.SessionOpened).session
        with Client(server.endpoint) as client:
            film = client.open()
            player = Watcher(client, film)
            film.prompt("a fox", chunks=100)
            player.watch(lambda: player.last > 5)
            memory = server.memory_mb
            for number in range(2, 40):  # every cut lets the server send another window
                deaf.say(m.Prompt(id=number, session=session, text="now!", at="now", chunks=100))
                player.watch_for(0.15)
            at = player.last
            player.watch(lambda: player.last > at + 30)
            player.assert_no_hole()
            assert server.memory_mb < memory + 40
        deaf.close()


def test_without_credit_nothing_is_made_and_with_it_the_film_goes_on(server: Server) -> None:
    with Client(server.endpoint) as client:
        film = client.open(window=24)
        film.prompt("a fox", chunks=100)
        client.wait(lambda: film.queued >= 21, PATIENCE_S)
        client.wait(lambda: False, 1.5)
        assert film.queued == 21
        player = Watcher(client, film)
        player.watch(lambda: player.last > 60)
        player.assert_no_hole()


def test_of_two_with_one_token_the_later_one_has_the_film_and_they_do_not_fight(server: Server) -> None:
    with Client(server.endpoint) as client:
        film = client.open()
        player = Watcher(client, film)
        film.prompt("a fox", chunks=100)
        player.watch(lambda: player.last > 5)
        assert film.info is not None
        other = Raw(server.endpoint)
        other.say(m.Resume(id=1, session=film.info.session, token=film.info.token, next_seq=0))
        assert other.hear(m.SessionOpened).resumed
        player.watch(lambda: film.state == "lost")
        assert "another connection" in film.error
        player.watch_for(1)
        other.say(m.Pause(id=1000, session=film.info.session))
        while other.hear(m.Ack).re != 1000:
            pass
        other.close()
