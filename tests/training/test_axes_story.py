"""The axes on the story world: true renders reach the ceiling, and a planted fault lowers its own axes and no others.

Faults are planted by rendering the story with one field changed, so what the frames show is known exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from shotstream.training.evaluation import evaluate as evaluation
from shotstream.training.evaluation.axes import AXES, Axes, Pace, axes_lines, cut_tallies
from shotstream.training.evaluation.cuts import CutFinder, oracle_cuts
from shotstream.training.evaluation.evaluate import read_story
from shotstream.training.evaluation.sources import Frames, renders_of
from shotstream.training.evaluation.story_axes import agreement_above_chance, read_film, story_axes
from shotstream.training.oracle.reader import Reader, load_reader
from shotstream.training.world import Character, Shot, Story, render_shot, sample_story
from shotstream.training.world.story import BELLY_COLORS, COLORS, HOUSE_COLORS

SHOWN = 33  # frames
FADE, LATE = 20, 28
"""Between these frames a shot turns into another: late enough for most of its frames to be true, and no cut."""
MEASURED = [axis for axis in AXES if axis not in ("fps", "chunk_latency")]
FALL = 0.1
"""What counts as a fall; the oracle's own errors are smaller, see the ceilings below."""


def _framed(size: str, action: str, side: int) -> Shot:
    return Shot(size, (0,), (action,), "static", side, 0.3)


def _story(seed: int) -> Story:
    """A hero in three shots that show all there is to read."""
    story = sample_story(70_000_000 + seed, 3)
    hero = replace(story.characters[0], home_x=0.0)
    house = replace(story.background, house_side=1)
    shots = (_framed("wide", "waves", -1), _framed("medium", "dances", -1), _framed("wide", "jumps", 1))
    return replace(story, characters=(hero,), background=house, shots=shots)


STORIES = [_story(seed) for seed in (1, 2)]  # two with other bellies and houses, and an accessory
Films = Callable[[Story], list[Frames]]


