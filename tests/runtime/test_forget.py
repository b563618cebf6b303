"""Forgetting: what comes after it is as if nothing had been before, but for the noise; and snapshots know of it."""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from shotstream.runtime import snapshot as snapshots
from shotstream.runtime.errors import UserError
from shotstream.runtime.history import History
from shotstream.runtime.noise import NoiseSource
from shotstream.runtime.runtime import Runtime
from shotstream.runtime.session import Session

MakeRuntime = Callable[..., Runtime]
SEA = ["a whale jumps", "it dives", "a crab waves"]


def play(session: Session, captions: list[str], chunks: int = 1, scene: str | None = None) -> np.ndarray:
    """Frames of all shots, concatenated; `scene` is a new global caption."""
    made = []
    for caption in captions:
        session.begin_shot(caption, chunks, global_caption=scene)
        made += [chunk.frames for chunk in session.chunks()]
    return np.concatenate(made)


def test_after_forgetting_nothing_depends_on_what_was_before(small_runtime: MakeRuntime) -> None:
    runtime = small_runtime()
    fox, robot, keeper = (runtime.open("A forest. ", seed=4) for _ in range(3))
    play(fox, ["a fox walks", "the fox sleeps"])
    play(robot, ["a robot dances"], chunks=3)
    play(robot, ["it rains"], chunks=2)
    play(keeper, ["a fox walks", "the fox sleeps"])
    fox.forget()
    robot.forget()
    after = [play(session, SEA, scene="The sea. ") for session in (fox, robot, keeper)]
    assert np.array_equal(after[0], after[1])
    assert not np.array_equal(after[0][:9], after[2][:9])  # the one that kept its memory


def test_after_forgetting_a_session_equals_one_that_never_had_a_history(small_runtime: MakeRuntime) -> None:
    runtime = small_runtime()
    session = runtime.open("A forest. ", seed=4)
    play(session, ["a fox walks", "the fox sleeps"])
    session.forget()
    never = snapshots.SavedSession(runtime.identity, 4, "The sea. ", 2, 18, History(6), memory_begins=2)
    fresh = runtime.resume(never)
    assert np.array_equal(play(session, SEA, scene="The sea. "), play(fresh, SEA))
    assert session.snapshot() == fresh.snapshot()


def test_with_equal_noise_what_follows_is_a_film_of_its_own(
    small_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captions, flags and context count from the scene's first shot, as the model was trained on first shots."""
    runtime = small_runtime()
    draw = NoiseSource.draw
    monkeypatch.setattr(NoiseSource, "draw", lambda self, shot, *rest: draw(self, 0, *rest))
    session, own = runtime.open("A forest. ", seed=4), runtime.open("The sea. ", seed=4)
    play(session, ["a fox walks", "the fox sleeps"], chunks=2)
    session.forget()
    assert np.array_equal(play(session, SEA, chunks=2, scene="The sea. "), play(own, SEA, chunks=2))
    assert [past.caption for past in session.history.shots] == [past.caption for past in own.history.shots]
    contexts = runtime.engine.contexts[-6:]  # type: ignore[attr-defined]
    assert [context.flags for context in contexts[:3]] == [[0] * 6, [0] * 6, [0, 0, 0, 1, 1, 1]]
    assert runtime.engine.target_flags[-6:] == [1, 1, 2] * 2  # type: ignore[attr-defined]


def test_shots_and_frames_stay_numbered_through_the_session(small_runtime: MakeRuntime) -> None:
    session = small_runtime().open("A forest. ")
    play(session, ["a fox", "a crab"])
    session.forget()
    session.begin_shot("a whale", 1)
    chunk = session.next_chunk()
    assert chunk is not None
    assert (chunk.shot, chunk.first_frame) == (2, 18)
    assert (session.memory_begins, session.shots_begun) == (2, 3)


@pytest.mark.parametrize("shots_after", [0, 1, 8])
def test_a_snapshot_after_forgetting_continues_bit_for_bit(small_runtime: MakeRuntime, shots_after: int) -> None:
    runtime, other_process = small_runtime(), small_runtime()
    session = runtime.open("A forest. ", seed=21)
    play(session, ["a fox", "a crab"])
    session.forget()
    if shots_after:
        play(session, SEA * 2 + SEA[:2] if shots_after == 8 else SEA[:1])
    restored, fork = other_process.restore(session.snapshot()), session.fork()
    assert restored.memory_begins == fork.memory_begins == 2
    rest = play(session, SEA)
    assert np.array_equal(play(restored, SEA), rest)
    assert np.array_equal(play(fork, SEA), rest)
    assert restored.snapshot() == fork.snapshot() == session.snapshot()


def test_earlier_shots_are_forgotten_between_shots_only(small_runtime: MakeRuntime) -> None:
    session = small_runtime().open()
    session.forget()
    session.begin_shot("a fox", 2)
    for _ in range(2):
        with pytest.raises(UserError, match="forgotten between shots"):
            session.forget()
        session.next_chunk()
    session.forget()
    assert session.history.shots == []
    session.close()
    with pytest.raises(UserError, match="closed"):
        session.forget()


def repacked(data: bytes, version: int, **changes: int | None) -> bytes:
    """A snapshot of another version with fields of its header changed (None: removed)."""
    header, payload = snapshots._split(data)
    fields = msgspec.msgpack.decode(header) | changes
    header = msgspec.msgpack.encode({name: value for name, value in fields.items() if value is not None})
    body = struct.pack("<8sIIQ", snapshots.MAGIC, version, len(header), len(payload)) + header + payload
    return body + snapshots.hashlib.sha256(body).digest()


def test_a_snapshot_of_version_1_is_read_as_one_that_has_forgotten_nothing(small_runtime: MakeRuntime) -> None:
    runtime = small_runtime()
    session = runtime.open("A forest. ", seed=3)
    play(session, ["a fox", "a crab"])
    old = runtime.restore(repacked(session.snapshot(), 1, memory_begins=None))
    assert old.memory_begins == 0
    assert np.array_equal(play(old, SEA), play(session, SEA))


@pytest.mark.parametrize("begins", [-1, 1, 3, 4])
def test_a_snapshot_whose_memory_begins_in_the_wrong_place_is_refused(small_runtime: MakeRuntime, begins: int) -> None:
    runtime = small_runtime()
    session = runtime.open()
    play(session, ["a fox", "a crab", "a whale"])
    with pytest.raises(UserError, match="make no sense"):
        runtime.restore(repacked(session.snapshot(), 2, memory_begins=begins))
    session.forget()
    with pytest.raises(UserError, match="make no sense"):
        runtime.restore(repacked(session.snapshot(), 2, memory_begins=4))
    with pytest.raises(UserError, match="has lost its shots"):
        runtime.restore(repacked(session.snapshot(), 2, memory_begins=2))
