"""What the oracle reads: the slots, their values, the true reading of a rendered shot, and what can be seen of it.

No network here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shotstream.runtime.errors import UserError
from shotstream.training.world import render_shot
from shotstream.training.world.camera import ZOOM, camera_for
from shotstream.training.world.figures import pose_for
from shotstream.training.world.render import SPEED_BUDGET, SPEED_BUDGET_MOVING_CAMERA
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
    Shot,
    Story,
)

UNKNOWN = -1
HOUSE_SHARE = 0.25
"""The share of the house's wall inside the frame from which the house is asked about."""

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

PIXELS, LEVELS = 12, 24
"""What makes a fact visible: so many pixels of a frame at 80x128, changed by so many grey levels."""

WALKED = 2.5
"""Pixels at 80x128 by which a head must move to be seen walking."""

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
        labels["where"][:, column] = _head_cell(story, k, index, frames)
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
    labels["house_seen"] = np.where(seen > HOUSE_SHARE, 1, np.where(seen <= 0.02, 0, UNKNOWN))
    for slot, value in (
        ("house_color", HOUSE_COLORS.index(stage.house_color)),
        ("roof", ROOF_COLORS.index(stage.roof)),
        ("house_side", int(stage.house_side > 0)),
    ):
        labels[slot] = np.where(seen > HOUSE_SHARE, value, UNKNOWN)
    return labels


def head_track(story: Story, k: int, hero: int, frames: Sequence[int]) -> NDArray[np.float64]:
    """Where the head of a hero of shot k is: its centre as (x, y), in pixels at 80x128, [N, 2].

    `hero` indexes `story.characters` and is in the shot's cast; the centre may be outside of the frame.
    """
    shot, t = story.shots[k], np.asarray(frames, np.float64)
    who, action = story.characters[hero], shot.actions[shot.cast.index(hero)]
    camera = camera_for(story, shot, t, 80, 128)
    stage = camera.layer(1.0)
    budget = SPEED_BUDGET_MOVING_CAMERA if camera.moving else SPEED_BUDGET
    pose = pose_for(action, t, 80 * ZOOM[shot.size], 0.0, budget, len(shot.cast))
    x = np.asarray(stage.x(who.home_x + pose.x)) + pose.sway * stage.s * who.height
    y = np.asarray(stage.base - (0.62 + pose.lift) * stage.s * who.height)
    return np.stack([np.broadcast_to(v, (len(t),)) for v in (x, y)], axis=-1)


