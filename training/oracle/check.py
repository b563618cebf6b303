"""Compares what the reader says with what a story says, slot by slot: how far the oracle itself can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shotstream.training.world import Story, render_shot

from .reader import Reader, Reading
from .slots import FRAME_SLOTS, HERO_SLOTS, true_labels, visible

Tallies = dict[str, tuple[int, int]]
"""Slot -> (right, asked)."""


def reading_errors(story: Story, k: int, reading: Reading, frames: Sequence[int] = range(33)) -> dict[str, list[bool]]:
    """Slot -> whether each reading of it is wrong, for a reading of frames that should be these frames of shot k.

    Asked is what `visible` says can be seen: each hero slot once per hero of the cast, "species" (exactly the cast)
    and the frame slots once.
    """
    shot, stage = story.shots[k], story.background
    wrong = {"species": [reading.species() != {story.characters[i].species for i in shot.cast}]}
    for hero_index, action in zip(shot.cast, shot.actions, strict=True):
        hero = story.characters[hero_index]
        for slot in HERO_SLOTS:
            if visible(story, k, slot, hero_index, frames):
                value = action if slot == "action" else getattr(hero, slot)
                wrong.setdefault(slot, []).append(reading.of_hero(hero.species, slot) != value)
    seen = true_labels(story, k, [frames[0]])["house_seen"][0]
    truth = {
        "size": shot.size,
        "place": stage.place,
        "time": stage.time,
        "house_seen": FRAME_SLOTS["house_seen"][int(seen)],
        "house_color": stage.house_color,
        "roof": stage.roof,
        "house_side": "right" if stage.house_side > 0 else "left",
    }
    for slot, value in truth.items():
        if visible(story, k, slot, None, frames):
            wrong.setdefault(slot, []).append(reading.of_scene(slot) != value)
    return wrong


def agreement(reader: Reader, stories: Sequence[Story], frames: int = 33,
              make: Callable[[Story, int], NDArray[np.uint8]] | None = None) -> Tallies:
    """Right and asked readings per slot over all shots of the stories.

    `make` gives the frames [F, H, W, 3] for (story, shot); without it the true renders of `frames` frames are read.
    """
    tallies: Tallies = {}
    for story in stories:
        for k in range(len(story.shots)):
            shown = make(story, k) if make else render_shot(story, k, frames)
            for slot, wrong in reading_errors(story, k, reader.read_shot(shown), range(frames)).items():
                right, asked = tallies.get(slot, (0, 0))
                tallies[slot] = (right + wrong.count(False), asked + len(wrong))
    return tallies


def share(tallies: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """The share of right readings per slot."""
    return {slot: right / asked for slot, (right, asked) in tallies.items()}
