"""The evaluation on planted films: a fake reader is told what every frame shows, so each figure is known beforehand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from shotstream.training.evaluation import evaluate as evaluation
from shotstream.training.evaluation.axes import Pace
from shotstream.training.evaluation.evaluate import drift_stories, evaluation_stories, measure
from shotstream.training.evaluation.goals import Goal, gain_lines, goal_lines, goals_as_dict, goals_of
from shotstream.training.evaluation.scores import ATTRIBUTES, Report, bootstrap, make_row, paired_change
from shotstream.training.evaluation.sources import (
    CodecPlayer,
    Frames,
    canonical,
    free_wording,
    one_by_one,
    session_frames,
)
from shotstream.training.evaluation.stage_table import compare
from shotstream.training.oracle.reader import Reader, Reading
from shotstream.training.oracle.slots import FRAME_SLOTS, HERO_SLOTS
from shotstream.training.world import Story, is_held_out, paraphrased
from shotstream.training.world.story import BELLY_COLORS, COLORS, SPECIES

STORIES = evaluation_stories(6)
LONG = drift_stories(4)
Shown = Callable[[Story, int], tuple[Story, int]]


@pytest.fixture(autouse=True)
def everything_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shot can show is the oracle's knowledge, and tested there."""
    monkeypatch.setattr(evaluation, "unseen", lambda story, k, frames: frozenset())


class Films:
    """Makes frames that carry a number for "shot k of that story", and a reader that looks the number up."""

    def __init__(self) -> None:
        self.shown: list[tuple[Story, int]] = []
        self.reader = _Told(self.shown)

    def frames(self, story: Story, k: int, count: int = 33) -> Frames:
        """Frames of one brightness per shot number, so that neighbouring shots are a cut apart."""
        frames = np.full((count, 20, 32, 3), 255 * (len(self.shown) % 2), np.uint8)
        frames[:, 0, 0] = (*divmod(len(self.shown), 256), 0)
        self.shown.append((story, k))
        return frames

    def play(self, shown: Shown) -> Callable[[Story], list[Frames]]:
        return lambda story: [self.frames(*shown(story, k)) for k in range(len(story.shots))]


class _Told(Reader):
    def __init__(self, shown: list[tuple[Story, int]]) -> None:
        self.note = {"made": "by hand"}
        self.shown = shown
        self.looks_at = -1  # the frame of a shot

    def read_shot(self, frames_FHWC: Frames, samples: int = 5) -> Reading:
        high, low, _ = (int(v) for v in frames_FHWC[self.looks_at, 0, 0])
        return truth(*self.shown[256 * high + low])

    def read_frames(self, frames_FHWC: Frames) -> dict[str, torch.Tensor]:
        each = [self.read_shot(frame[None]) for frame in frames_FHWC]
        slots = {slot: [r.heroes[slot] for r in each] for slot in HERO_SLOTS} | {
            slot: [r.scene[slot] for r in each] for slot in FRAME_SLOTS
        }
        said = {"present": [r.present for r in each]} | slots
        return {slot: torch.from_numpy(np.stack(v)) for slot, v in said.items()} | {
            "action": torch.from_numpy(each[0].heroes["action"])
        }


def truth(story: Story, k: int) -> Reading:
    """What a perfect reader says of shot k; it takes every house for seen."""
    shot, stage = story.shots[k], story.background
    heroes = {slot: np.zeros((len(SPECIES), len(values)), np.float32) for slot, values in HERO_SLOTS.items()}
    scene = {slot: np.zeros(len(values), np.float32) for slot, values in FRAME_SLOTS.items()}
    present = np.zeros(len(SPECIES), np.float32)
    for index, action in zip(shot.cast, shot.actions, strict=True):
        hero = story.characters[index]
        row = SPECIES.index(hero.species)
        present[row] = 1
        for slot in ("color", "accessory", "accessory_color", "belly"):
            if value := getattr(hero, slot):
                heroes[slot][row, HERO_SLOTS[slot].index(value)] = 1
        heroes["action"][row, HERO_SLOTS["action"].index(action)] = 1
    side = "right" if stage.house_side > 0 else "left"
    says = {"size": shot.size, "place": stage.place, "time": stage.time, "house_seen": "yes", "roof": stage.roof,
            "house_color": stage.house_color, "house_side": side}  # fmt: skip
    for slot, value in says.items():
        scene[slot][FRAME_SLOTS[slot].index(value)] = 1
    return Reading(present, heroes, scene)


