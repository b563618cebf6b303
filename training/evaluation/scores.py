"""What a story's readings are worth: tallies per metric, bootstrap intervals over stories, and the report.

No model and no rendering here; evaluate.py makes the readings, goals.py holds the figures against the goals.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shotstream.training.oracle.reader import Reading
from shotstream.training.world import Story

if TYPE_CHECKING:
    from shotstream.training.evaluation.axes import Axes

METRICS: dict[str, str] = {
    "species": "the right heroes are in the shot, and nobody else",
    "color": "a hero has its colour",
    "accessory": "a hero wears what the caption says, or nothing",
    "accessory_color": "the accessory has its colour",
    "action": "a hero does what the shot caption says",
    "action_moving": "the same, in shots whose camera moves",
    "size": "the shot has the size asked for",
    "place": "the place is right",
    "time": "the time of day is right",
    "all_asked": "everything above but the action is right, in one shot",
    "all_asked_action": "everything above is right, in one shot",
    "same_hero": "a hero's colour and accessory are those first seen",
    "same_hero_hidden": "a hero's belly patch, never captioned, is the one first seen",
    "same_hero_hidden_chance": "the same, compared with the first hero of another story: what luck gives",
    "background_kept": "the house's colour, roof and side, never captioned, are those first seen",
    "background_kept_chance": "the same, compared with another story's house: what luck gives",
    "cuts_exact": "in a story, cuts are exactly where they were asked for, and nowhere else",
    "cuts_found": "an asked cut is there",
}
"""Metric -> what one hit means. All are shares of hits, 0..1. Nothing is asked of what a shot cannot show."""

ATTRIBUTES = ("species", "color", "accessory", "accessory_color", "action", "size", "place", "time")
"""What captions name."""

GROUPS = ("in distribution", "held out")
"""Stories of the training's kind with unseen seeds; stories with a pair of attributes that training never shows."""

_BLOCK = 4  # columns of the detailed table that stand side by side

Tally = tuple[int, int]  # hits, tries
Tallies = dict[str, Tally]
Unseen = frozenset[tuple[str, str]]
"""(species, hero slot) or ("", frame slot) pairs that a shot cannot show, so that nothing is asked about them."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval over stories; `tries` is what it was counted on."""

    mean: float
    low: float
    high: float
    tries: int


@dataclass(frozen=True)
class Row:
    """The scores of one source of frames ("model", "renders", "codec", a stage) on one group of stories.

    `seeds` and `tallies` hold every story's hits and tries, in one order for all sources of a report.
    """

    source: str
    group: str
    stories: int
    scores: Mapping[str, Estimate]
    seeds: tuple[int, ...] = ()
    tallies: tuple[Tallies, ...] = ()


@dataclass(frozen=True)
class Change:
    """Score of `after` minus score of `before` per metric, on the same stories (paired intervals)."""

    name: str
    before: str
    after: str
    stories: int
    scores: Mapping[str, Estimate]


@dataclass(frozen=True)
class Report:
    """All rows of an evaluation, the model's first. `codec_psnr` is in dB per shot; None when it was not measured.

    `axes` are the paper's axes, one entry per source, over all stories.
    """

    rows: tuple[Row, ...]
    stories: int
    seed: int
    reader: Mapping[str, str]
    changes: tuple[Change, ...] = ()
    codec_psnr: Estimate | None = None
    axes: tuple[Axes, ...] = ()

    def row(self, source: str, group: str) -> Row:
        """The row of this source and group; KeyError when it was not measured."""
        for row in self.rows:
            if (row.source, row.group) == (source, group):
                return row
        raise KeyError(f"no row for {source}, {group}")

    def pooled(self, source: str) -> Row:
        """The source on the stories of all `GROUPS` together; KeyError when none was measured."""
        rows = [row for row in self.rows if row.source == source and row.group in GROUPS]
        if not rows:
            raise KeyError(f"no row for {source}")
        seeds = tuple(seed for row in rows for seed in row.seeds)
        tallies = [tally for row in rows for tally in row.tallies]
        return make_row(source, "all", seeds, tallies, self.seed)

    def change(self, name: str, after: str) -> Change | None:
        """The change of this name that ends at this source, if it was measured."""
        return next((c for c in self.changes if (c.name, c.after) == (name, after)), None)

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self) | {"metrics": dict(METRICS)}

    def lines(self) -> list[str]:
        """The report as aligned text: one line per metric, one column per row, four columns side by side."""
        lines: list[str] = []
        for start in range(0, len(self.rows), _BLOCK):
            block = self.rows[start : start + _BLOCK]
            lines += [""] * bool(lines)
            lines.append(f"{'':26}" + "".join(f"{f'{row.source} / {row.group}':>26}" for row in block))
            for metric in METRICS:
                estimates = [row.scores.get(metric) for row in block]
                cells = [f"{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}]" if e else "-" for e in estimates]
                lines.append(f"{metric:26}" + "".join(f"{c:>26}" for c in cells))
        return lines


