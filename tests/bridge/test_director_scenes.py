"""Stories can be saved, scenes begun, and people may cut in at any time."""

from __future__ import annotations

import msgspec
import pytest

from shotstream.bridge.director import CastMember, Director, Event, StoryState, shipped_map
from shotstream.runtime.errors import UserError

CAST = (CastMember("hero", "red cat"), CastMember("friend", "white rabbit"))
TINY, CINEMATIC = Director(shipped_map("tiny")), Director(shipped_map("cinematic"))


def tiny_scene() -> StoryState:
    return TINY.scene(StoryState(), cast=CAST)[0]


def film_scene() -> StoryState:
    return CINEMATIC.scene(StoryState(), cast=[CastMember("june", "June", "a young woman")])[0]


def played(director: Director, state: StoryState, *events: Event):
    directions = []
    for event in events:
        direction, state = director.direct(state, event)
        directions.append(direction)
    return directions, state


# ------------------------------------------------------------------------------------ state
def test_a_state_can_be_saved_and_gone_on_from():
    _, state = played(TINY, tiny_scene(), Event("Player.Wave", "hero"), Event("World.Place", params={"place": "city"}))
    saved = msgspec.msgpack.encode(state)
    assert msgspec.msgpack.decode(saved, type=StoryState) == state


def test_an_event_that_fails_leaves_the_story_as_it_was():
    state = tiny_scene()
    with pytest.raises(UserError):
        TINY.direct(state, Event("World.Place", params={"place": "moon"}))
    assert state == tiny_scene()


def test_the_history_stays_short_however_long_the_film_is():
    _, state = played(TINY, tiny_scene(), *[Event("Player.Wave", "hero")] * 40)
    assert (len(state.shots), state.told) == (16, 40)


# ------------------------------------------------------------------------------------ scenes, cuts, prompts
def test_a_scene_begins_with_an_establishing_shot_again():
    _, state = played(TINY, tiny_scene(), *[Event("Player.Wave", "hero")] * 2)
    state, caption = TINY.scene(state, place="beach", time="at sunset")
    assert caption == "A story about a red cat and a white rabbit. Setting: beach at sunset."
    direction, _ = TINY.direct(state, Event("Player.Wave", "hero"))
    assert direction.size == "wide"
    assert direction.global_caption is None  # scene() has said it


def test_a_place_that_an_event_changes_comes_with_its_shot_and_only_once():
    events = [Event("World.Place", params={"place": "the beach"})] * 2
    (first, second), _ = played(TINY, tiny_scene(), *events)
    assert first.global_caption == "A story about a red cat and a white rabbit. Setting: beach by day."
    assert second.global_caption is None


def test_a_global_caption_of_ones_own_stays_until_the_scene_changes():
    state, caption = TINY.scene(StoryState(), cast=CAST, global_caption="Once upon a time. {{ 7 }}")
    assert caption == "Once upon a time. {{ 7 }}"
    (waves, moves), _ = played(
        TINY, state, Event("Player.Wave", "hero"), Event("World.Place", params={"place": "city"})
    )
    assert waves.global_caption is None
    assert moves.global_caption == "A story about a red cat and a white rabbit. Setting: city by day."


def test_a_prompt_passes_as_it_is_and_the_grammar_goes_on_from_it():
    _, state = played(TINY, tiny_scene(), Event("Player.Wave", "hero"))
    prompt, state = TINY.prompt(state, "Close-up: the white rabbit  says {{ hello }}.", at="next_shot")
    assert prompt.caption == "Close-up: the white rabbit  says {{ hello }}."
    assert (prompt.size, prompt.subject, prompt.at, prompt.rule) == ("close_up", "friend", "next_shot", "prompt")
    direction, _ = TINY.direct(state, Event("Character.Wave", "friend"))
    assert direction.size == "medium"


def test_a_cut_is_worded_unless_it_brings_its_words():
    worded, state = TINY.cut(tiny_scene(), size="close-up", subject="friend")
    assert (worded.caption, worded.at, worded.rule) == ("Close-up: the white rabbit stands still.", "now", "cut")
    given_words, state = TINY.cut(state, "A rabbit.", size="wide", subject="friend")
    assert (given_words.caption, given_words.size, given_words.subject) == ("A rabbit.", "wide", "friend")
    again, _ = TINY.cut(state)
    assert again.caption == "Medium shot: the white rabbit stands still."
    thing, _ = CINEMATIC.cut(film_scene(), subject="the old clock")
    assert (thing.size, thing.subject) == ("insert", "the old clock")


@pytest.mark.parametrize(
    ("cut", "problem"),
    [
        ({"size": "huge"}, "there is no size 'huge'"),
        ({"subject": "nobody"}, "'nobody' is not of the cast"),
        ({"caption": "  "}, "the caption is empty"),
        ({"caption": "x" * 5000}, "longer than 4096 bytes"),
        ({"at": "later"}, "at must be now"),
    ],
)
def test_a_cut_that_cannot_be_made_says_why(cut, problem):
    with pytest.raises(UserError, match=problem):
        TINY.cut(tiny_scene(), **cut)


@pytest.mark.parametrize(
    ("cast", "problem"),
    [
        ([CastMember("a", "red cat"), CastMember("a", "white rabbit")], "two members with the key 'a'"),
        ([CastMember("a b", "red cat")], "'a b' cannot be the key"),
        ([CastMember("a")], "has no name and no description"),
        ([CastMember("a", description="x" * 700)], "has 700 characters; write at most 600"),
        ([CastMember(f"k{n}", "x") for n in range(9)], "9 members; at most 8"),
    ],
)
def test_a_cast_that_cannot_be_used_is_refused(cast, problem):
    with pytest.raises(UserError, match=problem):
        CINEMATIC.scene(StoryState(), cast=cast)
