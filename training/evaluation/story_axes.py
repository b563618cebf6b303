"""The paper's axes on films of the story world, in the oracle's exact form: attributes read from frames are compared.

What the oracle does not read (eye size, height, hills, sun, the camera's movement) is not measured. Its own errors are
in every figure: true renders and the codec's round trip are printed beside a model, as the ceilings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from shotstream.training.evaluation.axes import (
    NOT_TIMED,
    Axes,
    FilmTallies,
    Pace,
    cut_tallies,
    make_axes,
    pace_tallies,
)
from shotstream.training.evaluation.cuts import CutFinder
from shotstream.training.evaluation.scores import ATTRIBUTES, StoryReading, tally_story
from shotstream.training.evaluation.sources import Frames
from shotstream.training.oracle.reader import Reader, Reading
from shotstream.training.oracle.slots import FRAME_SLOTS, HERO_SLOTS

EVERY = 3
"""Every so many frames of a shot are read one by one."""
METHOD = "attributes read by the oracle"
UNNAMED = ("accessory", "accessory_color", "belly")
"""What no shot caption says of a hero."""
HOUSE = ("house_color", "roof", "house_side")

Look = dict[str, str]
"""Slot -> value as read in one shot; without what the shot cannot show."""


@dataclass(frozen=True)
class FilmReading:
    """A film as the oracle reads it: shot by shot, frame by frame (`frames[k]` of shot k), and its cuts.

    `cuts_found` are frame numbers over the whole film, by the cut finder that the axes are measured with;
    `story.cuts_found` are the oracle's own.
    """

    story: StoryReading
    frames: tuple[tuple[Reading, ...], ...]
    cuts_found: tuple[int, ...]


def read_film(story: StoryReading, shots: Sequence[Frames], reader: Reader, find: CutFinder) -> FilmReading:
    """Reads single frames of every shot, uint8 [F, H, W, 3] each, and lets `find` look for cuts in the whole film.

    `story` is the reading of the same shots: see `evaluate.read_story`.
    """
    frames = tuple(tuple(read_each(reader, shot[::EVERY])) for shot in shots)
    return FilmReading(story, frames, tuple(find(np.concatenate(shots))))


def read_each(reader: Reader, frames_FHWC: Frames) -> list[Reading]:
    """One reading per frame; the frames are of one shot. The action is the same in all: no single frame tells it."""
    said = {slot: value.numpy() for slot, value in reader.read_frames(frames_FHWC).items()}
    return [
        Reading(
            said["present"][i],
            {slot: said[slot] if slot == "action" else said[slot][i] for slot in HERO_SLOTS},
            {slot: said[slot][i] for slot in FRAME_SLOTS},
        )
        for i in range(len(frames_FHWC))
    ]


def story_axes(source: str, films: Sequence[FilmReading], paces: Sequence[Pace] = (), seed: int = 0) -> Axes:
    """All axes of one source over its films, with intervals over stories.

    `paces`, if given, tells for every film how fast it was made; `seed` is the bootstrap's.
    """
    looks = [(hero_looks(film.story), house_looks(film.story)) for film in films]
    subjects = agreement_above_chance([hero for hero, _ in looks])
    houses = agreement_above_chance([[house] for _, house in looks])
    tallies = []
    for i, film in enumerate(films):
        story = film.story
        counts: FilmTallies = {
            "intra_subject": _sum(intra_subject(story, k, frames) for k, frames in enumerate(film.frames)),
            "intra_background": _sum(intra_background(story, k, frames) for k, frames in enumerate(film.frames)),
            "inter_subject": subjects[i],
            "inter_background": houses[i],
            "prompt_following": prompt_following(story),
        }
        counts |= cut_tallies(story.cuts_asked, film.cuts_found)
        tallies.append(counts | pace_tallies(paces[i] if paces else None))
    alone = "it needs two stories or more, to know what luck gives" if len(films) < 2 else ""
    reasons = {
        "inter_subject": alone or "no hero is seen twice, or all stories show the same look",
        "inter_background": alone or "no house is seen twice, or all stories show the same house",
        "fps": NOT_TIMED,
        "chunk_latency": NOT_TIMED,
    }
    return make_axes(source, METHOD, [str(film.story.story.seed) for film in films], tallies, reasons, seed)


def intra_subject(story: StoryReading, k: int, frames: Sequence[Reading]) -> tuple[int, int]:
    """Frames of shot k whose heroes are those of most of its frames, and frames: species, colour and accessory.

    The paper compares DINO features of a shot's frames; here what would make them differ is read exactly. A species'
    colour or accessory that the shot cannot show is left out.
    """
    unseen = story.unseen_in(k)

    def heroes(reading: Reading) -> frozenset[tuple[str, ...]]:
        slots = ("color", "accessory")
        return frozenset(
            (species, *(reading.of_hero(species, s) for s in slots if (species, s) not in unseen))
            for species in reading.species()
        )

    return _most_common([heroes(reading) for reading in frames]), len(frames)


def intra_background(story: StoryReading, k: int, frames: Sequence[Reading]) -> tuple[int, int]:
    """Frames of shot k whose background is that of most of its frames, and frames: place, time and the house.

    The paper compares features of the background. A house may come into view in the middle of a shot: its colour,
    roof and side are held against those frames that show it, and only where the shot can show it.
    """
    scenes = [(r.of_scene("place"), r.of_scene("time")) for r in frames]
    scene = Counter(scenes).most_common(1)[0][0]
    houses = [
        tuple(r.of_scene(slot) for slot in HOUSE)
        if ("", "house_color") not in story.unseen_in(k) and r.of_scene("house_seen") == "yes" else None
        for r in frames
    ]  # fmt: skip
    usual = Counter(house for house in houses if house is not None).most_common(1)
    same = [s == scene and (h is None or h == usual[0][0]) for s, h in zip(scenes, houses, strict=True)]
    return sum(same), len(frames)


def prompt_following(story: StoryReading) -> tuple[int, int]:
    """Captioned facts that the film shows, and captioned facts: who, colours, accessories, action, size, place, time.

    The paper compares text and video features; camera movements are captioned too, but not read.
    """
    tallies = tally_story(story)
    counted = [tallies[name] for name in ATTRIBUTES if name in tallies]
    return sum(hits for hits, _ in counted), sum(tries for _, tries in counted)


def hero_looks(story: StoryReading) -> list[list[Look]]:
    """Per hero, what every shot with it shows of what no shot caption names: accessory, its colour, belly patch.

    The paper compares features of the subject between shots. A colour is named in every shot caption; that it is
    right is prompt following. The belly patch is named nowhere, accessories in the global caption.
    """
    looks: list[list[Look]] = []
    for index, hero in enumerate(story.story.characters):
        seen = []
        for k, shot in enumerate(story.story.shots):
            if index not in shot.cast:
                continue
            slots = [slot for slot in UNNAMED if (hero.species, slot) not in story.unseen_in(k)]
            look = {slot: story.shots[k].of_hero(hero.species, slot) for slot in slots}
            if look.get("accessory", "none") == "none":
                look.pop("accessory_color", None)
            seen.append(look)
        looks.append(seen)
    return looks


def house_looks(story: StoryReading) -> list[Look]:
    """What every shot that can show the house, and does, shows of it: colour, roof and side, which no caption names.

    The paper compares features of the background between shots.
    """
    return [
        {slot: shot.of_scene(slot) for slot in HOUSE}
        for k, shot in enumerate(story.shots)
        if ("", "house_color") not in story.unseen_in(k) and shot.of_scene("house_seen") == "yes"
    ]


def agreement_above_chance(films: Sequence[Sequence[Sequence[Look]]]) -> list[tuple[float, float]]:
    """Per film (things, each with its looks in several shots): agreement less luck's share, and what luck left open.

    Agreement is counted per slot over all pairs of looks of one thing. Luck is how often the pair's values are met in
    the other films. The ratio of sums is Cohen's kappa: 1 when all agree, 0 when shots agree as strangers do.
    """
    shown = [Counter((slot, v) for thing in film for look in thing for slot, v in look.items()) for film in films]
    everywhere = sum(shown, Counter[tuple[str, str]]())
    tallies = []
    for film, own in zip(films, shown, strict=True):
        others = everywhere - own
        per_slot = Counter[str]()
        for (slot, _), count in others.items():
            per_slot[slot] += count
        above, left = 0.0, 0.0
        for thing in film:
            for one, other in combinations(thing, 2):
                for slot in one.keys() & other.keys():
                    if per_slot[slot]:
                        luck = (others[slot, one[slot]] + others[slot, other[slot]]) / (2 * per_slot[slot])
                        above += (one[slot] == other[slot]) - luck
                        left += 1 - luck
        tallies.append((above, left))
    return tallies


def _most_common(values: Sequence[Hashable]) -> int:
    return Counter(values).most_common(1)[0][1]


def _sum(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    found = list(pairs)
    return sum(hits for hits, _ in found), sum(tries for _, tries in found)
