"""What captions leave open, as signs: complete, and as a fair coin would toss them."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from shotstream.training.world import sample_story
from shotstream.training.world.choices import CHOICES, choices
from shotstream.training.world.story import BELLY_COLORS, HOUSE_COLORS, ROOF_COLORS, Story

STORIES = [sample_story(seed) for seed in range(600)]
SECOND_OF_SIDE, A_SECOND_CLOUD, FEW_SPELLINGS = 1, 51, (*range(5, 11), *range(12, 15))


def number(signs: np.ndarray) -> int:
    """What signs spell, the largest part first."""
    return int("".join("1" if s > 0 else "0" for s in signs), 2)


@pytest.fixture(scope="module")
def first_shots() -> np.ndarray:
    return np.stack([choices(story, 0, (), seed) for seed, story in enumerate(STORIES)])


def test_all_are_signs_and_fair_but_where_things_do_not_come_in_twos(first_shots: np.ndarray) -> None:
    for place, column in enumerate(first_shots.T):
        known = column[~np.isnan(column)]
        assert len(known) > 80
        assert set(known) == {-1, 1}
        bias = 0.3 if place in FEW_SPELLINGS else 0.0
        assert abs(known.mean()) < bias + 4 / len(known) ** 0.5, place


def test_signs_do_not_depend_on_each_other(first_shots: np.ndarray) -> None:
    decided = {SECOND_OF_SIDE, A_SECOND_CLOUD, *FEW_SPELLINGS}  # by other signs, or in part
    free = [i for i in range(CHOICES) if i not in decided]
    for i, k in combinations(free, 2):
        both = ~np.isnan(first_shots[:, i]) & ~np.isnan(first_shots[:, k])
        if both.sum() > 100:
            found = np.corrcoef(first_shots[both, i], first_shots[both, k])[0, 1]
            assert abs(found) < 5 / both.sum() ** 0.5, (i, k)


def test_the_signs_tell_the_choice() -> None:
    for seed, story in enumerate(STORIES[:80]):
        signs, shot, scene = choices(story, 0, (), seed), story.shots[0], story.background
        if len(shot.cast) == 1:
            assert signs[:2].sum() == 2 * shot.side
        else:
            assert signs[0] == shot.side
            assert np.isnan(signs[1])
        assert number(signs[[2, 3, 4, 98]]) == int(16 * shot.blink)
        assert number(signs[5:8]) * 5 // 8 == HOUSE_COLORS.index(scene.house_color)
        assert number(signs[8:11]) * 3 // 8 == ROOF_COLORS.index(scene.roof)
        assert signs[11] == scene.house_side
        assert number(signs[12:15]) * 3 // 8 == len(scene.trees) - 1
        assert np.isnan(signs[15 + 5 * len(scene.trees) : 30]).all()
        assert (signs[51] > 0) == (len(scene.clouds) == 2)
        for who in shot.cast:
            assert number(signs[58 + 6 * who : 60 + 6 * who]) == BELLY_COLORS.index(story.characters[who].belly)


def test_scales_are_cut_into_equal_parts_and_their_ends_belong_to_them() -> None:
    def moved(story: Story, y: float, height: float) -> np.ndarray:
        scene = replace(story.background, sun=(story.background.sun[0], y))
        heroes = tuple(replace(who, height=height) for who in story.characters)
        return choices(replace(story, background=scene, characters=heroes), 0, (), 0)

    one = next(story for story in STORIES if story.shots[0].cast == (0,))
    for y, height, sun, tall in ((0.14, 0.94, 0, 0), (0.2, 0.98, 2, 1), (0.24, 1.05, 3, 3)):
        signs = moved(one, y, height)
        assert (number(signs[49:51]), number(signs[62:64])) == (sun, tall)


def test_small_parts_go_on_where_large_ones_end() -> None:
    for story in STORIES[:80]:
        signs, scene = choices(story, 0, (), 0), story.background
        assert number(signs[[46, 47, 48, 70, 71]]) == int((scene.sun[0] - 0.12) / 0.76 * 32)
        assert number(signs[[49, 50, 72]]) == int((scene.sun[1] - 0.14) / 0.1 * 8)
        assert number(signs[[15, 16, 17, 73, 74]]) == int((abs(scene.trees[0][0]) - 1.0) / 0.4 * 32)
        assert [number(signs[[30 + 2 * i, 31 + 2 * i, 82 + i]]) for i in range(8)] == [
            int(8 * phase) for phase in scene.far_phase
        ]


def test_what_was_shown_is_no_choice_any_more() -> None:
    story = next(s for s in STORIES if s.shots[0].cast == (0, 1))
    later = choices(story, 1, (0,), 3)
    assert np.isnan(later[5:98]).all()
    assert not np.isnan(later[[0, 2, 3, 4, 98]]).any()
    unseen = next(s for s in STORIES if s.shots[0].cast == (0,) and 1 in s.shots[1].cast)
    new = choices(unseen, 1, (0,), 3)
    assert np.isnan(new[5:64]).all()
    assert np.isnan(new[70:96]).all()
    assert not np.isnan(new[[*range(64, 70), 96, 97]]).any(), "the second hero comes in"


def test_a_seed_decides_between_spellings() -> None:
    story = next(s for s in STORIES if s.shots[0].side == 0)
    spelled = [choices(story, 0, (), seed) for seed in range(12)]
    assert np.array_equal(spelled[0], choices(story, 0, (), 0), equal_nan=True)
    assert {tuple(signs[:2]) for signs in spelled} == {(1, -1), (-1, 1)}
    assert len({number(signs[8:11]) for signs in spelled}) > 1