@dataclass(frozen=True)
class StoryReading:
    """One story as its frames show it: a reading per shot, and the cuts found and asked (frame numbers).

    `unseen` says per shot what it cannot show; empty when everything is asked.
    """

    story: Story
    shots: tuple[Reading, ...]
    cuts_found: tuple[int, ...]
    cuts_asked: tuple[int, ...]
    unseen: tuple[Unseen, ...] = ()

    def unseen_in(self, k: int) -> Unseen:
        """What shot k (zero-based) cannot show."""
        return self.unseen[k] if self.unseen else frozenset()


def tally_story(read: StoryReading, other: StoryReading | None = None) -> Tallies:
    """Hits and tries of every metric in one story; `other` is another story's reading, for the chance rows."""
    counts = _Counter()
    for k in range(len(read.shots)):
        _tally_shot(read, k, counts)
    _tally_memory(read, other, counts)
    counts.add("cuts_exact", read.cuts_found == read.cuts_asked)
    for asked in read.cuts_asked:
        counts.add("cuts_found", any(abs(cut - asked) <= 1 for cut in read.cuts_found))
    return counts.tallies


def tally_ends(read: StoryReading) -> tuple[Tallies, Tallies]:
    """Of a reading of two shots (a film's first and its last): the tallies of either, memory counted in the last."""
    first, last = _Counter(), _Counter()
    _tally_shot(read, 0, first)
    _tally_shot(read, 1, last)
    _tally_memory(read, None, last)
    return first.tallies, last.tallies


def make_row(source: str, group: str, seeds: Sequence[int], tallies: Sequence[Tallies], seed: int) -> Row:
    """A row with its intervals; `seed` is that of the bootstrap."""
    return Row(source, group, len(tallies), bootstrap(tallies, seed), tuple(seeds), tuple(tallies))


def bootstrap(tallies: Sequence[Tallies], seed: int = 0, draws: int = 1000) -> dict[str, Estimate]:
    """Estimates per metric; stories, not shots, are resampled, because shots of a story are not independent.

    Where every try is a hit (or none is), resampling knows no doubt; the exact bound for that many stories stands in.
    """
    found = {metric: ratio_estimate(_table(tallies, metric), seed, draws) for metric in METRICS}
    return {metric: estimate for metric, estimate in found.items() if estimate is not None}


def ratio_estimate(table: NDArray[np.float64], seed: int = 0, draws: int = 1000) -> Estimate | None:
    """The ratio of the two columns' sums, [stories, 2], with its interval over stories; None where the lower sum is 0.

    The exact bound of a share stands in where all is hit, or nothing: see `bootstrap`.
    """
    hits, tries = table.sum(0)
    if tries == 0:
        return None
    low, high = _interval(_shares(table, _picks(len(table), seed, draws)))
    bound = 0.025 ** (1 / int((table[:, 1] > 0).sum()))
    low, high = (bound, 1.0) if hits == tries else (0.0, 1 - bound) if hits == 0 else (low, high)
    return Estimate(float(hits / tries), low, high, int(tries))


def paired_change(name: str, before: Row, after: Row, seed: int = 0, draws: int = 1000) -> Change:
    """What changes from one row to the other on the same stories, for the metrics that both have.

    Raises ValueError when the rows are of different stories.
    """
    if before.seeds != after.seeds:
        raise ValueError(f"{before.source} and {after.source} were measured on different stories")
    picks = _picks(len(before.tallies), seed, draws)
    scores = {}
    for metric in METRICS:
        tables = [_table(row.tallies, metric) for row in (before, after)]
        if any(table[:, 1].sum() == 0 for table in tables):
            continue
        mean = [table[:, 0].sum() / table[:, 1].sum() for table in tables]
        low, high = _interval(_shares(tables[1], picks) - _shares(tables[0], picks))
        scores[metric] = Estimate(float(mean[1] - mean[0]), low, high, int(tables[1][:, 1].sum()))
    return Change(name, before.source, after.source, len(before.tallies), scores)


def mean_estimate(values: Sequence[float], seed: int = 0, draws: int = 1000) -> Estimate:
    """The mean of one value per story with its bootstrap interval."""
    array = np.asarray(values, float)
    low, high = _interval(array[_picks(len(array), seed, draws)].mean(1))
    return Estimate(float(array.mean()), low, high, len(array))


def worst(change: Change, metrics: Collection[str]) -> tuple[str, Estimate] | None:
    """The metric, of those given, that fell most."""
    found = [(metric, e) for metric, e in change.scores.items() if metric in metrics]
    return min(found, key=lambda pair: pair[1].mean, default=None)


