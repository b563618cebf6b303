"""What the oracle reads: the slots, their values, and the true reading of a rendered frame. No network here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shotstream.training.world.camera import ZOOM, camera_for
from shotstream.training.world.figures import pose_for
from shotstream.training.world.story import (
    ACCESSORIES,
    ACCESSORY_COLORS,
    ACTIONS,
    BELLY_COLORS,
    COLORS,
    HOUSE_COLORS,
    PLACES,
    ROOF_COLORS,
    SIZES,
    SPECIES,
    TIMES,
    Character,
    Story,
)

UNKNOWN = -1

HERO_SLOTS: dict[str, tuple[str, ...]] = {
    "color": COLORS,
    "accessory": ACCESSORIES,
    "accessory_color": ACCESSORY_COLORS,
    "action": ACTIONS,
    "belly": BELLY_COLORS,
}
"""Read once per species: two heroes of a story never share one."""

FRAME_SLOTS: dict[str, tuple[str, ...]] = {
    "size": SIZES,
    "place": PLACES,
    "time": TIMES,
    "house_seen": ("no", "yes"),
    "house_color": HOUSE_COLORS,
    "roof": ROOF_COLORS,
    "house_side": ("left", "right"),
}

CELLS = (10, 16)
"""The grid on which "where" tells the cell of a hero's head: rows and columns of 8 pixels at 80x128."""

Labels = dict[str, NDArray[np.int64]]
"""Slot -> value index: [N, 4] for "present", "where" and the hero slots (by species), [N] for the frame slots; -1
where nothing is asked."""


def true_labels(story: Story, k: int, frames: Sequence[int]) -> Labels:
    """What a perfect reader says about these frames of shot k."""
    n, shot = len(frames), story.shots[k]
    labels: Labels = {"present": np.zeros((n, len(SPECIES)), np.int64)}
    for slot in ("where", *HERO_SLOTS):
        labels[slot] = np.full((n, len(SPECIES)), UNKNOWN, np.int64)
    for index, action in zip(shot.cast, shot.actions, strict=True):
        hero = story.characters[index]
        column = SPECIES.index(hero.species)
        labels["present"][:, column] = 1
        labels["where"][:, column] = _head_cell(story, k, hero, action, frames)
        labels["color"][:, column] = COLORS.index(hero.color)
        labels["accessory"][:, column] = ACCESSORIES.index(hero.accessory)
        if hero.accessory != "none":
            labels["accessory_color"][:, column] = ACCESSORY_COLORS.index(hero.accessory_color)
        labels["action"][:, column] = ACTIONS.index(action)
        labels["belly"][:, column] = BELLY_COLORS.index(hero.belly)
    stage = story.background
    seen = _house_seen(story, k, frames)
    labels["size"] = np.full(n, SIZES.index(shot.size))
    labels["place"] = np.full(n, PLACES.index(stage.place))
    labels["time"] = np.full(n, TIMES.index(stage.time))
    # A sliver of the house is neither seen nor unseen; nothing is asked about it.
    labels["house_seen"] = np.where(seen > 0.25, 1, np.where(seen <= 0.02, 0, UNKNOWN))
    for slot, value in (
        ("house_color", HOUSE_COLORS.index(stage.house_color)),
        ("roof", ROOF_COLORS.index(stage.roof)),
        ("house_side", int(stage.house_side > 0)),
    ):
        labels[slot] = np.where(seen > 0.25, value, UNKNOWN)
    return labels


def _head_cell(story: Story, k: int, hero: Character, action: str, frames: Sequence[int]) -> NDArray[np.int64]:
    shot, t = story.shots[k], np.asarray(frames, np.float64)
    stage = camera_for(story, shot, t, 80, 128).layer(1.0)
    pose = pose_for(action, t, 80 * ZOOM[shot.size], 0.0, 0.9, len(shot.cast))
    rows, columns = CELLS
    x = np.clip(np.asarray(stage.x(hero.home_x + pose.x)) / 8, 0, columns - 1).astype(np.int64)
    y = np.clip(np.asarray(stage.y(0.62 + pose.lift)) / 8, 0, rows - 1).astype(np.int64)
    return np.broadcast_to(y * columns + x, (len(t),)).copy()


def _house_seen(story: Story, k: int, frames: Sequence[int]) -> NDArray[np.float64]:
    """Share of the house's wall that is inside the frame, [N]."""
    camera = camera_for(story, story.shots[k], np.asarray(frames, np.float64), 80, 128)
    near = camera.layer(0.66)
    centre = story.background.house_side * 1.22
    left, right = np.asarray(near.x(centre - 0.4)), np.asarray(near.x(centre + 0.4))
    inside = np.clip(np.minimum(right, 128.0) - np.maximum(left, 0.0), 0.0, None) / (right - left)
    return np.broadcast_to(inside, (len(frames),)).copy()
