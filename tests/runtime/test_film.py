"""The loop from story to sinks, on a model of a few thousand weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shotstream.runtime.errors import UserError
from shotstream.runtime.film import Film, FilmPlan, Made, make_film
from shotstream.runtime.runtime import Runtime
from shotstream.runtime.sinks.base import FilmChunk, FilmInfo
from shotstream.runtime.story import parse_text
from shotstream.runtime.storyline import Choice, Option, Scene, Story, StoryShot, Taken, Telling

MakeRuntime = Callable[..., Runtime]


class Notes:
    """A sink and an observer that write down what they are told."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.told: list[str] = []
        self.info: FilmInfo | None = None
        self.chunks: list[FilmChunk] = []
        self.closed: list[bool] = []
        self.fail_at = fail_at

    def open(self, info: FilmInfo) -> None:
        self.info = info

    def write(self, chunk: FilmChunk) -> None:
        if self.fail_at == len(self.chunks):
            raise UserError("the disk is full")
        self.chunks.append(chunk)

    def close(self, complete: bool = True) -> list[Path]:
        self.closed.append(complete)
        return [Path("notes")]

    def waiting(self, shot: int) -> None:
        self.told.append(f"waiting {shot}")

    def chosen(self, taken: Taken) -> None:
        self.told.append(f"chosen {taken.option}")

    def scene_begins(self, scene: Scene) -> None:
        self.told.append(f"scene {scene.global_caption}")

    def shot_begins(self, shot: int, caption: str, chunks: int, total_shots: int | None) -> None:
        self.told.append(f"shot {shot} of {total_shots}, {chunks} chunks: {caption}")

    def chunk_made(self, made: Made) -> None:
        self.told.append(f"chunk {made.chunk.shot}.{made.chunk.chunk}")
        assert made.seconds > 0
        assert (made.first_frame_seconds is not None) == (made.chunk.chunk == 0)


class Failing(Notes):
    """A sink that cannot finish."""

    def close(self, complete: bool = True) -> list[Path]:
        raise OSError("gone")


STORY = Story("s", "a cat.", (StoryShot("it waves", 2, 2), StoryShot("it jumps", None, 3)))


def test_a_film_tells_sinks_and_observers_everything_in_order(small_runtime: MakeRuntime) -> None:
    notes, film = Notes(), Film()
    make_film(small_runtime(), FilmPlan(STORY, seed=3, sinks=[notes]), film, notes)
    seven = [f"chunk 1.{index}" for index in range(7)]
    assert notes.told == [
        "waiting 0", "shot 0 of 2, 2 chunks: it waves", "chunk 0.0", "chunk 0.1",
        "waiting 1", "shot 1 of 2, 7 chunks: it jumps", *seven, "waiting 2",
    ]  # fmt: skip
    assert (film.complete, film.shots, film.frames, film.files) == (True, 2, 21 + 81, [Path("notes")])
    assert film.frames_per_second > 0
    assert film.first_frame_seconds is not None
    assert notes.closed == [True]
    assert notes.info is not None
    assert (notes.info.seed, notes.info.global_caption, notes.info.model) == (3, "a cat.", "small")
    assert notes.info.versions["engine"] == "recording"
    assert notes.chunks[0].frames_FHWC.shape == (9, notes.info.height, notes.info.width, 3)
    assert notes.chunks[0].seconds["total"] > notes.chunks[0].seconds["denoise"] > 0
    assert [chunk.chunks for chunk in notes.chunks] == [2, 2] + [7] * 7


WHERE = Choice("Where?", (
    Option("sea", "to the sea", (Scene("the sea."), StoryShot("it swims", 1), StoryShot("it dives", 1))),
    Option("city", "to the city", (Scene("the city.", keep_memory=True), StoryShot("it walks", 1))),
))  # fmt: skip
BRANCHING = Story("s", "a cat.", (StoryShot("it waves", 1), WHERE, StoryShot("it rests", 1)))


def play_branching(runtime: Runtime, story: Story | Telling) -> Notes:
    notes = Notes()
    make_film(runtime, FilmPlan(story, sinks=[notes]), Film(), notes)
    return notes


def test_every_option_plays_and_sinks_and_observers_are_told_of_choices_and_scenes(small_runtime: MakeRuntime) -> None:
    runtime = small_runtime()
    sea = play_branching(runtime, BRANCHING)
    city = play_branching(runtime, Telling(BRANCHING, [WHERE.options[1]]))
    assert sea.told == [
        "waiting 0", "shot 0 of 4, 1 chunks: it waves", "chunk 0.0",
        "waiting 1", "chosen sea", "scene the sea.", "shot 1 of 4, 1 chunks: it swims", "chunk 1.0",
        "waiting 2", "shot 2 of 4, 1 chunks: it dives", "chunk 2.0",
        "waiting 3", "shot 3 of 4, 1 chunks: it rests", "chunk 3.0", "waiting 4",
    ]  # fmt: skip
    assert city.told == [
        "waiting 0", "shot 0 of 3, 1 chunks: it waves", "chunk 0.0",
        "waiting 1", "chosen city", "scene the city.", "shot 1 of 3, 1 chunks: it walks", "chunk 1.0",
        "waiting 2", "shot 2 of 3, 1 chunks: it rests", "chunk 2.0", "waiting 3",
    ]  # fmt: skip
    assert [(chunk.scene, len(chunk.taken)) for chunk in city.chunks] == [
        (None, 0), (Scene("the city.", keep_memory=True), 1), (None, 0),
    ]  # fmt: skip


