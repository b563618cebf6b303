"""The story world: the same story every time, at every resolution, with captions that tell the whole truth."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from shotstream.training.world import (
    is_held_out,
    paraphrased,
    render_shot,
    sample_held_out_story,
    sample_story,
)
from shotstream.training.world import render as render_module
from shotstream.training.world.figures import pose_for
from shotstream.training.world.raster import Canvas
from shotstream.training.world.story import ACTIONS, CAMERAS, COLORS, PLACES, SIZES, SPECIES, TIMES


def test_a_seed_always_tells_the_same_story() -> None:
    assert sample_story(7) == sample_story(7)
    assert sample_story(7) != sample_story(8)
    assert paraphrased(sample_story(7), 3) == paraphrased(sample_story(7), 3)
    np.testing.assert_array_equal(render_shot(sample_story(7), 1, 5), render_shot(sample_story(7), 1, 5))


def test_a_frame_does_not_depend_on_which_other_frames_are_asked_for() -> None:
    story = sample_story(11)
    whole = render_shot(story, 0, 33)
    assert whole.shape == (33, 80, 128, 3)
    assert whole.dtype == np.uint8
    alone = render_shot(story, 0, [20, 4])
    assert np.abs(whole[[20, 4]].astype(int) - alone).max() <= 1


@pytest.mark.parametrize("seed", range(6))
def test_every_resolution_shows_the_same_scene(seed: int) -> None:
    story = sample_story(seed)
    small = render_shot(story, 1, [9])[0].astype(float)
    large = render_shot(story, 1, [9], 160, 256)[0].astype(float)
    halved = large.reshape(80, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(halved - small).mean() < 2.5


def test_captions_name_every_visible_character_and_nothing_else() -> None:
    for seed in range(200):
        story = sample_story(seed)
        for hero in story.characters:
            assert hero.name in story.global_caption
            assert hero.accessory == "none" or f"{hero.accessory_color} {hero.accessory}" in story.global_caption
        assert story.background.place in story.global_caption
        for k, shot in enumerate(story.shots):
            named = {i for i, hero in enumerate(story.characters) if hero.name in story.shot_caption(k)}
            assert named == set(shot.cast)


def test_full_captions_fit_the_text_encoder() -> None:
    """44 words, 48 rows: the encoder also spends a row on every full stop and colon."""
    longest = rows = 0
    for seed in range(300):
        story = sample_story(seed)
        canonical = (story.global_caption, [story.shot_caption(k) for k in range(5)])
        for words, shots in (canonical, paraphrased(story, seed)):
            for k, shot in enumerate(shots):
                full = f"{words}shot{k}:{shot}"
                longest = max(longest, len(full.split()))
                rows = max(rows, len(re.findall(r"[\w-]+|[.:]", full)))
    assert longest <= 44
    assert rows <= 48


def test_the_training_sampler_never_draws_a_held_out_pair() -> None:
    stories = [sample_story(seed) for seed in range(900)]
    assert not any(is_held_out(story) for story in stories)
    assert all(is_held_out(sample_held_out_story(seed)) for seed in range(200))
    assert len({(c.species, c.color) for s in stories for c in s.characters}) == 28
    assert len({(s.background.place, s.background.time) for s in stories}) == 16


def test_the_training_sampler_reaches_every_value_of_every_slot() -> None:
    stories = [sample_story(seed) for seed in range(400)]
    assert {c.species for s in stories for c in s.characters} == set(SPECIES)
    assert {c.color for s in stories for c in s.characters} == set(COLORS)
    assert {s.background.place for s in stories} == set(PLACES)
    assert {s.background.time for s in stories} == set(TIMES)
    assert {shot.size for s in stories for shot in s.shots} == set(SIZES)
    assert {shot.camera for s in stories for shot in s.shots} == set(CAMERAS)
    assert {a for s in stories for shot in s.shots for a in shot.actions} == set(ACTIONS)
    alone = sum(len(s.characters) == 1 for s in stories) / len(stories)
    assert 0.45 < alone < 0.65


def test_an_accessory_never_has_the_colour_of_its_wearer() -> None:
    for seed in range(400):
        assert all(c.accessory_color != c.color for c in sample_story(seed).characters)


def test_every_cut_can_be_seen() -> None:
    differences = []
    for seed in range(15):
        story = sample_story(seed)
        for k in range(1, len(story.shots)):
            before = render_shot(story, k - 1, [32])[0].astype(int)
            after = render_shot(story, k, [0])[0].astype(int)
            differences.append(np.abs(before - after).mean())
    assert min(differences) > 6


def test_nothing_moves_faster_than_a_pixel_per_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    fastest = [0.0]
    original = Canvas._box

    def watch(self: Canvas, cx: object, cy: object, rx: object, ry: object) -> object:
        size = (self.width, self.height)
        for axis, (centre, reach) in enumerate(((cx, rx), (cy, ry))):
            for edge in (np.atleast_1d(centre - reach), np.atleast_1d(centre + reach)):
                seen = (edge[:-1] > 0) & (edge[:-1] < size[axis])
                if len(edge) > 1 and seen.any():
                    fastest[0] = max(fastest[0], float(np.abs(np.diff(edge))[seen].max()))
        return original(self, cx, cy, rx, ry)  # type: ignore[arg-type]

    def wide_awake(*args: object) -> object:  # a blink is a change, not a motion
        return dataclasses.replace(pose_for(*args), eyes=1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(Canvas, "_box", watch)
    monkeypatch.setattr(render_module, "pose_for", wide_awake)
    for seed in range(12):
        story = sample_story(seed)
        for k in range(len(story.shots)):
            render_shot(story, k, 50)
    assert 0.3 < fastest[0] <= 1.0


def test_paraphrases_vary_but_keep_the_number_of_shots() -> None:
    story = sample_story(5)
    worded = {paraphrased(story, seed)[0] for seed in range(30)}
    assert len(worded) > 15
    assert all(len(paraphrased(story, seed)[1]) == len(story.shots) for seed in range(5))
