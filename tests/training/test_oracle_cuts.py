"""Cuts, fades and pops: found where they are planted, and nowhere in true renders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from shotstream.training.oracle.cuts import THRESHOLD, calibrate, find_cuts, find_fades, find_pops
from shotstream.training.world import render_shot, sample_held_out_story, sample_story

STORIES = [sample_story(71_000_000 + i) for i in range(5)] + [sample_held_out_story(71_000_000 + i) for i in range(5)]
SHOTS = [(story, k) for story in STORIES[::2] for k in (0, 2, 4)]


def test_the_cut_threshold_lies_between_motion_and_cuts() -> None:
    inside, across = calibrate([[render_shot(s, k) for k in range(4)] for s in STORIES])
    assert inside < THRESHOLD < across


def test_true_shots_have_neither_cuts_nor_fades_nor_pops() -> None:
    for story in STORIES:
        for k in range(5):
            frames = render_shot(story, k)
            assert not find_cuts(frames)
            assert not find_fades(frames)
            assert not find_pops(frames)


def test_a_cut_inside_a_shot_and_a_missing_one_are_found() -> None:
    for story in STORIES:
        shots = [render_shot(story, k) for k in range(3)]
        assert find_cuts(np.concatenate(shots)) == [33, 66]
        assert find_cuts(np.concatenate((shots[0][:20], shots[1][:13], shots[2]))) == [20, 33]
        # One shot played on where the next should begin.
        assert find_cuts(np.concatenate((render_shot(story, 0, 66), shots[1]))) == [66]


@pytest.mark.parametrize("length", [5, 12, 20])
def test_a_slow_fade_at_a_chunk_seam_is_no_cut_but_is_reported(length: int) -> None:
    for story in STORIES:
        before, after = (render_shot(story, k, 33).astype(np.float64) for k in (0, 1))
        seam = 12
        share = np.clip((np.arange(33) - seam + 1) / length, 0, 1)[:, None, None, None]
        film = np.round(before * (1 - share) + after * share).astype(np.uint8)
        fades = find_fades(film)
        assert len(fades) == 1
        assert fades[0][0] <= seam + length / 2 <= fades[0][1]
        assert not find_fades(np.concatenate([render_shot(story, k) for k in range(5)]))


def test_a_figure_that_pops_away_is_reported() -> None:
    for story, k in SHOTS:
        gone = replace(story, characters=tuple(replace(c, height=0.01) for c in story.characters))
        frames, empty = render_shot(story, k), render_shot(gone, k)
        frames[14:18] = empty[14:18]
        assert find_pops(frames) == [(14, 17)]
        assert not find_pops(render_shot(story, k))
