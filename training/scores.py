"""What a story's readings are worth: tallies per metric, bootstrap intervals over stories, and the report.

No model and no rendering here; evaluate.py makes the readings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from shotstream.training.oracle.reader import Reading
from shotstream.training.world import Story

METRICS: dict[str, str] = {
    "species": "the right heroes are in the shot, and nobody else",
    "color": "a hero has its colour",
    "accessory": "a hero wears what the caption says, or nothing",
    "accessory_color": "the accessory has its colour",
    "action": "a hero does what the shot caption says",
    "size": "the shot has the size asked for",
    "place": "the place is right",
    "time": "the time of day is right",
    "all_asked": "everything above but the action is right, in one shot",
    "same_hero": "a hero's colour and accessory are those of its first shot",
    "same_hero_hidden": "a hero's belly patch, never captioned, is that of its first shot",
    "same_hero_hidden_chance": "the same, compared with the first shot of another story: what luck gives",
    "background_kept": "the house's colour, roof and side, never captioned, are those first seen",
    "background_kept_chance": "the same, compared with another story's house: what luck gives",
    "cuts_exact": "in a story, cuts are exactly where they were asked for, and nowhere else",
    "cuts_found": "an asked cut is there",
}
"""Metric -> what one hit means. All are shares of hits, 0..1."""

Tally = tuple[int, int]  # hits, tries
Tallies = dict[str, Tally]


@dataclass(frozen=True)
class Estimate:
    """A share with its 95 % bootstrap interval over stories; `tries` is what it was counted on."""

    mean: float
    low: float
    high: float
    tries: int


@dataclass(frozen=True)
class Row:
    """The scores of one source of frames ("model", "renders", "codec") on one group of stories."""

    source: str
    group: str
    stories: int
    scores: Mapping[str, Estimate]


@dataclass(frozen=True)
class Report:
    """All rows of an evaluation, the model's first."""

    rows: tuple[Row, ...]
    stories: int
    seed: int
    reader: Mapping[str, str]

    def row(self, source: str, group: str) -> Row:
        """The row of this source and group; KeyError when it was not measured."""
        for row in self.rows:
            if (row.source, row.group) == (source, group):
                return row
        raise KeyError(f"no row for {source}, {group}")

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self) | {"metrics": dict(METRICS)}

    def lines(self) -> list[str]:
        """The report as aligned text: one line per metric, one column per row."""
        head = [f"{row.source} / {row.group}" for row in self.rows]
        lines = [f"{'':26}" + "".join(f"{h:>26}" for h in head)]
        for metric in METRICS:
            cells = []
            for row in self.rows:
                e = row.scores.get(metric)
                cells.append(f"{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}]" if e else "-")
            lines.append(f"{metric:26}" + "".join(f"{c:>26}" for c in cells))
        return lines


@dataclass(frozen=True)
class StoryReading:
    """One story as its frames show it: a reading per shot, and the cuts found and asked (frame numbers)."""

    story: Story
    shots: tuple[Reading, ...]
    cuts_found: tuple[int, ...]
    cuts_asked: tuple[int, ...]


def tally_story(read: StoryReading, other: StoryReading | None = None) -> Tallies:
    """Hits and tries of every metric in one story; `other` is another story's reading, for the chance rows."""
    counts = _Counter()
    for k, reading in enumerate(read.shots):
        _tally_shot(read.story, k, reading, counts)
    _tally_memory(read, read, "", counts)
    if other is not None:
        _tally_memory(read, other, "_chance", counts)
    found = [any(abs(cut - asked) <= 1 for cut in read.cuts_found) for asked in read.cuts_asked]
    counts.add("cuts_exact", read.cuts_found == read.cuts_asked)
    for hit in found:
        counts.add("cuts_found", hit)
    return counts.tallies


def bootstrap(tallies: Sequence[Tallies], seed: int = 0, draws: int = 1000) -> dict[str, Estimate]:
    """Estimates per metric; stories, not shots, are resampled, because shots of a story are not independent."""
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(tallies), size=(draws, len(tallies)))
    estimates = {}
    for metric in METRICS:
        table = np.array([t.get(metric, (0, 0)) for t in tallies], float)
        hits, tries = table.sum(0)
        if tries == 0:
            continue
        sums = table[picks].sum(1)
        means = sums[:, 0] / np.maximum(sums[:, 1], 1)
        low, high = np.quantile(means[sums[:, 1] > 0], (0.025, 0.975))
        estimates[metric] = Estimate(float(hits / tries), float(low), float(high), int(tries))
    return estimates


class _Counter:
    def __init__(self) -> None:
        self.tallies: Tallies = {}

    def add(self, metric: str, hit: bool) -> None:
        hits, tries = self.tallies.get(metric, (0, 0))
        self.tallies[metric] = (hits + int(hit), tries + 1)


def _tally_shot(story: Story, k: int, reading: Reading, counts: _Counter) -> None:
    shot, stage = story.shots[k], story.background
    heroes = [story.characters[i] for i in shot.cast]
    said = {
        "species": [reading.species() == {h.species for h in heroes}],
        "color": [reading.of_hero(h.species, "color") == h.color for h in heroes],
        "accessory": [reading.of_hero(h.species, "accessory") == h.accessory for h in heroes],
        "accessory_color": [
            reading.of_hero(h.species, "accessory_color") == h.accessory_color for h in heroes if h.accessory_color
        ],
        "size": [reading.of_scene("size") == shot.size],
        "place": [reading.of_scene("place") == stage.place],
        "time": [reading.of_scene("time") == stage.time],
    }
    for metric, hits in said.items():
        for hit in hits:
            counts.add(metric, hit)
    counts.add("all_asked", all(hit for hits in said.values() for hit in hits))
    for hero, action in zip(heroes, shot.actions, strict=True):
        counts.add("action", reading.of_hero(hero.species, "action") == action)


def _tally_memory(read: StoryReading, first: StoryReading, suffix: str, counts: _Counter) -> None:
    """Compares later shots with what was seen first: in the same story, or (chance) in another one."""
    for index, hero in enumerate(read.story.characters):
        shots = [k for k, shot in enumerate(read.story.shots) if index in shot.cast]
        if not shots:
            continue
        look = _first_look(first) if suffix else _look(read.shots[shots[0]], hero.species)
        for k in shots[1:]:
            now = _look(read.shots[k], hero.species)
            if not suffix:
                counts.add("same_hero", now[0] == look[0])
            counts.add(f"same_hero_hidden{suffix}", now[1] == look[1])
    seen = [house for shot in read.shots if (house := _house(shot)) is not None]
    elsewhere = [house for shot in first.shots if (house := _house(shot)) is not None]
    for house in seen[1:]:
        if elsewhere:
            counts.add(f"background_kept{suffix}", house == elsewhere[0])


def _first_look(read: StoryReading) -> tuple[tuple[str, ...], str]:
    shot = read.story.shots[0]
    return _look(read.shots[0], read.story.characters[shot.cast[0]].species)


def _look(reading: Reading, species: str) -> tuple[tuple[str, ...], str]:
    """((colour, accessory, its colour), belly) of a hero as read."""
    accessory = reading.of_hero(species, "accessory")
    worn = (accessory, reading.of_hero(species, "accessory_color")) if accessory != "none" else ("none",)
    return (reading.of_hero(species, "color"), *worn), reading.of_hero(species, "belly")


def _house(reading: Reading) -> tuple[str, ...] | None:
    if reading.of_scene("house_seen") == "no":
        return None
    return tuple(reading.of_scene(slot) for slot in ("house_color", "roof", "house_side"))
