"""Cancelling a chunk while it is made: nothing of it is left, and nothing of what follows can tell."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import Registry
from shotstream.runtime.runtime import Runtime
from shotstream.runtime.session import Chunk, ChunkCancelled, Session

MakeRuntime = Callable[..., Runtime]


class At:
    """A `stop` that says True when asked for the n-th time (0-based), and counts."""

    def __init__(self, when: int | None = None) -> None:
        self.when, self.asked = when, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.when is not None and self.asked > self.when


def made(session: Session, stop: Callable[[], bool] | None = None) -> Chunk:
    chunk = session.next_chunk(stop)
    assert chunk is not None
    return chunk


def frames_of(session: Session) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in session.chunks()])


def two_shots(session: Session, cancel: Callable[[Session, int, int], None] = lambda *_: None) -> list[Chunk]:
    """A shot of nine chunks, longer than the local cache, and one of two; `cancel` is called before each chunk."""
    chunks = []
    for shot, length in enumerate((9, 2)):
        session.begin_shot(f"thing number {shot}", length)
        for number in range(length):
            cancel(session, shot, number)
            chunks.append(made(session))
    return chunks


# ------------------------------------------------------------------------------------ the same film
@pytest.mark.parametrize("when", range(7))
def test_a_film_of_cancelled_chunks_equals_one_that_was_never_interrupted(
    small_runtime: MakeRuntime, when: int
) -> None:
    """Wherever it is cancelled: before anything, before the context pass, before each step, before decoding."""

    def cancel(session: Session, shot: int, number: int) -> None:
        if number and when == 6:  # a shot's later chunks have no context pass
            return
        before = session.frames_made
        with pytest.raises(ChunkCancelled):
            session.next_chunk(At(when))
        assert session.frames_made == before

    runtime = small_runtime()
    plain, cancelled = runtime.open("A forest. ", seed=4), runtime.open("A forest. ", seed=4)
    for ours, theirs in zip(two_shots(cancelled, cancel), two_shots(plain), strict=True):
        assert np.array_equal(ours.frames, theirs.frames)
        assert (ours.shot, ours.chunk, ours.first_frame, ours.last) == (
            theirs.shot, theirs.chunk, theirs.first_frame, theirs.last,
        )  # fmt: skip
    assert cancelled.snapshot() == plain.snapshot()


def test_one_chunk_can_be_cancelled_again_and_again(small_runtime: MakeRuntime) -> None:
    runtime = small_runtime()
    plain, cancelled = runtime.open(seed=4), runtime.open(seed=4)
    for session in (plain, cancelled):
        session.begin_shot("a fox", 3)
        made(session)
    for when in (5, 1, 3, 0, 4):
        with pytest.raises(ChunkCancelled):
            cancelled.next_chunk(At(when))
    assert np.array_equal(frames_of(cancelled), frames_of(plain))


def test_stop_is_asked_before_every_step_and_a_film_it_never_stops_is_the_same(small_runtime: MakeRuntime) -> None:
    runtime = small_runtime()
    plain, asked = runtime.open(seed=4), runtime.open(seed=4)
    for session in (plain, asked):
        session.begin_shot("a fox", 2)
    first, later, none = At(), At(), At()
    assert np.array_equal(made(asked, first).frames, made(plain).frames)
    assert np.array_equal(made(asked, later).frames, made(plain).frames)
    assert first.asked == 7  # at once, before the context pass, four steps, decoding
    assert later.asked == 6
    assert asked.next_chunk(none) is None


def test_a_step_that_is_cancelled_is_not_made(small_runtime: MakeRuntime) -> None:
    runtime = small_runtime()
    passes: list[int] = []
    runtime.parts.transformer.register_forward_hook(lambda *_: passes.append(1))
    session = runtime.open()
    session.begin_shot("a fox", 2)
    made(session)
    counts = []
    for when in range(6):
        session.settle()
        passes.clear()
        with pytest.raises(ChunkCancelled):
            session.next_chunk(At(when))
        counts.append(len(passes))
    assert counts == [0, 0, 1, 2, 3, 4]


def test_time_spent_on_a_cancelled_chunk_is_not_counted_as_the_next_ones(small_runtime: MakeRuntime) -> None:
    session = small_runtime().open()
    session.begin_shot("a fox", 2)
    laps = session._watch._laps
    with pytest.raises(ChunkCancelled):
        session.next_chunk(At(6))
    assert [name for name, _, _ in laps] == ["text", "context"]


# ------------------------------------------------------------------------------------ cuts after it
def test_a_cut_after_a_cancel_begins_the_next_shot_with_what_had_been_finished(small_runtime: MakeRuntime) -> None:
    runtime = small_runtime()
    cancelled, planned = runtime.open("A forest. ", seed=4), runtime.open("A forest. ", seed=4)
    cancelled.begin_shot("a fox", 6)
    frames = [made(cancelled).frames, made(cancelled).frames]
    with pytest.raises(ChunkCancelled):
        cancelled.next_chunk(At(3))
    cancelled.cut("a crab", chunks=2)
    frames.append(frames_of(cancelled))
    planned.begin_shot("a fox", 2)
    expected = [frames_of(planned)]
    planned.begin_shot("a crab", 2)
    expected.append(frames_of(planned))
    assert np.array_equal(np.concatenate(frames), np.concatenate(expected))
    assert cancelled.snapshot() == planned.snapshot()


@pytest.mark.parametrize("when", range(7))
def test_a_shot_cancelled_before_its_first_chunk_gives_its_place_to_the_next(
    small_runtime: MakeRuntime, when: int
) -> None:
    runtime = small_runtime()
    cancelled, never = runtime.open("A forest. ", seed=4), runtime.open("A forest. ", seed=4)
    for session in (cancelled, never):
        session.begin_shot("a fox", 1)
        made(session)
    cancelled.cut("a whale", chunks=5)
    with pytest.raises(ChunkCancelled):
        cancelled.next_chunk(At(when))
    for session in (cancelled, never):
        session.cut("a crab", chunks=2)
    chunks, expected = list(cancelled.chunks()), list(never.chunks())
    assert [(c.shot, c.caption) for c in chunks] == [(1, "a crab"), (1, "a crab")]
    assert np.array_equal(np.concatenate([c.frames for c in chunks]), np.concatenate([c.frames for c in expected]))
    assert cancelled.snapshot() == never.snapshot()


def test_a_refused_cut_after_a_cancelled_first_chunk_leaves_the_shot_running(small_runtime: MakeRuntime) -> None:
    session = small_runtime().open()
    session.begin_shot("a fox", 2)
    with pytest.raises(ChunkCancelled):
        session.next_chunk(At(4))
    with pytest.raises(UserError, match="empty"):
        session.cut(" ")
    assert made(session).caption == "a fox"


def test_plugins_see_a_shot_that_was_never_shown_begin_once_and_end(small_runtime: MakeRuntime) -> None:
    class Listener:
        name = "listener"

        def __init__(self) -> None:
            self.heard: list[tuple[str, int]] = []

        def build(self, registry: Registry) -> None:
            registry.subscribe("on_shot_begin", lambda session, shot, caption: self.heard.append(("begin", shot)))
            registry.subscribe("on_shot_end", lambda session, shot: self.heard.append(("end", shot)))

    listener = Listener()
    session = small_runtime(listener).open()
    session.begin_shot("a fox", 2)
    for _ in range(2):
        with pytest.raises(ChunkCancelled):
            session.next_chunk(At(4))
    session.cut("a crab", chunks=1)
    list(session.chunks())
    assert listener.heard == [("begin", 0), ("end", 0), ("begin", 0), ("end", 0)]


def test_the_embedded_model_makes_the_same_film_whether_or_not_it_was_cancelled() -> None:
    films = []
    with Runtime("tiny") as runtime:
        for when in (None, 4):
            with runtime.open("A story about a red cat. Setting: forest by day.", seed=3) as session:
                session.cut("Wide shot: the red cat waves.", chunks=2)
                frames = []
                for _ in range(2):
                    if when is not None:
                        with pytest.raises(ChunkCancelled):
                            session.next_chunk(At(when))
                    frames.append(made(session).frames)
                films.append(np.concatenate(frames))
    assert np.array_equal(*films)