def _head_cell(story: Story, k: int, hero: int, frames: Sequence[int]) -> NDArray[np.int64]:
    rows, columns = CELLS
    x, y = (head_track(story, k, hero, frames) // 8).astype(np.int64).T
    return np.asarray(np.clip(y, 0, rows - 1) * columns + np.clip(x, 0, columns - 1))


def visible(story: Story, k: int, slot: str, hero: int | None = None, frames: Sequence[int] = range(33)) -> bool:
    """Whether these frames of shot k show enough of a fact for anyone to read it from a true render.

    `slot` is one of HERO_SLOTS or FRAME_SLOTS; `hero` indexes `story.characters` and is needed for hero slots.
    A fact is visible when every other value of it would change at least 12 pixels of a frame at 80x128 by at least
    24 grey levels, on average over three of the frames: they are rendered again with each of them, so occlusion and
    the edge of the frame count. A walk must also get somewhere in these frames. False for a hero out of the shot and
    for the colour of an accessory nobody wears. Size, place and time are always visible; the house is when
    more than a quarter of its wall is inside the frame, "house_seen" when it is clearly in or clearly out in all three.
    Answers are kept: asking again is free. Raises UserError for an unknown slot or a hero slot without a hero.
    """
    if slot not in HERO_SLOTS and slot not in FRAME_SLOTS:
        raise UserError(f"the oracle reads no slot {slot!r}; it reads {', '.join((*HERO_SLOTS, *FRAME_SLOTS))}.")
    if slot in HERO_SLOTS and hero is None:
        raise UserError(f"whether {slot!r} is visible depends on the hero: pass its index in story.characters.")
    picked = np.linspace(0, len(frames) - 1, 3).round().astype(int)
    return _visible(story, k, slot, hero if slot in HERO_SLOTS else None, tuple(int(frames[i]) for i in picked))


def unseen(story: Story, k: int, frames: Sequence[int] = range(33)) -> frozenset[tuple[str, str]]:
    """All that is not `visible` in these frames of shot k: (species, hero slot) of its cast, ("", frame slot)."""
    pairs = [(story.characters[i].species, slot, i) for i in story.shots[k].cast for slot in HERO_SLOTS]
    hidden = [(species, slot) for species, slot, i in pairs if not visible(story, k, slot, i, frames)]
    return frozenset(hidden + [("", slot) for slot in FRAME_SLOTS if not visible(story, k, slot, None, frames)])


@lru_cache(maxsize=16384)
def _visible(story: Story, k: int, slot: str, hero: int | None, frames: tuple[int, ...]) -> bool:
    if slot in ("size", "place", "time"):
        return True
    if slot == "house_seen":
        labels = true_labels(story, k, frames)["house_seen"]
        return bool(labels[0] != UNKNOWN and (labels == labels[0]).all())
    shot = story.shots[k]
    if hero is None:
        # A shot without its house must not ask for it, however much a change of the house would show elsewhere.
        if _house_seen(story, k, frames).mean() <= HOUSE_SHARE:
            return False
    elif hero not in shot.cast or (slot == "accessory_color" and story.characters[hero].accessory == "none"):
        return False
    elif slot == "action" and shot.actions[shot.cast.index(hero)].startswith("walks"):
        # A walker that has arrived stands, whatever the story says.
        way = head_track(story, k, hero, frames)[:, 0]
        if abs(way[-1] - way[0]) < WALKED:
            return False
    true = _picture(story, k, frames)
    return all(_changed(_picture(other, k, frames), true) >= PIXELS for other in _others(story, k, slot, hero))


def _changed(frames_FHWC: NDArray[np.uint8], others_FHWC: NDArray[np.uint8]) -> float:
    """Pixels per frame that differ by LEVELS in some channel."""
    difference = np.abs(frames_FHWC.astype(np.int16) - others_FHWC.astype(np.int16)).max(-1)
    return float((difference >= LEVELS).sum((1, 2)).mean())


@lru_cache(maxsize=256)
def _picture(story: Story, k: int, frames: tuple[int, ...]) -> NDArray[np.uint8]:
    return render_shot(story, k, frames)


def _others(story: Story, k: int, slot: str, hero: int | None) -> list[Story]:
    """The story with every other value of one fact of shot k."""
    if hero is None:
        stage = story.background
        if slot == "house_side":
            return [replace(story, background=replace(stage, house_side=-stage.house_side))]
        values = FRAME_SLOTS[slot]
        # Dataclass fields are named like the slots.
        stages = [replace(stage, **{slot: v}) for v in values if v != getattr(stage, slot)]  # type: ignore[arg-type]
        return [replace(story, background=one) for one in stages]
    if slot == "action":
        shot, place = story.shots[k], story.shots[k].cast.index(hero)
        acts = [(*shot.actions[:place], v, *shot.actions[place + 1 :]) for v in ACTIONS if v != shot.actions[place]]
        return [_with_shot(story, k, replace(shot, actions=one)) for one in acts]
    who = story.characters[hero]
    if slot == "accessory":
        worn = who.accessory_color or ("red" if who.color != "red" else "blue")
        changed = [replace(who, accessory=v, accessory_color=worn) for v in ACCESSORIES if v != who.accessory]
    else:
        values = HERO_SLOTS[slot]
        changed = [replace(who, **{slot: v}) for v in values if v != getattr(who, slot)]  # type: ignore[arg-type]
    heroes = [(*story.characters[:hero], one, *story.characters[hero + 1 :]) for one in changed]
    return [replace(story, characters=one) for one in heroes]


def _with_shot(story: Story, k: int, shot: Shot) -> Story:
    return replace(story, shots=(*story.shots[:k], shot, *story.shots[k + 1 :]))


def _house_seen(story: Story, k: int, frames: Sequence[int]) -> NDArray[np.float64]:
    """Share of the house's wall that is inside the frame, [N]."""
    camera = camera_for(story, story.shots[k], np.asarray(frames, np.float64), 80, 128)
    near = camera.layer(0.66)
    centre = story.background.house_side * 1.22
    left, right = np.asarray(near.x(centre - 0.4)), np.asarray(near.x(centre + 0.4))
    inside = np.clip(np.minimum(right, 128.0) - np.maximum(left, 0.0), 0.0, None) / (right - left)
    return np.broadcast_to(inside, (len(frames),)).copy()
