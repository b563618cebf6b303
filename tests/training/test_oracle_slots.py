"""What the oracle asks about: the labels of true renders, where the heads are, and what a shot cannot show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shotstream.runtime.errors import UserError
from shotstream.training.oracle.slots import FRAME_SLOTS, HERO_SLOTS, head_track, true_labels, unseen, visible
from shotstream.training.world import render_shot, sample_held_out_story, sample_story

STORIES = [sample_story(71_000_000 + i) for i in range(5)] + [sample_held_out_story(71_000_000 + i) for i in range(5)]


def test_labels_say_what_the_story_says() -> None:
    story = sample_story(3)
    labels = true_labels(story, 0, [0, 10])
    assert labels["present"].sum() == 2 * len(story.shots[0].cast)
    assert set(labels) == {"present", "where", *HERO_SLOTS, *FRAME_SLOTS}


def test_heads_are_where_the_track_says() -> None:
    """A hero of another colour changes most pixels around its head."""
    for story in STORIES[:4]:
        shot = story.shots[0]
        index = shot.cast[0]
        who = story.characters[index]
        painted = replace(who, color="blue" if who.color != "blue" else "red")
        heroes = tuple(painted if c is who else c for c in story.characters)
        frames = [0, 16, 32]
        changed = render_shot(replace(story, characters=heroes), 0, frames) != render_shot(story, 0, frames)
        for picture, (x, y) in zip(changed.any(-1), head_track(story, 0, index, frames), strict=True):
            rows, columns = np.nonzero(picture[max(0, int(y) - 4) : int(y) + 5])
            assert len(rows) > 30
            assert abs(columns.mean() + 0.5 - x) < 4


def test_what_a_shot_cannot_show_is_said() -> None:
    story = next(s for i in range(99) if len((s := sample_story(i)).characters) == 2 and len(s.shots[0].cast) == 1)
    there, away = story.shots[0].cast[0], 1 - story.shots[0].cast[0]
    assert visible(story, 0, "color", there)
    assert not visible(story, 0, "color", away)
    assert visible(story, 0, "size")
    tiny = replace(story, characters=tuple(replace(c, height=0.05) for c in story.characters))
    assert not visible(tiny, 0, "belly", there)
    bare = replace(story, characters=tuple(replace(c, accessory="none", accessory_color="") for c in story.characters))
    assert visible(bare, 0, "accessory", there)
    assert not visible(bare, 0, "accessory_color", there)
    assert (story.characters[there].species, "accessory_color") in unseen(bare, 0)
    assert {slot for _, slot in unseen(tiny, 0)} >= {"belly"}


def test_a_house_out_of_the_frame_is_not_asked_about() -> None:
    seen = [visible(s, k, "house_color") for s in STORIES for k in range(5)]
    assert 0.2 < np.mean(seen) < 0.95
    story = STORIES[0]
    shot = replace(story.shots[0], camera="static", cast=(0,), actions=("waves",), side=0, size="close-up")
    for side in (-1, 1):
        stage = replace(story.background, house_side=side)
        hidden = not visible(replace(story, background=stage, shots=(shot,)), 0, "roof")
        labels = true_labels(replace(story, background=stage, shots=(shot,)), 0, range(33))["roof"]
        assert hidden == bool((labels == -1).all())


def test_a_walk_that_has_ended_is_not_asked_about() -> None:
    story = next(s for i in range(99) if len((s := sample_story(i)).shots[0].cast) == 2)
    shot = replace(story.shots[0], actions=("walks left", "walks right"), camera="static")
    walking = replace(story, shots=(shot,))
    assert visible(walking, 0, "action", 0, range(33))
    assert visible(walking, 0, "action", 0, range(69))
    assert not visible(walking, 0, "action", 0, range(57, 69))


def test_unknown_slots_and_missing_heroes_are_explained() -> None:
    with pytest.raises(UserError, match="reads no slot"):
        visible(STORIES[0], 0, "shoes", 0)
    with pytest.raises(UserError, match="pass its index"):
        visible(STORIES[0], 0, "belly")
