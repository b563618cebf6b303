"""`shotstream serve` as a user meets it: real processes, real sockets, pictures that say what they are."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from serving import PATIENCE_S, QUICK, Server, Watcher, alive, says_what_it_is, serving, until

from shotstream.bridge import Client
from shotstream.bridge.client.film import StateChanged
from shotstream.bridge.protocol import messages as m
from shotstream.runtime.cli import run
from shotstream.runtime.runtime import Runtime


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the mock that the tests here share."""
    with serving(tmp_path_factory.mktemp("serve"), *QUICK) as started:
        yield started.ready()


def test_a_prompt_and_an_event_become_frames_that_say_shot_and_number(server: Server) -> None:
    with Client(server.endpoint) as client:
        film = client.open(director="cinematic", cast={"mara": "a woman in her sixties in a beige shirt"})
        player = Watcher(client, film)
        prompt = film.prompt("a fox in the snow", chunks=2)
        player.watch(lambda: player.last >= 20)
        event = film.event("Story.Greeting", actor="mara", action="wave", at="next_shot")
        player.watch(lambda: player.last >= 30 or event.code)
        assert not event.code, event.error
        assert prompt.caption == "a fox in the snow"
        assert event.seq == 21
        assert [frame.shot for frame in player.seen] == [0] * 21 + [1] * (len(player.seen) - 21)
        assert all(says_what_it_is(frame) for frame in player.seen)
        assert film.showing is not None
        assert film.showing.cause == event.id
        player.assert_no_hole()


@pytest.mark.parametrize("enc", ["rgba32", "bgra32", "jpeg", "none"])
def test_every_encoding_shows_the_same_film(server: Server, enc: m.Encoding) -> None:
    with Client(server.endpoint) as client:
        film = client.open(enc=enc)
        player = Watcher(client, film)
        film.prompt("a fox", chunks=1)
        player.watch(lambda: player.last >= 8)
        if enc == "none":
            assert all(not frame.payload for frame in player.seen)
        else:
            assert all(says_what_it_is(frame) for frame in player.seen)


def test_films_over_the_wire_are_those_of_a_session_bit_for_bit(tmp_path: Path) -> None:
    with serving(tmp_path, "--model", "tiny", "--threads", "1") as server, Client(server.endpoint) as client:
        states: list[str] = []
        film = client.open(seed=5)
        film.on_model_status = lambda status: states.append(status.model.state)
        player = Watcher(client, film)
        first = film.prompt("a red circle moves to the right.", chunks=2)
        second = film.prompt("a blue square.", at="next_shot", chunks=1)
        loading = 4 * PATIENCE_S  # a busy machine takes its time to load torch
        player.watch(lambda: player.last >= 29 or first.code or second.code, patience_s=loading)
        assert not first.code + second.code, first.error + second.error
        assert states[-1] == "ready", "a client that came early saw the model getting ready"
        made = [np.array(frame.pixels) for frame in player.seen]
        shots = [film._core.shots[number] for number in (0, 1)]
        assert server.stop() == 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Runtime("tiny") as runtime, runtime.open(shots[0].global_caption, seed=5) as session:
            expected: list[np.ndarray] = []
            for shot, chunks in zip(shots, (2, 1), strict=True):
                session.cut(shot.caption, chunks=chunks, global_caption=shot.global_caption)
                for _ in range(chunks):
                    chunk = session.next_chunk()
                    assert chunk is not None
                    expected += list(chunk.frames)
    finally:
        torch.set_num_threads(threads)
    assert len(made) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(made, expected, strict=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("whole_group", [False, True])
def test_signals_stop_it_cleanly(tmp_path: Path, number: signal.Signals, whole_group: bool) -> None:
    with serving(tmp_path, *QUICK) as server, Client(server.endpoint) as client:
        film = client.open()
        player = Watcher(client, film)
        film.prompt("a fox", chunks=20)
        player.watch(lambda: player.last >= 3)
        model, files = server.model_pid, server.frame_files()
        assert files
        if whole_group:  # as a terminal's Ctrl-C, or a service manager
            os.killpg(server.process.pid, number)
        else:
            server.process.send_signal(number)
        player.watch(lambda: film.state == "lost")
        told = [event for event in film.events() if isinstance(event, StateChanged)]
        assert "stops" in told[-1].message, told
        assert server.ended() == 0, server.said
        assert server.lines[-1] == "stopped"
        assert not alive(model)
        assert not [path for path in files if path.exists()]
        assert not list(tmp_path.iterdir())


def test_stopped_before_the_model_is_ready_leaves_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, "--model", "tiny") as server:
        assert server.endpoint
        model = server.model_pid
        assert server.stop(signal.SIGTERM) == 0
        assert not alive(model)
        assert not list(tmp_path.iterdir())


@pytest.fixture
def taken() -> Iterator[str]:
    """An address that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--bind", "tcp://0.0.0.0:0"], "keys"),
        (["--bind", "tcp://*:0"], "keys"),
        (["--bind", "127.0.0.1:5570"], "tcp://HOST:PORT"),
        (["--bind", "tcp://127.0.0.1:99999"], "65535"),
        (["--bind", "ipc:///there/is/no/such/folder"], "cannot listen"),
        (["--size", "big"], "832x480"),
        (["--size", "16x16"], "32 pixels"),
        (["--size", "99999x99999"], "4096"),
        (["--sessions", "0"], "sessions"),
        (["--director", "no-such-map.yaml"], "no-such-map.yaml"),
        (["--model", "no-such-model", "--bind", "tcp://127.0.0.1:0"], "no-such-model"),
    ],
)
def test_wrong_arguments_are_told_in_a_sentence(
    arguments: list[str], word: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = [] if "--model" in arguments else ["--model", "mock"]
    assert run(["serve", *model, *arguments]) == 2
    said = capfd.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert word in line
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_told_in_a_sentence(taken: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--model", "mock", "--bind", taken]) == 2
    assert "cannot listen" in capfd.readouterr().err


def test_an_event_map_that_cannot_be_read_is_told_in_a_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "map.yaml").write_text("rules: [", encoding="utf-8")
    assert run(["serve", "--model", "mock", "--director", str(tmp_path / "map.yaml")]) == 2
    assert "map.yaml" in capfd.readouterr().err


def test_a_model_process_that_dies_at_every_start_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(
        "import os, sys\nif 'shotstream.bridge.model.worker' in sys.orig_argv:\n    os._exit(3)\n", encoding="utf-8"
    )
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    with serving(tmp_path / "temporary", *QUICK) as server:
        assert server.process.wait(2 * PATIENCE_S) == 2
        until(lambda: "error: " in server.said, "its last words")
        assert "error: the model process died too often, last with exit code 3" in server.lines
        assert not list((tmp_path / "temporary").iterdir())
