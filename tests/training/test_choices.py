"""What captions leave open, as standard normal numbers: complete, independent of nothing but the choice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shotstream.training.world import sample_story
from shotstream.training.world.choices import CHOICES, choices
from shotstream.training.world.story import BELLY_COLORS, HOUSE_COLORS, ROOF_COLORS, Story

STORIES = [sample_story(seed) for seed in range(600)]


@pytest.fixture(scope="module")
def first_shots() -> np.ndarray:
    return np.stack([choices(story, 0, (), seed) for seed, story in enumerate(STORIES)])


def test_numbers_are_standard_normal_over_the_stories_of_the_sampler(first_shots: np.ndarray) -> None:
    for column in first_shots.T:
        known = column[~np.isnan(column)]
        assert len(known) > 80
        error = 1 / len(known) ** 0.5
        assert abs(known.mean()) < 4 * error
        assert abs(known.std() - 1) < 4 * error
        assert abs((np.abs(known) < 0.6745).mean() - 0.5) < 3 * error, "half of them within the quartiles"


def test_numbers_do_not_depend_on_each_other(first_shots: np.ndarray) -> None:
    for i in range(CHOICES):
        for k in range(i):
            both = ~np.isnan(first_shots[:, i]) & ~np.isnan(first_shots[:, k])
            if both.sum() > 200:
                found = np.corrcoef(first_shots[both, i], first_shots[both, k])[0, 1]
                assert abs(found) < 5 / both.sum() ** 0.5, (i, k)


def test_the_numbers_tell_the_choice() -> None:
    for seed, story in enumerate(STORIES[:80]):
        numbers, shot, scene = choices(story, 0, (), seed), story.shots[0], story.background
        if len(shot.cast) == 1:
            assert numbers[:3].argmax() == shot.side + 1
        else:
            assert (numbers[0] > 0) == (shot.side > 0)
            assert np.isnan(numbers[1:3]).all()
        assert np.arctan2(numbers[4], numbers[3]) / (2 * np.pi) % 1 == pytest.approx(shot.blink, abs=1e-5)
        assert numbers[5:10].argmax() == HOUSE_COLORS.index(scene.house_color)
        assert numbers[10:13].argmax() == ROOF_COLORS.index(scene.roof)
        assert (numbers[13] > 0) == (scene.house_side > 0)
        assert numbers[14:17].argmax() == len(scene.trees) - 1
        assert np.isnan(numbers[17 + 2 * len(scene.trees) : 23]).all()
        assert (numbers[33] > 0) == (len(scene.clouds) == 2)
        for who in shot.cast:
            belly = numbers[38 + 6 * who : 42 + 6 * who]
            assert belly.argmax() == BELLY_COLORS.index(story.characters[who].belly)


def test_a_higher_sun_and_a_taller_hero_have_larger_numbers() -> None:
    def moved(story: Story, y: float, height: float) -> np.ndarray:
        scene = replace(story.background, sun=(story.background.sun[0], y))
        heroes = tuple(replace(who, height=height) for who in story.characters)
        return choices(replace(story, background=scene, characters=heroes), 0, (), 0)

    low, high = (moved(STORIES[0], y, height) for y, height in ((0.15, 0.95), (0.23, 1.04)))
    changed = np.flatnonzero(~np.isclose(low, high, equal_nan=True)).tolist()
    assert changed in ([32, 43], [32, 49], [32, 43, 49])
    assert all(high[i] > low[i] for i in changed)
    assert np.isfinite(moved(STORIES[0], 0.24, 1.05)[changed]).all(), "the ends of a scale too"


def test_what_was_shown_is_no_choice_any_more() -> None:
    story = next(s for s in STORIES if s.shots[0].cast == (0, 1))
    later = choices(story, 1, (0,), 3)
    assert np.isnan(later[5:]).all()
    assert not np.isnan(later[[0, 3, 4]]).any()
    unseen = next(s for s in STORIES if s.shots[0].cast == (0,) and 1 in s.shots[1].cast)
    new = choices(unseen, 1, (0,), 3)
    assert np.isnan(new[5:44]).all()
    assert not np.isnan(new[44:]).any(), "the second hero comes in"


def test_a_seed_decides_what_a_choice_leaves_open() -> None:
    a, b, again = (choices(STORIES[1], 0, (), seed) for seed in (1, 2, 1))
    assert np.array_equal(a, again, equal_nan=True)
    assert not np.array_equal(a, b, equal_nan=True)
    assert a[5:10].argmax() == b[5:10].argmax()