def with_changes(report: Report, changes: Sequence[Change]) -> Report:
    """The report with further changes."""
    return replace(report, changes=(*report.changes, *changes))


def _picks(count: int, seed: int, draws: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(count, size=(draws, count))


def _table(tallies: Sequence[Tallies], metric: str) -> NDArray[np.float64]:
    """Hits and tries per story, [stories, 2]."""
    return np.array([t.get(metric, (0, 0)) for t in tallies], float)


def _shares(table: NDArray[np.float64], picks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of hits per draw, nan where a draw holds no try, [draws]."""
    sums = table[picks].sum(1)
    return np.where(sums[:, 1] > 0, sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], 1), np.nan)


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.nanquantile(values, (0.025, 0.975))
    return float(low), float(high)


class _Counter:
    def __init__(self) -> None:
        self.tallies: Tallies = {}

    def add(self, metric: str, hit: bool) -> None:
        hits, tries = self.tallies.get(metric, (0, 0))
        self.tallies[metric] = (hits + int(hit), tries + 1)


def _tally_shot(read: StoryReading, k: int, counts: _Counter) -> None:
    shot, stage, reading, unseen = read.story.shots[k], read.story.background, read.shots[k], read.unseen_in(k)
    heroes = [read.story.characters[i] for i in shot.cast]

    def of_heroes(slot: str, wanted: Callable[[int], str]) -> list[bool]:
        """Hits for every hero of whom this slot is asked; "" asks nothing."""
        return [
            reading.of_hero(h.species, slot) == wanted(i)
            for i, h in enumerate(heroes) if wanted(i) and (h.species, slot) not in unseen
        ]  # fmt: skip

    said = {
        "species": [reading.species() == {h.species for h in heroes}],
        "color": of_heroes("color", lambda i: heroes[i].color),
        "accessory": of_heroes("accessory", lambda i: heroes[i].accessory),
        "accessory_color": of_heroes("accessory_color", lambda i: heroes[i].accessory_color),
        "size": [reading.of_scene("size") == shot.size],
        "place": [reading.of_scene("place") == stage.place] if ("", "place") not in unseen else [],
        "time": [reading.of_scene("time") == stage.time] if ("", "time") not in unseen else [],
    }
    done = of_heroes("action", lambda i: shot.actions[i])
    moving = [] if shot.camera == "static" else done
    for metric, hits in (said | {"action": done, "action_moving": moving}).items():
        for hit in hits:
            counts.add(metric, hit)
    right = all(hit for hits in said.values() for hit in hits)
    counts.add("all_asked", right)
    counts.add("all_asked_action", right and all(done))


def _tally_memory(read: StoryReading, other: StoryReading | None, counts: _Counter) -> None:
    """Compares shots with what was seen first, and (chance) with what was seen first in another story."""
    strange = None if other is None else _first_belly(other)
    for index, hero in enumerate(read.story.characters):
        known: dict[str, str] = {}
        for k, shot in enumerate(read.story.shots):
            if index not in shot.cast:
                continue
            now = _look(read, k, hero.species)
            seen = known.keys() & now.keys()
            if seen - {"belly"}:
                counts.add("same_hero", all(known[slot] == now[slot] for slot in seen - {"belly"}))
            if "belly" in seen:
                counts.add("same_hero_hidden", known["belly"] == now["belly"])
                if strange is not None:
                    counts.add("same_hero_hidden_chance", strange == now["belly"])
            known = now | known
    houses = _houses(read)
    elsewhere = _houses(other) if other is not None else []
    for house in houses[1:]:
        counts.add("background_kept", house == houses[0])
        if elsewhere:
            counts.add("background_kept_chance", house == elsewhere[0])


def _look(read: StoryReading, k: int, species: str) -> dict[str, str]:
    """Slot -> value of what shot k shows of a hero; without the accessory's colour where none is worn."""
    slots = [s for s in ("color", "accessory", "accessory_color", "belly") if (species, s) not in read.unseen_in(k)]
    look = {slot: read.shots[k].of_hero(species, slot) for slot in slots}
    if look.get("accessory", "none") == "none":
        look.pop("accessory_color", None)
    return look


def _first_belly(read: StoryReading) -> str | None:
    hero = read.story.shots[0].cast[0]
    species = read.story.characters[hero].species
    looks = (_look(read, k, species) for k, shot in enumerate(read.story.shots) if hero in shot.cast)
    return next((look["belly"] for look in looks if "belly" in look), None)


def _houses(read: StoryReading) -> list[tuple[str, ...]]:
    """The house in every shot that can show it and does, as read: where it stands is the model's own choice."""
    slots = ("house_color", "roof", "house_side")
    shots = [shot for k, shot in enumerate(read.shots) if ("", "house_color") not in read.unseen_in(k)]
    return [tuple(s.of_scene(slot) for slot in slots) for s in shots if s.of_scene("house_seen") == "yes"]