def test_a_scene_is_made_from_its_caption_and_forgets_unless_it_keeps_the_memory(small_runtime: MakeRuntime) -> None:
    """Frames of the second shot, behind two beginnings, with a scene that forgets and one that keeps."""
    runtime = small_runtime()

    def second(beginning: str, scene: Scene | None) -> bytes:
        entries = (StoryShot(beginning, 1), *([scene] if scene else []), StoryShot("it waves", 1))
        return play_branching(runtime, Story("s", "a cat.", entries)).chunks[1].frames_FHWC.tobytes()

    forgets, keeps = Scene("the sea."), Scene("the sea.", keep_memory=True)
    assert second("it jumps", forgets) == second("it sleeps", forgets)
    assert second("it jumps", keeps) != second("it sleeps", keeps)
    assert second("it jumps", keeps) != second("it jumps", forgets)
    assert second("it jumps", keeps) != second("it jumps", None)


def test_an_open_choice_is_asked_between_two_shots(small_runtime: MakeRuntime) -> None:
    notes = Notes()

    def ask(choice: Choice) -> Option:
        notes.told.append("asked")
        return choice.options[1]

    make_film(small_runtime(), FilmPlan(Telling(BRANCHING, ask=ask)), Film(), notes)
    assert notes.told[:8] == [
        "waiting 0", "shot 0 of None, 1 chunks: it waves", "chunk 0.0",
        "waiting 1", "asked", "chosen city", "scene the city.", "shot 1 of 3, 1 chunks: it walks",
    ]  # fmt: skip


def test_a_caption_that_is_too_long_in_an_option_not_taken_is_refused_before_the_film(
    small_runtime: MakeRuntime,
) -> None:
    notes = Notes()
    late = Option("late", "no", (StoryShot("very " * 30 + "late", 1, line=9),))
    story = Story("s", "a cat.", (StoryShot("it waves", 1), Choice("Where?", (WHERE.options[0], late))))
    with pytest.raises(UserError, match="s, line 9"):
        make_film(small_runtime(), FilmPlan(Telling(story), sinks=[notes]), Film(), notes)
    assert notes.told == []
    assert notes.info is None


def test_chunks_given_by_the_caller_override_the_story(small_runtime: MakeRuntime) -> None:
    film = Film()
    make_film(small_runtime(), FilmPlan(STORY, chunks=1), film, Notes())
    assert film.frames == 18


def test_a_caption_that_is_too_long_is_refused_before_anything_is_opened(small_runtime: MakeRuntime) -> None:
    notes = Notes()
    story = parse_text("a cat.\nit waves\n" + "very " * 30 + "late", "s.txt")
    with pytest.raises(UserError, match=r"s\.txt, line 3"):
        make_film(small_runtime(), FilmPlan(story, sinks=[notes]), Film(), notes)
    assert (notes.info, notes.chunks, notes.closed) == (None, [], [])


def test_when_a_sink_fails_all_are_closed_and_the_film_knows_how_far_it_came(small_runtime: MakeRuntime) -> None:
    good, full, film = Notes(), Notes(fail_at=1), Film()
    with pytest.raises(UserError, match="the disk is full"):
        make_film(small_runtime(), FilmPlan(STORY, sinks=[good, full]), film, Notes())
    assert (good.closed, full.closed) == ([False], [False])
    assert (film.complete, film.shots, film.frames) == (False, 1, 21)


def test_a_sink_that_cannot_finish_does_not_keep_the_others_from_it(
    small_runtime: MakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    good, film = Notes(), Film()
    make_film(small_runtime(), FilmPlan(STORY, chunks=1, sinks=[Failing(), good]), film, Notes())
    assert good.closed == [True]
    assert film.files == [Path("notes")]
    assert "Failing could not finish its work: gone" in caplog.text


def test_sinks_write_and_close_behind_the_shield(small_runtime: MakeRuntime) -> None:
    depth = [0]

    @contextmanager
    def shield() -> Iterator[None]:
        depth[0] += 1
        yield
        depth[0] -= 1

    class Shielded(Notes):
        def write(self, chunk: FilmChunk) -> None:
            assert depth == [1]

        def close(self, complete: bool = True) -> list[Path]:
            assert depth == [1]
            return []

    make_film(small_runtime(), FilmPlan(STORY, chunks=1, sinks=[Shielded()]), Film(), Notes(), shield)
    assert depth == [0]
