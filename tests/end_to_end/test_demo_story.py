"""The story of `make demo`: every word one that the embedded model was trained on, and much to see either way."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

from shotstream.runtime.story import load_story
from shotstream.runtime.storyline import Option, Story, StoryShot, Telling
from shotstream.training.world.captions import CAMERA_NAMES, GLOBAL_LENGTH, SHOT_LENGTH, SIZE_NAMES, TIME_NAMES
from shotstream.training.world.story import (
    ACCESSORIES,
    ACCESSORY_COLORS,
    ACTIONS,
    COLORS,
    HELD_OUT_HEROES,
    HELD_OUT_SETTINGS,
    PLACES,
    SPECIES,
)


def any_of(words: object) -> str:
    return f"(?:{'|'.join(words)})"  # type: ignore[arg-type]


WHO = f"{any_of(COLORS)} {any_of(SPECIES)}"
HERO = f"an? {WHO}(?: with a {any_of(ACCESSORY_COLORS)} {any_of(ACCESSORIES[1:])})?"
GLOBAL = re.compile(
    f"A story about {HERO}(?: and {HERO})?\\. Setting: {any_of(PLACES)} {any_of(TIME_NAMES.values())}\\."
)
ACT = f"the {WHO} {any_of(ACTIONS)}"
SHOT = re.compile(f"{any_of(SIZE_NAMES.values())}: {ACT}(?: and {ACT})?(?:, {any_of(CAMERA_NAMES.values())})?\\.")


@pytest.fixture(scope="module")
def story() -> Story:
    with resources.as_file(resources.files("shotstream.runtime") / "stories" / "demo.yaml") as path:
        return load_story(Path(path))


def ways(story: Story) -> list[list[tuple[str, StoryShot]]]:
    """Every way through the story: its shots with their global captions."""
    (choice,) = story.choices
    return [way(story, option) for option in choice.options]


def way(story: Story, option: Option) -> list[tuple[str, StoryShot]]:
    found, about = [], story.global_caption
    for shot in Telling(story, [option]):
        about = shot.scene.global_caption if shot.scene else about
        found.append((about, shot))
    return found


def words(caption: str) -> int:
    return len(re.findall(r"[\w-]+|[.:]", caption))


def test_every_caption_is_worded_as_the_model_learned_it(story: Story) -> None:
    for about, shot in (pair for path in ways(story) for pair in path):
        assert GLOBAL.fullmatch(about), about
        assert SHOT.fullmatch(shot.caption), shot.caption
        assert words(about) <= GLOBAL_LENGTH
        assert words(shot.caption) <= SHOT_LENGTH
        acting = re.findall(f"the ({WHO})", shot.caption)
        assert all(f" {who}" in about for who in acting)
        assert len(acting) == 1 or not shot.caption.startswith("Close-up")
        assert not any(f"{color} {species}" in about for species, color in HELD_OUT_HEROES)
        assert not any(f"{place} {TIME_NAMES[time]}" in about for place, time in HELD_OUT_SETTINGS)


def test_either_way_there_is_much_to_see(story: Story) -> None:
    for path in ways(story):
        scenes = list(dict.fromkeys(about for about, _ in path))
        heroes = [set(re.findall(WHO, about)) for about in scenes]
        shots = [shot for _, shot in path]
        assert 8 <= len(shots) <= 9
        assert 24 <= sum(shot.chunks or 7 for shot in shots) <= 30
        assert [len(who) for who in heroes] == [2, 2]
        assert len(heroes[0] & heroes[1]) == 1
        assert len({about.split("Setting: ")[1] for about in scenes}) == 2
        assert {shot.caption.split(":")[0] for shot in shots} == set(SIZE_NAMES.values())
        assert sum(any(action in shot.caption for shot in shots) for action in ACTIONS) >= 4


def test_the_hero_of_both_scenes_leaves_and_comes_back(story: Story) -> None:
    for path in ways(story):
        present = "".join("x" if "red cat" in shot.caption else "." for _, shot in path)
        assert re.search(r"x\.+x", present)


def test_the_options_show_different_places_and_heroes(story: Story) -> None:
    one, other = ({pair for pair in path if pair not in ways(story)[1 - n]} for n, path in enumerate(ways(story)))
    assert len(one) >= 3
    assert len(other) >= 3
    assert not {about for about, _ in one} & {about for about, _ in other}