def as_asked(story: Story, k: int) -> tuple[Story, int]:
    return story, k


def wrong_colors(story: Story, k: int) -> tuple[Story, int]:
    heroes = (dataclasses.replace(c, color=COLORS[COLORS.index(c.color) - 1]) for c in story.characters)
    return dataclasses.replace(story, characters=tuple(heroes)), k


def run(play: Callable[[Story], list[Frames]], films: Films, *, drift: bool = False) -> Report:
    sources = {"model": one_by_one(play), "renders": one_by_one(films.play(as_asked))}
    return measure(sources, STORIES, drift=LONG if drift else (), drift_sources=("model", "renders"),
                   reader=films.reader)  # fmt: skip


def goal(goals: list[Goal], start: str) -> Goal:
    return next(g for g in goals if g.name.strip().startswith(start))


# ------------------------------------------------------------------------------------ goals
def test_films_that_show_what_is_asked_meet_every_goal_that_was_measured() -> None:
    films = Films()
    goals = goals_of(run(films.play(as_asked), films, drift=True))
    measured = [g for g in goals if g.figure is not None]
    assert len(measured) == 1 + len(ATTRIBUTES) + 3 + 1 + 2 + 2
    assert all(g.met for g in measured), [g.name for g in measured if not g.met]
    assert {g.name for g in goals if g.verdict == "not measured"} == {
        "free wording, all attributes", "free wording, worst", "codec PSNR",
    }  # fmt: skip
    assert set(goal(goals, "color").others) == {"in distribution", "renders"}
    lines = goal_lines(goals)
    assert len(lines) == len(goals) + 2
    assert "100.0" in lines[1]
    plain = json.loads(json.dumps(goals_as_dict(goals)))
    assert plain[0]["met"] is True
    assert plain[-1]["met"] is None


def test_the_axes_stand_beside_the_goals_for_every_source_over_all_stories() -> None:
    films = Films()
    sources = {"model": one_by_one(films.play(wrong_colors)), "renders": one_by_one(films.play(as_asked))}
    report = measure(sources, STORIES, reader=films.reader, cuts=lambda frames: [33, 66], drift=LONG[:2],
                     drift_sources=("model",), paces={"model": [Pace(165, 5.0)] * len(STORIES)})  # fmt: skip
    model, renders = report.axes
    assert (model.source, renders.source) == ("model", "renders")
    assert len(model.films) == len(STORIES)
    assert model.scores["prompt_following"].mean < 0.9 < renders.scores["prompt_following"].mean == 1
    assert model.scores["cut_recall"].mean == 0.5
    assert report.pooled("model").scores["cuts_found"].mean == 1
    assert model.scores["fps"].mean == 33
    assert "fps" in renders.missing
    plain = json.loads(json.dumps(report.as_dict()))
    assert [row["source"] for row in plain["axes"]] == ["model", "renders"]


def test_films_of_another_story_miss_what_they_show_otherwise() -> None:
    films = Films()
    other = {id(s): STORIES[i - 1] for i, s in enumerate(STORIES)}
    goals = goals_of(run(films.play(lambda story, k: (other[id(story)], k)), films))
    assert goal(goals, "all attributes").met is False
    assert goal(goals, "all attributes").verdict == "missed"
    assert goal(goals, "place").met is False
    assert goal(goals, "cuts").met is True


def test_a_goal_within_its_interval_is_said_to_be_in_doubt() -> None:
    tallies = [{"color": (i != 0, 1)} for i in range(10)]
    report = Report((make_row("model", "held out", range(10), tallies, 0),), 10, 0, {})
    assert goal(goals_of(report), "color").verdict == "met, within error"


@pytest.mark.parametrize("lazy_in", ["all shots", "moving shots"])
def test_a_wrong_action_counts_in_its_own_rows_and_in_the_whole(lazy_in: str) -> None:
    def lazy(story: Story, k: int) -> tuple[Story, int]:
        shot = story.shots[k]
        if lazy_in == "moving shots" and shot.camera == "static":
            return story, k
        other = tuple("waves" if a != "waves" else "jumps" for a in shot.actions)
        shots = (*story.shots[:k], dataclasses.replace(shot, actions=other), *story.shots[k + 1 :])
        return dataclasses.replace(story, shots=shots), k

    films = Films()
    scores = run(films.play(lazy), films).pooled("model").scores
    assert scores["all_asked"].mean == 1
    assert scores["action_moving"].mean == 0
    assert scores["action_moving"].tries < scores["action"].tries
    right = 0 if lazy_in == "all shots" else 1 - scores["action_moving"].tries / scores["action"].tries
    assert scores["action"].mean == pytest.approx(right)


