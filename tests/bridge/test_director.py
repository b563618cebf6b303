"""A director finds the rule, keeps the story, and cuts like an editor."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shotstream.bridge.director import CastMember, Director, Event, StoryState, parse_map, shipped_map
from shotstream.runtime.errors import UserError

CAST = (CastMember("hero", "red cat"), CastMember("friend", "white rabbit"))
PEOPLE = (
    CastMember("june", "June", "a young woman in her twenties with short black hair and a denim jacket"),
    CastMember("mara", "Mara", "an older woman in her sixties with curly grey hair and a beige shirt"),
)
TINY, CINEMATIC = Director(shipped_map("tiny")), Director(shipped_map("cinematic"))


def tiny_scene(**said) -> StoryState:
    return TINY.scene(StoryState(), cast=CAST, **said)[0]


def film_scene(**said) -> StoryState:
    return CINEMATIC.scene(StoryState(), cast=PEOPLE, **said)[0]


def rules(*lines: str, base: str = "cinematic") -> Director:
    return Director(parse_map(f"base: {base}\nrules:\n" + "\n".join(f"  - {line}" for line in lines), "mine.yaml"))


def played(director: Director, state: StoryState, *events: Event):
    directions = []
    for event in events:
        direction, state = director.direct(state, event)
        directions.append(direction)
    return directions, state


# ------------------------------------------------------------------------------------ rules
STORY_RULES = (
    "{kind: '*', action: 'is anywhere'}",
    "{kind: Story.*, action: 'is in a story'}",
    "{kind: Story.Act1.*, action: 'is in the first act'}",
    "{kind: Story.Act1.DoorOpened, action: 'sees the door'}",
    "{kind: Story.Act1.DoorOpened, tags: [slow], action: 'sees the door at last'}",
    "{kind: Story.Act1.DoorOpened, tags: [loud], action: 'starts'}",
)


@pytest.mark.parametrize(
    ("kind", "tags", "said"),
    [
        ("Story.Act1.DoorOpened", (), "sees the door."),
        ("Story.Act1.DoorOpened", ("slow",), "sees the door at last."),
        ("Story.Act1.DoorOpened", ("loud", "slow"), "sees the door at last."),  # a tie goes to the first
        ("Story.Act1.Rain", ("slow",), "is in the first act."),
        ("Story.Act1.Rain.Heavy", (), "is in the first act."),
        ("Story.Act2", (), "is in a story."),
        ("Story", (), "is anywhere."),
        ("Storys.Act1", (), "is anywhere."),
    ],
)
def test_the_most_specific_rule_decides(kind, tags, said):
    direction, _ = rules(*STORY_RULES).direct(film_scene(), Event(kind, "june", tags=tags))
    assert f"June {said}" in direction.caption


@given(st.lists(st.sampled_from(["A", "B", "C"]), min_size=1, max_size=4), st.data())
@settings(max_examples=60, deadline=None)
def test_a_rule_that_says_more_of_the_kind_beats_one_that_says_less(words, data):
    kind = ".".join(words)
    patterns = ["*", *(".".join(words[:n]) + ".*" for n in range(1, len(words))), kind]
    there = data.draw(st.lists(st.sampled_from(patterns), min_size=1, unique=True))
    director = rules(*(f"{{kind: '{pattern}', action: waits}}" for pattern in there))
    direction, _ = director.direct(film_scene(), Event(kind, "june"))
    assert direction.rule == max(there, key=patterns.index)


def test_an_event_without_a_rule_names_the_nearest_kinds():
    with pytest.raises(UserError, match=r"tiny\.yaml has no rule for the event Player\.Wavee; .*Player\.Wave"):
        TINY.direct(tiny_scene(), Event("Player.Wavee", "hero"))
    with pytest.raises(UserError, match=r"Story\.Door needs tags: mine\.yaml has Story\.Door slow"):
        rules("{kind: Story.Door, tags: [slow], action: waves}", base="tiny").direct(tiny_scene(), Event("Story.Door"))


def test_the_fallback_shows_whoever_and_whatever_the_event_names():
    (someone, thing, nobody), _ = played(
        CINEMATIC, film_scene(), Event("Quest.Done", "june", "smiles"), Event("Quest.Lost", target="the empty chest"),
        Event("Quest.Late"),
    )  # fmt: skip
    assert (someone.rule, someone.subject, thing.subject, nobody.subject) == ("*", "june", "the empty chest", "june")
    assert "June smiles." in someone.caption


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        (Event("Player.Wave"), "needs an actor; known are hero and friend"),
        (Event("Player.Wave", "heroo"), "actor 'heroo' is not of the cast; the nearest is hero"),
        (Event("Player.Meet", "hero"), "needs a target"),
        (Event("Player.Meet", "hero", target="the moon"), "target 'the moon' is not of the cast"),
        (Event("World.Place"), "needs the param 'place', for example 'beach'"),
        (Event("Player.Act", "hero"), "needs an action for 'hero'; actions are stands still, walks left"),
        (Event("Player.Wave", "hero", at="soon"), "at must be now, next_chunk, next_shot or auto, not 'soon'"),
        (Event("Player Wave", "hero"), "is no kind of event"),
        (Event("Player.Wave", "hero", params={"size": "huge"}), "no size 'huge'; there is wide, medium and close_up"),
        (Event("Player.Wave", "hero", params={"camera": "fly"}), "no camera move 'fly'; there is static, push in"),
    ],
)
def test_an_event_that_cannot_be_shown_says_what_is_missing(event, problem):
    with pytest.raises(UserError, match=problem):
        TINY.direct(tiny_scene(), event)


# ------------------------------------------------------------------------------------ urgency
def test_what_the_player_does_is_shown_now_and_what_others_do_waits():
    (player, other), _ = played(TINY, tiny_scene(), Event("Player.Wave", "hero"), Event("Character.Wave", "friend"))
    assert (player.at, other.at) == ("now", "next_shot")


def test_the_event_itself_may_say_when():
    direction, _ = TINY.direct(tiny_scene(), Event("Player.Wave", "hero", at="next_chunk"))
    assert direction.at == "next_chunk"


# ------------------------------------------------------------------------------------ shot grammar
def test_a_scene_opens_wide_and_comes_closer():
    waves = [Event("Player.Wave", "hero")] * 5
    directions, _ = played(TINY, tiny_scene(), *waves)
    assert [d.size for d in directions] == ["wide", "medium", "close_up", "medium", "close_up"]


def test_another_subject_gets_the_reverse_shot_of_the_same_size():
    events = [Event("Player.Wave", "hero")] * 3 + [Event("Character.Wave", "friend"), Event("Player.Wave", "hero")]
    directions, _ = played(TINY, tiny_scene(), *events)
    assert [(d.size, d.subject) for d in directions[2:]] == [
        ("close_up", "hero"), ("close_up", "friend"), ("close_up", "hero"),
    ]  # fmt: skip


def test_a_second_subject_moves_the_camera_back():
    events = [Event("Player.Wave", "hero")] * 3 + [Event("Player.Meet", "hero", target="friend")]
    directions, _ = played(TINY, tiny_scene(), *events)
    assert (directions[-1].size, directions[-1].subject) == ("medium", "hero+friend")


def test_a_verb_on_a_thing_is_an_insert_of_the_thing_once_the_place_was_seen():
    opens = Event("Player.Use", "june", "opens", "the heavy door")
    (first, second, third), _ = played(CINEMATIC, film_scene(), opens, opens, opens)
    assert (first.size, second.size, second.subject) == ("wide", "insert", "the heavy door")
    assert third.size != "insert"


def test_rules_and_events_overrule_the_grammar():
    director = rules("{kind: Look, size: close_up, angle: low, camera: handheld, action: stares}")
    (first, second), _ = played(
        director, film_scene(), Event("Look", "june"), Event("Look", "june", params={"size": "Medium", "angle": "high"})
    )
    assert (first.size, second.size) == ("close_up", "medium")
    assert "taken from a low angle" in first.caption
    assert "The camera is handheld" in first.caption
    assert "taken from a high angle" in second.caption


def test_who_has_left_is_not_in_the_next_shot_of_everyone():
    (leaving, after, back), _ = played(
        TINY,
        tiny_scene(),
        Event("Character.Leave", "friend"),
        Event("Camera.Everyone"),
        Event("Character.Enter", "friend"),
    )
    assert (leaving.subject, after.subject, back.subject) == ("hero+friend", "hero", "hero+friend")


EVENTS = st.builds(
    Event,
    kind=st.sampled_from(
        ["Player.Use", "Character.Speak", "Character.Meet", "World.View", "World.Mood", "Other.Thing"]
    ),
    actor=st.sampled_from(["june", "mara"]),
    action=st.sampled_from(["opens", "smiles", "waits"]),
    target=st.sampled_from(["june", "mara"]),
    params=st.just({"mood": "tense"}),
) | st.builds(
    Event,
    kind=st.sampled_from(["Player.Use", "Player.Walk", "World.View", "Anything"]),
    actor=st.sampled_from(["june", "mara"]),
    action=st.sampled_from(["opens", "picks up", "waits near"]),
    target=st.sampled_from(["the box", "the door", ""]),
)


@given(st.lists(EVENTS, min_size=2, max_size=12), st.integers(-5, 5))
@settings(max_examples=80, deadline=None)
def test_two_shots_in_a_row_never_have_the_same_size_and_subject(events, seed):
    state = CINEMATIC.scene(StoryState(seed=seed), cast=PEOPLE)[0]
    events = [event for event in events if event.kind != "World.View"]  # its rule asks for a size
    directions, _ = played(CINEMATIC, state, *events)
    pairs = [(d.size, d.subject) for d in directions]
    assert all(before != after for before, after in pairwise(pairs))


@given(st.lists(EVENTS, max_size=8), st.integers())
@settings(max_examples=50, deadline=None)
def test_the_same_story_is_told_the_same_way_every_time(events, seed):
    state = CINEMATIC.scene(StoryState(seed=seed), cast=PEOPLE)[0]
    other = Director(shipped_map.__wrapped__("cinematic"))
    assert played(CINEMATIC, state, *events) == played(other, state, *events)


def test_another_seed_takes_other_angles():
    event = Event("Player.Act", "june", "waits")
    captions = {CINEMATIC.direct(film_scene_with_seed(seed), event)[0].caption for seed in range(3)}
    assert len(captions) == 3


def film_scene_with_seed(seed: int) -> StoryState:
    return CINEMATIC.scene(StoryState(seed=seed), cast=PEOPLE)[0]
