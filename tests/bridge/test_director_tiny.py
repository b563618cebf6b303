"""The director of `tiny` speaks the language of the story world: every caption is one that a story of it could have."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shotstream.bridge.director import CastMember, Director, Event, StoryState, parse_map, shipped_map
from shotstream.runtime.errors import UserError
from shotstream.runtime.storyline import full_caption
from shotstream.runtime.text.tiny import TinyTextConfig, words
from shotstream.training.world import Shot, Story, captions, sample_story
from shotstream.training.world import story as world

TINY = Director(shipped_map("tiny"))
CAST = (
    CastMember("hero", "Tom", "a red cat with a blue scarf"),
    CastMember("friend", "white rabbit"),
    CastMember("stranger", description="green robot with a yellow top hat"),
)
SIZES = {name: key for key, name in captions.SIZE_NAMES.items()}
CAMERAS = {name: key for key, name in captions.CAMERA_NAMES.items()}
TIMES = {name: key for key, name in captions.TIME_NAMES.items()}


def one_of(known) -> str:
    return f"({'|'.join(known)})"


def story_of(global_caption: str, shot_caption: str) -> Story:
    """The world's story that these captions tell, read with the world's own words."""
    whole = re.fullmatch(r"A story about (.+)\. Setting: (\w+) (.+)\.", global_caption)
    heroes = []
    for number, text in enumerate(whole[1].split(" and ")):
        worn = f"(?: with an? {one_of(world.ACCESSORY_COLORS)} {one_of(world.ACCESSORIES[1:])})?"
        colour, species, worn_colour, worn = re.fullmatch(
            rf"an? {one_of(world.COLORS)} {one_of(world.SPECIES)}{worn}", text
        ).groups()
        hero = dataclasses.replace(
            sample_story(number).characters[0],
            color=colour, species=species, accessory=worn or "none", accessory_color=worn_colour or "",
        )  # fmt: skip
        heroes.append(hero)
    shot = re.fullmatch(rf"{one_of(SIZES)}: (.+?)(?:, {one_of(CAMERAS)})?\.", shot_caption)
    cast, actions = [], []
    for act in shot[2].split(" and "):
        colour, species, action = re.fullmatch(
            rf"the {one_of(world.COLORS)} {one_of(world.SPECIES)} {one_of(world.ACTIONS)}", act
        ).groups()
        cast.append([hero.name for hero in heroes].index(f"{colour} {species}"))
        actions.append(action)
    place = dataclasses.replace(sample_story(0).background, place=whole[2], time=TIMES[whole[3]])
    made = Shot(SIZES[shot[1]], tuple(cast), tuple(actions), CAMERAS.get(shot[3], "static"), 0, 0.0)
    return Story(0, tuple(heroes), place, (made,))


def assert_the_world_could_tell_it(global_caption: str, shot_caption: str) -> None:
    story = story_of(global_caption, shot_caption)
    assert (story.global_caption, story.shot_caption(0)) == (global_caption, shot_caption)
    assert story.background.place in world.PLACES
    shot = story.shots[0]
    assert list(shot.cast) == sorted(set(shot.cast))  # the first one named stands on the left
    assert shot.size != "close-up" or len(shot.cast) == 1
    assert shot.camera == "static" or not any(action.startswith("walks") for action in shot.actions)
    assert (
        len({hero.species for hero in story.characters})
        == len({h.color for h in story.characters})
        == len(story.characters)
    )
    assert all(hero.accessory_color != hero.color for hero in story.characters)
    assert len(words(full_caption(global_caption, 10, shot_caption))) <= TinyTextConfig().length


def test_the_map_has_exactly_the_words_of_the_world():
    language, chart = TINY.chart.language, TINY.chart
    assert language.species == world.SPECIES
    assert language.colours == world.COLORS
    assert language.accessories == world.ACCESSORIES[1:]
    assert language.accessory_colours == world.ACCESSORY_COLORS
    assert language.places == world.PLACES
    assert language.times == captions.TIME_NAMES
    assert tuple(language.actions) == world.ACTIONS
    assert tuple(chart.cameras) == world.CAMERAS
    assert [size.words for size in chart.sizes.values()] == [captions.SIZE_NAMES[size] for size in world.SIZES]
    assert {words.removeprefix(", ") for words in chart.cameras.values() if words} == set(CAMERAS)


def test_a_story_told_by_events():
    state, caption = TINY.scene(StoryState(), cast=CAST)
    told = [caption]
    for event in (
        Event("Character.Greet", "friend"),
        Event("Player.Walk", "hero", params={"direction": "left"}),
        Event("Player.Act", "hero", "dance"),
        Event("Character.Wait", "friend"),
        Event("Player.Meet", "hero", target="friend"),
        Event("World.Time", params={"time": "night"}),
        Event("Character.Jump", "stranger"),
    ):
        direction, state = TINY.direct(state, event)
        told += [direction.global_caption] * (direction.global_caption is not None) + [direction.caption]
    assert told == [
        "A story about a red cat with a blue scarf and a white rabbit. Setting: meadow by day.",
        "Wide shot: the red cat stands still and the white rabbit waves.",
        "Medium shot: the red cat walks left.",
        "Close-up: the red cat dances, the camera pushes in.",
        "Close-up: the white rabbit stands still.",
        "Medium shot: the red cat waves and the white rabbit waves, the camera pushes in.",
        "A story about a red cat with a blue scarf and a white rabbit. Setting: meadow at night.",
        "Wide shot: the red cat stands still and the white rabbit stands still.",
        # Only two heroes fit into a story of this world: the stranger takes the first one's place.
        "A story about a green robot with a yellow top hat and a white rabbit. Setting: meadow at night.",
        "Wide shot: the green robot jumps and the white rabbit stands still.",
    ]


KEYS = st.sampled_from(["hero", "friend", "stranger"])
LOOKS = st.builds(
    "{} {}{}".format,
    st.sampled_from(world.COLORS),
    st.sampled_from(world.SPECIES),
    st.sampled_from(["", " with a blue scarf", " with a red top hat", " with a yellow party hat"]),
)
EVENTS = st.builds(
    Event,
    kind=st.sampled_from([kind for rule in TINY.chart.rules if "*" not in (kind := rule.kind)]),
    actor=KEYS | st.just("newcomer"),
    action=st.sampled_from([*world.ACTIONS, "wave", "walk", "sing"]),
    target=KEYS,
    params=st.fixed_dictionaries(
        {
            "place": st.sampled_from(world.PLACES),
            "time": st.sampled_from(world.TIMES),
            "looks": LOOKS,
            "direction": st.sampled_from(["left", "right"]),
        },
        optional={
            "size": st.sampled_from(["wide", "medium", "close-up"]),
            "camera": st.sampled_from(world.CAMERAS),
        },
    ),
)


@given(st.lists(EVENTS, max_size=12), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_every_caption_is_one_that_a_story_of_the_world_could_have(events, seed):
    state, in_force = TINY.scene(StoryState(seed=seed), cast=CAST)
    last = None
    for event in events:
        try:
            direction, state = TINY.direct(state, event)
        except UserError:
            continue
        in_force = direction.global_caption or in_force
        assert_the_world_could_tell_it(in_force, direction.caption)
        assert state.global_caption == in_force
        now = (direction.size, direction.subject)
        asked_for = "size" in event.params or TINY.chart.match(event).size
        assert now != last or asked_for or direction.global_caption
        last = now


@given(st.lists(st.sampled_from(["hero", "friend", "hero+friend", None]), max_size=6))
@settings(max_examples=40, deadline=None)
def test_cuts_stay_in_the_world_too(subjects):
    state, in_force = TINY.scene(StoryState(), cast=CAST[:2])
    for subject in subjects:
        direction, state = TINY.cut(state, subject=subject)
        assert_the_world_could_tell_it(in_force, direction.caption)


@pytest.mark.parametrize("said", ["place", "time"])
def test_every_place_and_time_of_the_world_can_be_a_scene(said):
    for value in world.PLACES if said == "place" else world.TIMES:
        _, caption = TINY.scene(StoryState(), cast=CAST[:1], **{said: value})
        assert story_of(caption, "Wide shot: the red cat waves.").global_caption == caption


@pytest.mark.parametrize(
    ("description", "problem"),
    [
        (
            "turquoise cat",
            r"cast member 'hero': this model does not know the colour 'turquoise'; its colours are red, or",
        ),
        ("red dragon", "does not know the species 'dragon'; its species are cat, bear, rabbit and robot"),
        ("red cat with a blue cape", "does not know the accessory 'cape'; its accessories are top hat"),
        ("red cat with a green scarf", "does not know the accessory colour 'green'; its accessory colours are red"),
        ("red cat with a red scarf", "a red hero wears another colour than red: yellow, blue or white"),
        ("somebody", "'somebody' is no hero this model knows; write colour and species, as in 'a red cat with a"),
        ("red cat. Setting: moon", "does not know the species"),
    ],
)
def test_a_hero_the_model_does_not_know_is_refused_with_what_it_knows(description, problem):
    with pytest.raises(UserError, match=problem):
        TINY.scene(StoryState(), cast=[CastMember("hero", description=description)])


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        (
            Event("Player.Act", "hero", "flies"),
            "event Player.Act: this model does not know the action 'flies'; its actions",
        ),
        (Event("Player.Walk", "hero", params={"direction": "up"}), "does not know the action 'walks up'"),
        (Event("World.Place", params={"place": "the moon"}), "does not know the place 'moon'; its places are meadow"),
        (Event("World.Time", params={"time": "noon"}), "does not know the time 'noon'; its times are day, sunset and"),
        (Event("Character.Join", "x", params={"looks": "red dog"}), "species 'dog'"),
        (Event("Character.Join", "x", params={"looks": "blue rabbit"}), "'friend' are both rabbit|are both rabbit"),
        (Event("Player.Walk", "hero", params={"camera": "push in"}), "the camera is static while somebody walks right"),
    ],
)
def test_an_event_outside_the_world_is_refused_with_what_is_known(event, problem):
    state, _ = TINY.scene(StoryState(), cast=CAST[:2])
    with pytest.raises(UserError, match=problem):
        TINY.direct(state, event)


def test_a_scene_without_heroes_is_refused():
    with pytest.raises(UserError, match="nobody is in the scene; give it a cast first"):
        TINY.scene(StoryState())
    with pytest.raises(UserError, match="leave short out"):
        TINY.scene(StoryState(), cast=[CastMember("a", "red cat", short="the boss")])


def test_somebody_may_join_a_story_that_began_without_a_cast():
    direction, state = TINY.direct(StoryState(), Event("Character.Join", "bob", params={"looks": "an orange bear"}))
    assert direction.global_caption == "A story about an orange bear. Setting: meadow by day."
    assert direction.caption == "Wide shot: the orange bear waves."
    assert state.member("bob").short == "the orange bear"


def test_a_rule_of_ones_own_cannot_word_what_the_model_cannot_read():
    own = "base: tiny\nrules:\n  - {kind: Sing, caption: 'Wide shot: the {{ actor.name }} sings.'}"
    with pytest.raises(UserError, match=r"own\.yaml: rules\[0\].*cannot read 'Wide shot: the red cat sings\.'"):
        parse_map(own, "own.yaml")