def test_a_belly_that_changes_is_a_forgotten_hero_though_the_caption_is_kept() -> None:
    def forgetful(story: Story, k: int) -> tuple[Story, int]:
        heroes = (dataclasses.replace(c, belly=BELLY_COLORS[k % len(BELLY_COLORS)]) for c in story.characters)
        return dataclasses.replace(story, characters=tuple(heroes)), k

    films = Films()
    goals = goals_of(run(films.play(forgetful), films))
    assert goal(goals, "same hero, captioned").met is True
    assert goal(goals, "same hero, uncaptioned").met is False


def test_what_a_shot_cannot_show_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    films = Films()
    everything = run(films.play(wrong_colors), films).pooled("model").scores
    monkeypatch.setattr(
        evaluation, "unseen", lambda story, k, frames: frozenset((c.species, "color") for c in story.characters)
    )
    films = Films()
    scores = run(films.play(wrong_colors), films).pooled("model").scores
    assert everything["color"].mean == everything["all_asked"].mean == 0
    assert "color" not in scores
    assert scores["all_asked"].mean == 1
    assert scores["same_hero"].tries == everything["same_hero"].tries


def test_a_cut_that_nobody_asked_for_fails_the_story() -> None:
    films = Films()

    def restless(story: Story) -> list[Frames]:
        shots = films.play(as_asked)(story)
        shots[1][10:20, 1:] = 128
        return shots

    scores = run(restless, films).pooled("model").scores
    assert scores["cuts_exact"].mean == 0
    assert scores["cuts_found"].mean == 1


# ------------------------------------------------------------------------------------ drift and wording
def test_long_stories_end_as_they_began_behind_a_visible_cut() -> None:
    assert drift_stories(4) == LONG
    assert [is_held_out(s) for s in LONG] == [False, True, False, True]
    for story in LONG:
        assert len(story.shots) == 10
        first, before = story.shots[0], story.shots[8]
        assert story.shots[9] == first
        assert (before.size, before.cast) != (first.size, first.cast)


def test_a_film_that_decays_in_its_last_chunk_drifts() -> None:
    films = Films()

    def decaying(story: Story) -> list[Frames]:
        shots = films.play(as_asked)(story)
        shots[-1][-12:] = films.frames(*wrong_colors(story, len(story.shots) - 1), 12)
        return shots

    report = run(decaying, films, drift=True)
    found = goal(goals_of(report), "drift in ten shots, worst")
    assert found.name.endswith("worst: color")
    assert found.figure is not None
    assert found.figure.mean == -1
    assert found.met is False
    change = report.change("drift", "renders")
    assert change is not None
    assert change.scores["color"].mean == 0
    assert report.row("model", "shot 1").scores["color"].mean == 1


def test_only_the_last_chunk_counts_for_drift() -> None:
    films = Films()

    def recovering(story: Story) -> list[Frames]:
        shots = films.play(as_asked)(story)
        shots[-1][:-12] = films.frames(*wrong_colors(story, len(story.shots) - 1), 21)
        return shots

    assert goal(goals_of(run(recovering, films, drift=True)), "drift in ten shots, worst").met is True


def test_what_every_shot_loses_by_its_end_is_no_drift_of_last_chunks() -> None:
    films = Films()
    films.reader.looks_at = 0

    def fading(story: Story) -> list[Frames]:
        shots = films.play(as_asked)(story)
        for k in (0, -1):
            shots[k][-12:] = films.frames(*wrong_colors(story, k % len(shots)), 12)
        return shots

    report = run(fading, films, drift=True)
    goals = goals_of(report)
    assert report.row("model", "end of shot 1").scores["color"].mean == 0
    assert goal(goals, "drift in ten shots, worst").met is False
    assert goal(goals, "drift of last chunks, worst").met is True


class _Session:
    def __init__(self, said: list[str]) -> None:
        self.said = said

    def __enter__(self) -> _Session:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin_shot(self, caption: str, chunks: int) -> None:
        self.said.append(caption)
        self.left = chunks

    def chunks(self) -> Iterator[Any]:
        for _ in range(self.left):
            yield type("Chunk", (), {"frames": np.zeros((9, 20, 32, 3), np.uint8)})


class _Runtime:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.seeds: list[int] = []

    def open(self, caption: str, *, seed: int) -> _Session:
        self.said.append(caption)
        self.seeds.append(seed)
        return _Session(self.said)