@pytest.fixture(scope="module", autouse=True)
def everything_is_seen() -> Iterator[None]:
    """These shots show everything; to ask the oracle for that costs many renders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "unseen", lambda story, k, frames: frozenset())
        yield


@pytest.fixture(scope="module")
def reader() -> Reader:
    return load_reader()


def measured(reader: Reader, films: Films, asked: Callable[[Story], Story] = lambda story: story,
             find: CutFinder | None = None) -> Axes:  # fmt: skip
    """The axes of `films` of the stories, judged by the stories that were `asked` for."""
    found = []
    for story in STORIES:
        shots = films(story)
        found.append(read_film(read_story(asked(story), shots, reader), shots, reader,
                               find or oracle_cuts(torch.device("cpu"))))  # fmt: skip
    return story_axes("films", found)


@pytest.fixture(scope="module")
def ceiling(reader: Reader, everything_is_seen: None) -> Axes:
    return measured(reader, renders_of)


def fallen(axes: Axes, ceiling: Axes) -> set[str]:
    return {axis for axis in MEASURED if axes.scores[axis].mean < ceiling.scores[axis].mean - FALL}


def _next(values: Sequence[str], value: str, steps: int = 1) -> str:
    return values[(values.index(value) + steps) % len(values)]


def _hero(story: Story, change: Callable[[Character], Character]) -> Story:
    return replace(story, characters=tuple(change(c) for c in story.characters))


def _house(story: Story, steps: int) -> Story:
    color = _next(HOUSE_COLORS, story.background.house_color, steps)
    return replace(story, background=replace(story.background, house_color=color))


def _late(story: Story, other: Story) -> list[Frames]:
    """Shots that turn into those of the other story."""
    share = np.clip((np.arange(SHOWN) - FADE) / (LATE - FADE), 0, 1)[:, None, None, None]
    pairs = zip(renders_of(story), renders_of(other), strict=True)
    return [((1 - share) * before + share * after).round().astype(np.uint8) for before, after in pairs]


def _each_of_another(change: Callable[[Story, int], Story]) -> Films:
    """Shot k of the story `change(story, k)`."""
    return lambda story: [render_shot(change(story, k), k) for k in range(len(story.shots))]


def test_true_renders_reach_one_on_every_axis(ceiling: Axes) -> None:
    assert set(ceiling.scores) == set(MEASURED)
    assert ceiling.scores["intra_subject"].mean >= 0.95  # the reader errs in single frames
    assert all(ceiling.scores[axis].mean == 1 for axis in MEASURED if axis != "intra_subject")
    assert set(ceiling.missing) == {"fps", "chunk_latency"}


def test_a_hero_recoloured_in_the_middle_of_a_shot(reader: Reader, ceiling: Axes) -> None:
    def recoloured(story: Story) -> Story:
        return _hero(story, lambda c: replace(c, color=_next(COLORS, c.color, 4)))

    axes = measured(reader, lambda story: _late(story, recoloured(story)))
    assert fallen(axes, ceiling) == {"intra_subject"}
    assert axes.scores["intra_subject"].mean == pytest.approx((FADE + LATE) / 2 / SHOWN, abs=0.1)


def test_a_house_recoloured_in_the_middle_of_a_shot(reader: Reader, ceiling: Axes) -> None:
    axes = measured(reader, lambda story: _late(story, _house(story, 2)))
    assert fallen(axes, ceiling) == {"intra_background"}


def test_a_hero_with_another_belly_in_every_shot(reader: Reader, ceiling: Axes) -> None:
    def change(story: Story, k: int) -> Story:
        return _hero(story, lambda c: replace(c, belly=_next(BELLY_COLORS, c.belly, k)))

    assert fallen(measured(reader, _each_of_another(change)), ceiling) == {"inter_subject"}


def test_another_house_in_every_shot(reader: Reader, ceiling: Axes) -> None:
    axes = measured(reader, _each_of_another(lambda story, k: _house(story, 2 * k)))
    assert fallen(axes, ceiling) == {"inter_background"}


def test_a_cut_that_is_left_out(reader: Reader, ceiling: Axes) -> None:
    """What is asked of the second shot is what the first one shows, so that only the cut is missing."""

    def asked(story: Story) -> Story:
        return replace(story, shots=(story.shots[0], story.shots[0], story.shots[2]))

    def going_on(story: Story) -> list[Frames]:
        first, _, last = renders_of(story)
        return [first, render_shot(story, 0, range(SHOWN, 2 * SHOWN)), last]

    axes = measured(reader, going_on, asked)
    assert fallen(axes, ceiling) == {"cut_recall", "cut_f1", "cuts_exact"}
    assert (axes.scores["cut_precision"].mean, axes.scores["cut_recall"].mean) == (1, 0.5)


def test_a_cut_that_nobody_asked_for(reader: Reader, ceiling: Axes) -> None:
    """The camera jumps to the other side in the middle of a shot."""

    def other_side(story: Story) -> Story:
        return replace(story, shots=tuple(replace(shot, side=-shot.side) for shot in story.shots))

    def jumping(story: Story) -> list[Frames]:
        pairs = zip(renders_of(story), renders_of(other_side(story)), strict=True)
        return [np.concatenate((shot[:FADE], after[FADE:])) for shot, after in pairs]

    axes = measured(reader, jumping)
    assert fallen(axes, ceiling) == {"cut_precision", "cut_f1", "cuts_exact"}


def test_swapped_captions(reader: Reader, ceiling: Axes) -> None:
    def swapped(story: Story) -> Story:
        return replace(story, shots=(story.shots[1], story.shots[0], story.shots[2]))

    assert fallen(measured(reader, renders_of, swapped), ceiling) == {"prompt_following"}


# ------------------------------------------------------------------------------------ arithmetic
@pytest.mark.parametrize(
    ("found", "precision", "recall", "exact"),
    [
        ([33, 66], (2, 2), (2, 2), 1),
        ([32, 67], (2, 2), (2, 2), 1),
        ([31, 66], (1, 2), (1, 2), 0),
        ([33, 34, 66], (2, 3), (2, 2), 0),
        ([33], (1, 1), (1, 2), 0),
        ([], (0, 0), (0, 2), 0),
    ],
)
def test_a_cut_may_be_a_frame_off_and_serves_once(
    found: list[int], precision: tuple[int, int], recall: tuple[int, int], exact: int
) -> None:
    tallies = cut_tallies([33, 66], found)
    assert (tallies["cut_precision"], tallies["cut_recall"]) == (precision, recall)
    assert tallies["cuts_exact"] == (exact, 1)
    assert tallies["cut_f1"] == (2 * precision[0], len(found) + 2)


def test_neighbouring_cuts_are_told_apart() -> None:
    assert cut_tallies([10, 12], [11, 12])["cut_recall"] == (2, 2)
    assert cut_tallies([10, 11], [9, 10])["cuts_exact"] == (1, 1)


def test_agreement_that_luck_gives_is_worth_nothing() -> None:
    def film(*values: str) -> list[list[dict[str, str]]]:
        return [[{"belly": value} for value in values]]

    kept = agreement_above_chance([film("rose", "rose"), film("mint", "mint"), film("rose", "rose")])
    assert kept == [(0.5, 0.5), (1.0, 1.0), (0.5, 0.5)]
    forgotten = agreement_above_chance([film("rose", "mint"), film("mint", "rose")])
    assert forgotten == [(-0.5, 0.5)] * 2
    always_the_same = agreement_above_chance([film("rose", "rose"), film("rose", "rose")])
    assert always_the_same == [(0, 0)] * 2
    assert agreement_above_chance([film("rose", "rose")]) == [(0, 0)]


def test_speed_is_frames_per_second_and_the_median_wait(reader: Reader) -> None:
    shots = renders_of(STORIES[0])
    film = read_film(read_story(STORIES[0], shots, reader), shots, reader, oracle_cuts(torch.device("cpu")))
    axes = story_axes("films", [film, film], [Pace(36, 2.0, (0.5, 0.6, 0.9)), Pace(12, 4.0)])
    assert axes.scores["fps"].mean == 8
    assert axes.scores["chunk_latency"].mean == pytest.approx(600)
    alone = story_axes("films", [film])
    assert "two stories" in alone.missing["inter_subject"]
    lines = axes_lines([axes, alone])
    assert next(line for line in lines if "precision" in line).split()[-1] == "100.0"
    assert sum("missing" in line for line in lines) == 4
    row = next(line for line in lines if line.startswith("frames per second"))
    assert row.split()[4:] == ["8.0", "[3.0,", "18.0]", "-"]
