"""The oracle reads renders rightly, and notices when a film does not show what was asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from shotstream.runtime.errors import UserError
from shotstream.training.evaluate import evaluate, evaluation_stories, renders_of
from shotstream.training.oracle.cuts import THRESHOLD, calibrate, find_cuts
from shotstream.training.oracle.reader import WEIGHTS, Reader, ReaderNet, load_reader
from shotstream.training.oracle.slots import FRAME_SLOTS, HERO_SLOTS, true_labels
from shotstream.training.oracle.train_reader import draw_examples, reader_accuracy, train_reader
from shotstream.training.scores import METRICS, Report, bootstrap
from shotstream.training.world import Story, is_held_out, render_shot, sample_story

STORIES = evaluation_stories(16)


@pytest.fixture(scope="module")
def reader() -> Reader:
    torch.set_num_threads(1)
    return load_reader()


@pytest.fixture(scope="module")
def truth(reader: Reader) -> Report:
    """The report on true renders; every planted fault is compared with it."""
    return evaluate(renders_of, STORIES, ceilings={}, reader=reader)


def _score(report: Report, metric: str) -> float:
    rows = [r.scores[metric] for r in report.rows if metric in r.scores]
    return sum(r.mean * r.tries for r in rows) / sum(r.tries for r in rows)


def _faulty(change: object, reader: Reader) -> Report:
    def make(story: Story) -> list[np.ndarray]:
        return renders_of(change(story))  # type: ignore[operator]

    return evaluate(make, STORIES, ceilings={}, reader=reader)


@pytest.mark.parametrize(
    ("metric", "at_least"),
    [
        ("species", 0.9), ("color", 0.9), ("accessory", 0.9), ("accessory_color", 0.9), ("size", 0.95),
        ("place", 0.97), ("time", 0.97), ("same_hero", 0.8), ("background_kept", 0.8), ("cuts_exact", 0.95),
    ],
)  # fmt: skip
def test_the_oracle_believes_the_truth(truth: Report, metric: str, at_least: float) -> None:
    assert _score(truth, metric) >= at_least


def test_a_wrong_colour_is_noticed(truth: Report, reader: Reader) -> None:
    other = {"red": "blue", "blue": "yellow", "yellow": "purple"}

    def change(story: Story) -> Story:
        heroes = tuple(dataclasses.replace(c, color=other.get(c.color, "red")) for c in story.characters)
        return dataclasses.replace(story, characters=heroes)

    faulty = _faulty(change, reader)
    assert _score(faulty, "color") < 0.15
    assert _score(faulty, "place") > _score(truth, "place") - 0.05


def test_a_missing_hat_is_noticed(truth: Report, reader: Reader) -> None:
    def change(story: Story) -> Story:
        heroes = tuple(dataclasses.replace(c, accessory="none", accessory_color="") for c in story.characters)
        return dataclasses.replace(story, characters=heroes)

    dressed = np.mean([c.accessory != "none" for s in STORIES for c in s.characters])
    assert _score(_faulty(change, reader), "accessory") < 1 - 0.7 * dressed


def test_a_swapped_place_is_noticed(reader: Reader) -> None:
    def change(story: Story) -> Story:
        place = "desert" if story.background.place != "desert" else "city"
        return dataclasses.replace(story, background=dataclasses.replace(story.background, place=place))

    assert _score(_faulty(change, reader), "place") < 0.1


def test_a_forgotten_house_and_belly_are_noticed(truth: Report, reader: Reader) -> None:
    """Hidden attributes that change from shot to shot: what a model without memory would do."""

    def make(story: Story) -> list[np.ndarray]:
        shots = []
        for k in range(len(story.shots)):
            other = sample_story(1000 + 7 * story.seed + k)
            stage = dataclasses.replace(
                story.background, house_color=other.background.house_color, roof=other.background.roof,
                house_side=other.background.house_side,
            )  # fmt: skip
            heroes = tuple(dataclasses.replace(c, belly=other.characters[0].belly) for c in story.characters)
            shots.append(render_shot(dataclasses.replace(story, background=stage, characters=heroes), k))
        return shots

    faulty = evaluate(make, STORIES, ceilings={}, reader=reader)
    assert _score(faulty, "background_kept") < 0.5 * _score(truth, "background_kept")
    assert _score(faulty, "same_hero_hidden") < 0.6 * _score(truth, "same_hero_hidden")


def test_an_extra_cut_and_a_missing_one_are_noticed() -> None:
    for story in STORIES[:6]:
        shots = [render_shot(story, k) for k in range(3)]
        assert find_cuts(np.concatenate(shots)) == [33, 66]
        assert find_cuts(np.concatenate((shots[0][:20], shots[1][:13], shots[2]))) == [20, 33]
        assert find_cuts(shots[0]) == []


def test_the_cut_threshold_lies_between_motion_and_cuts() -> None:
    inside, across = calibrate([[render_shot(s, k) for k in range(4)] for s in STORIES[:8]])
    assert inside < THRESHOLD < across


def test_evaluation_stories_are_half_seen_half_held_out() -> None:
    assert sum(is_held_out(s) for s in STORIES) == len(STORIES) // 2
    assert evaluation_stories(16) == STORIES
    with pytest.raises(UserError, match="at least 2"):
        evaluation_stories(1)


def test_a_report_has_every_metric_with_its_interval_and_its_ceiling(reader: Reader) -> None:
    report = evaluate(renders_of, STORIES[6:10], reader=reader)
    assert {r.source for r in report.rows} == {"model", "renders"}
    assert {r.group for r in report.rows} == {"in distribution", "held out"}
    for row in report.rows:
        assert set(row.scores) <= set(METRICS)
        assert all(e.low <= e.mean <= e.high for e in row.scores.values())
    assert len(report.lines()) == len(METRICS) + 1


def test_intervals_shrink_with_more_stories() -> None:
    few = bootstrap([{"size": (i % 2, 1)} for i in range(8)])["size"]
    many = bootstrap([{"size": (i % 2, 1)} for i in range(200)])["size"]
    assert few.mean == many.mean == 0.5
    assert many.high - many.low < few.high - few.low


def test_labels_say_what_the_story_says() -> None:
    story = sample_story(3)
    labels = true_labels(story, 0, [0, 10])
    assert labels["present"].sum() == 2 * len(story.shots[0].cast)
    assert set(labels) == {"present", "where", *HERO_SLOTS, *FRAME_SLOTS}
    frames, many = draw_examples(20, 1)
    assert frames.shape == (20, 80, 128, 3)
    assert all(len(v) == 20 for v in many.values())


def test_the_shipped_reader_is_small() -> None:
    assert WEIGHTS.stat().st_size < 2_000_000


@pytest.mark.slow
def test_a_reader_can_be_trained(tmp_path: Path) -> None:
    scores = train_reader(350, tmp_path / "reader.safetensors", seed=1, minutes=6)
    assert scores["place"] > 0.9
    assert reader_accuracy(load_reader(tmp_path / "reader.safetensors").net, 100, 5)["time"] > 0.8


def test_reading_frames_of_any_size_gives_the_same_slots() -> None:
    reader = Reader(ReaderNet())
    small = reader.read_shot(render_shot(sample_story(1), 0, 6))
    large = reader.read_shot(render_shot(sample_story(1), 0, 6, 160, 256))
    assert small.heroes.keys() == large.heroes.keys() == HERO_SLOTS.keys()
    assert np.abs(small.scene["place"] - large.scene["place"]).max() < 0.2


def test_a_missing_reader_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train_reader"):
        load_reader(tmp_path / "none.safetensors")
