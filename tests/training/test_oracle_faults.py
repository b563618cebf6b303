"""Faults planted in films are caught by the oracle, each by its own slot or detector, on every story tried.

A fault is planted by rendering the story with one field changed, so what the frames show is known exactly.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from shotstream.training.oracle.check import reading_errors
from shotstream.training.oracle.reader import Reader, load_reader
from shotstream.training.oracle.slots import FRAME_SLOTS, HERO_SLOTS, visible
from shotstream.training.world import Character, Shot, Story, render_shot, sample_held_out_story, sample_story
from shotstream.training.world.story import (
    ACCESSORIES,
    ACTIONS,
    BELLY_COLORS,
    COLORS,
    HOUSE_COLORS,
    PLACES,
    ROOF_COLORS,
    SIZES,
    SPECIES,
    TIMES,
)

Frames = NDArray[np.uint8]
# Neither training nor evaluations nor the reader's own training see these seeds.
STORIES = [sample_story(70_000_000 + i) for i in range(4)] + [sample_held_out_story(70_000_000 + i) for i in range(2)]
SHOTS = [(story, k) for story in STORIES for k in (0, 2, 4)]
STRAYS = 3
"""Readings that may be wrong in a test though nothing is wrong with what they read, of 18 shots. Measured with the
shipped weights: 3 accessories where heroes are recoloured, 3 walks to the left read as standing, at most 1 elsewhere.
On true renders of 40 stories (200 shots) the reader errs in 0.8 % of the accessories and 1.1 % of the actions."""


@pytest.fixture(scope="module")
def reader() -> Reader:
    return load_reader()


def _next(values: tuple[str, ...], value: str, *but: str) -> str:
    """Another value: the one that follows, skipping `but`."""
    rest = [v for v in (*values, *values)[values.index(value) + 1 :] if v not in (value, *but)]
    return rest[0]


def _with_heroes(story: Story, change: dict[str, tuple[str, ...]]) -> Story:
    """Every hero with another value of these fields."""
    taken = {getattr(c, name) for c in story.characters for name in change}

    def other(who: Character) -> Character:
        return replace(who, **{n: _next(v, getattr(who, n), *taken, who.accessory_color) for n, v in change.items()})

    return replace(story, characters=tuple(other(c) for c in story.characters))


def _with_scene(story: Story, **fields: str | int) -> Story:
    return replace(story, background=replace(story.background, **fields))  # type: ignore[arg-type]


def _with_shot(story: Story, k: int, shot: Shot) -> Story:
    return replace(story, shots=(*story.shots[:k], shot, *story.shots[k + 1 :]))


def _wrong(reader: Reader, story: Story, k: int, frames: Frames) -> dict[str, list[bool]]:
    return reading_errors(story, k, reader.read_shot(frames), range(len(frames)))


def _catch(reader: Reader, story: Story, k: int, frames: Frames, slot: str) -> bool:
    """Asserts that every reading of the slot is wrong; tells whether another slot of the same kind is, too."""
    wrong = _wrong(reader, story, k, frames)
    assert all(wrong[slot]), f"{slot} was not caught in shot {k} of story {story.seed}"
    kind = HERO_SLOTS if slot in HERO_SLOTS else FRAME_SLOTS
    return any(any(wrong.get(name, [])) for name in kind if name != slot)


@pytest.mark.parametrize(("slot", "values"), [("color", COLORS), ("belly", BELLY_COLORS)])
def test_another_colour_of_a_hero_is_caught(reader: Reader, slot: str, values: tuple[str, ...]) -> None:
    strays = [_catch(reader, story, k, render_shot(_with_heroes(story, {slot: values}), k), slot) for story, k in SHOTS]
    assert sum(strays) <= STRAYS


def test_another_species_is_caught(reader: Reader) -> None:
    for story, k in SHOTS:
        frames = render_shot(_with_heroes(story, {"species": SPECIES}), k)
        assert _wrong(reader, story, k, frames)["species"] == [True]


@pytest.mark.parametrize("put", ["taken away", "replaced"])
def test_a_wrong_accessory_is_caught(reader: Reader, put: str) -> None:
    tried = 0
    for story, k in SHOTS:
        heroes = []
        for who in story.characters:
            kind = "none" if put == "taken away" else _next(ACCESSORIES, who.accessory, "none")
            paint = who.accessory_color or ("blue" if who.color == "white" else "white")
            heroes.append(replace(who, accessory=kind, accessory_color="" if kind == "none" else paint))
        faulty = replace(story, characters=tuple(heroes))
        reading = reader.read_shot(render_shot(faulty, k))
        for index in story.shots[k].cast:
            before, after = story.characters[index], heroes[index]
            if before.accessory != after.accessory:
                tried += 1
                assert reading.of_hero(before.species, "accessory") == after.accessory
    assert tried >= 8


@pytest.mark.parametrize(("slot", "values"), [("house_color", HOUSE_COLORS), ("roof", ROOF_COLORS)])
def test_another_house_is_caught(reader: Reader, slot: str, values: tuple[str, ...]) -> None:
    strays = []
    for story, k in SHOTS:
        if visible(story, k, slot):
            faulty = _with_scene(story, **{slot: _next(values, getattr(story.background, slot))})
            strays.append(_catch(reader, story, k, render_shot(faulty, k), slot))
    assert len(strays) >= 6
    assert sum(strays) <= STRAYS


def test_a_house_on_the_other_side_is_caught(reader: Reader) -> None:
    tried = 0
    for story, k in SHOTS:
        faulty = _with_scene(story, house_side=-story.background.house_side)
        if visible(faulty, k, "house_side") and visible(story, k, "house_side"):
            tried += 1
            assert _wrong(reader, story, k, render_shot(faulty, k))["house_side"] == [True]
    assert tried >= 2


@pytest.mark.parametrize(("slot", "values"), [("place", PLACES), ("time", TIMES)])
def test_another_place_or_time_is_caught(reader: Reader, slot: str, values: tuple[str, ...]) -> None:
    strays = []
    for story, k in SHOTS:
        faulty = _with_scene(story, **{slot: _next(values, getattr(story.background, slot))})
        strays.append(_catch(reader, story, k, render_shot(faulty, k), slot))
    assert sum(strays) <= STRAYS


def test_another_size_is_caught(reader: Reader) -> None:
    for story, k in SHOTS:
        shot = story.shots[k]
        but = ("close-up",) if len(shot.cast) == 2 else ()
        faulty = _with_shot(story, k, replace(shot, size=_next(SIZES, shot.size, *but)))
        assert _wrong(reader, story, k, render_shot(faulty, k))["size"] == [True]


@pytest.mark.parametrize("action", ACTIONS)
def test_actions_are_told_from_their_stills_their_reverse_and_each_other(reader: Reader, action: str) -> None:
    reverse = {"walks left": "walks right", "walks right": "walks left"}.get(action, action)
    misses: list[str] = []
    for story, k in SHOTS:
        shot = story.shots[k]
        # A world in which someone walks while the camera moves is not sampled; see story.py.
        acts = replace(shot, actions=(action,) * len(shot.cast), camera="static")
        played = _with_shot(story, k, acts)
        frames = render_shot(played, k)
        heroes = [i for i in shot.cast if visible(played, k, "action", i)]
        assert heroes, "every action can be seen in a shot of its own"
        for show, name in ((frames, action), (frames[::-1], reverse), (frames[[11] * 33], "stands still")):
            reading = reader.read_shot(show)
            for index in heroes:
                said = reading.of_hero(story.characters[index].species, "action")
                if said != name:
                    misses.append(f"{action} as {name}: {said} in shot {k} of story {story.seed}")
    assert len(misses) <= STRAYS, misses