def test_free_wording_plays_the_paraphrases_of_the_same_stories_on_the_same_noise() -> None:
    plain: Any = _Runtime()
    free: Any = _Runtime()
    paces: list[Pace] = []
    for runtime, captions in ((plain, canonical), (free, free_wording(3))):
        shots = [session_frames(runtime, 1, 2, captions, paces)(story) for story in STORIES]
        assert all(shot.shape == (18, 20, 32, 3) for film in shots for shot in film)
    assert [(pace.frames, len(pace.chunk_seconds)) for pace in paces] == [(5 * 18, 5 * 2)] * 2 * len(STORIES)
    assert all(pace.seconds == sum(pace.chunk_seconds) > 0 for pace in paces)
    told = [(whole, *parts) for whole, parts in (paraphrased(s, 3) for s in STORIES)]
    assert free.said == [caption for film in told for caption in film]
    assert plain.said[: 1 + len(STORIES[0].shots)] == [
        STORIES[0].global_caption, *(STORIES[0].shot_caption(k) for k in range(5)),
    ]  # fmt: skip
    assert plain.said != free.said
    assert plain.seeds == free.seeds
    assert len(set(plain.seeds)) == len(STORIES)


# ------------------------------------------------------------------------------------ figures
def test_a_perfect_score_of_few_stories_is_not_certain() -> None:
    few = bootstrap([{"size": (5, 5)}] * 4)["size"]
    many = bootstrap([{"size": (5, 5)}] * 100)["size"]
    assert few.mean == few.high == many.high == 1
    assert few.low == pytest.approx(0.025 ** (1 / 4))
    assert many.low > 0.96
    none = bootstrap([{"size": (0, 5)}] * 4)["size"]
    assert (none.low, none.high) == (0, pytest.approx(1 - 0.025 ** (1 / 4)))


def test_a_gain_of_every_story_is_certain_though_stories_differ() -> None:
    rows = [
        make_row(name, "all", range(20), [{"size": (i % 10 + more, 11)} for i in range(20)], 0)
        for name, more in (("before", 0), ("after", 1))
    ]
    gain = paired_change("stage", *rows).scores["size"]
    assert gain.low == pytest.approx(gain.high) == pytest.approx(1 / 11)
    assert rows[0].scores["size"].high - rows[0].scores["size"].low > 0.1
    elsewhere = dataclasses.replace(rows[1], seeds=tuple(range(1, 21)))
    with pytest.raises(ValueError, match="different stories"):
        paired_change("stage", rows[0], elsewhere)


def test_the_gain_table_says_what_each_stage_brought() -> None:
    films = Films()
    sources = {"first": one_by_one(films.play(wrong_colors)), "second": one_by_one(films.play(as_asked)),
               "third": one_by_one(films.play(wrong_colors))}  # fmt: skip
    report = measure(sources, STORIES, reader=films.reader)
    pairs = (("first", "second"), ("second", "third"), ("first", "third"))
    report = dataclasses.replace(report, changes=tuple(compare(report, "stage", a, b) for a, b in pairs))
    lines = gain_lines(report, list(sources))
    at = next(i for i, line in enumerate(lines) if line.startswith("color"))
    assert lines[at].split()[1::3] == ["0.0", "100.0", "0.0", "+0.0"]
    assert lines[at + 1].split()[::3] == ["+100.0", "-100.0"]
    assert goal(goals_of(report, "third", teacher="second"), "student - teacher, all").met is False
    assert goal(goals_of(report, "second", teacher="first"), "student - teacher, all").met is True


class _Codec:
    """Adds a constant error of a tenth of the range's half."""

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        return 0.8 * video

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents / 0.8 - 0.1 * latents.sign()


def test_the_codec_s_fidelity_is_measured_in_decibels_and_held_against_its_goal() -> None:
    player = CodecPlayer(_Codec(), (20, 32), torch.device("cpu"))
    shots = player(dataclasses.replace(STORIES[0], shots=STORIES[0].shots[:2]))
    assert [s.shape for s in shots] == [(33, 20, 32, 3)] * 2
    assert player.psnr[0] == pytest.approx(20 * np.log10(20), abs=0.2)
    films = Films()
    report = evaluation.with_psnr(run(films.play(as_asked), films), player)
    assert goal(goals_of(report), "codec").met is False
    player.psnr = [33.0, 34.0]
    assert goal(goals_of(evaluation.with_psnr(report, player)), "codec").met is True
