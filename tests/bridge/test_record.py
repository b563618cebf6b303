"""Recordings: what a server made can be made again, bit for bit, whatever was cut, steered, chosen or cancelled."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from shotstream.bridge import Client
from shotstream.bridge.model.options import MockOptions, WorkerOptions
from shotstream.bridge.replay import replay
from shotstream.bridge.server.start import make_gateway
from shotstream.runtime.errors import UserError

MOCK = MockOptions(64, 48, chunk_s=0.05, jitter_s=0.0, load_s=0.0)


def play(file: Path, options: WorkerOptions, captions: list[str]) -> int:
    """A film with a steer, a choice, a cut at once and a second film; returns the frames that were sent."""
    gateway = make_gateway(options, "tcp://127.0.0.1:0", record=file)
    thread = threading.Thread(target=gateway.run)
    thread.start()
    seen = 0
    try:
        with Client(gateway.endpoint) as client:
            film, other = client.open("A story about a red cat. Setting: meadow by day.", seed=5), client.open(seed=6)
            for f in (film, other):
                f.prompt(captions[0], at="next_chunk", chunks=6)
            seen += take(client, film, 21)
            film.steer(captions[1])
            seen += take(client, film, 24)
            choice = film.choices([{"key": "a", "caption": captions[2]}, {"key": "b", "caption": captions[1]}])
            ready: list[str] = []
            film.on_choice_ready = lambda message: ready.append(message.key)
            assert client.wait(lambda: len(ready) == 2, 60)
            film.commit(choice, "b")
            seen += take(client, film, 21)
            film.prompt(captions[2], at="now", chunks=2)
            seen += take(client, film, 12)
            seen += take(client, other, 21)
    finally:
        gateway.stop()
        thread.join(30)
    return seen


def take(client: Client, film: object, frames: int) -> int:
    got = 0
    for _ in film.frames(timeout_s=60):  # type: ignore[attr-defined]
        got += 1
        if got == frames:
            return got
    raise AssertionError(f"only {got} of {frames} frames came")


def test_a_recording_is_made_again_bit_for_bit(tmp_path: Path) -> None:
    file = tmp_path / "evening.rec"
    seen = play(file, WorkerOptions("mock", mock=MOCK), ["a fox", "a fox that sleeps", "an owl"])
    found = replay(file, tmp_path / "films")
    assert found.differing == []
    assert found.chunks > 8
    assert len(found.films) == 2
    assert all(path.stat().st_size > 1000 for path in found.films)
    assert sum(found.frames.values()) >= seen


def test_the_embedded_model_is_replayed_bit_for_bit(tmp_path: Path) -> None:
    file = tmp_path / "evening.rec"
    captions = [f"Wide shot: the red cat {does}." for does in ("stands still", "dances", "waves")]
    play(file, WorkerOptions("tiny", threads=1), captions)
    found = replay(file)
    assert found.differing == []
    assert found.chunks > 8


def test_a_recording_that_was_cut_short_is_replayed_as_far_as_it_goes(tmp_path: Path) -> None:
    file = tmp_path / "evening.rec"
    play(file, WorkerOptions("mock", mock=MOCK), ["a fox", "a fox that sleeps", "an owl"])
    whole = replay(file).chunks
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    found = replay(file)
    assert 0 < found.chunks < whole
    assert found.differing == []


def test_another_picture_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "evening.rec"
    play(file, WorkerOptions("mock", mock=MOCK), ["a fox", "a fox that sleeps", "an owl"])
    from shotstream.bridge.model import mock

    right = mock.draw
    monkeypatch.setattr(mock, "draw", lambda *args: right(*args) ^ 1)
    found = replay(file)
    assert len(found.differing) == found.chunks


@pytest.mark.parametrize("content", [b"", b"not a recording", b"SHOTSTREAM RECORDING 1\n" + b"\xff\0\0\0" + b"x" * 300])
def test_other_files_are_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "evening.rec"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"evening\.rec"):
        replay(file)


def test_a_recording_never_overwrites_a_file(tmp_path: Path) -> None:
    file = tmp_path / "evening.rec"
    file.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        make_gateway(WorkerOptions("mock"), "tcp://127.0.0.1:0", record=file)
    assert file.read_text() == "mine"
