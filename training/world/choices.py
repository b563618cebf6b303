"""What a shot shows and no caption says, spelled in signs: where the hero stands, which house, how the hills run.

A caption has many true pictures; caption, history and these signs together have nearly one. A fair coin may decide each
sign, so that a model can be given them as a part of its noise (`method/coupled.py`) and toss its own when it plays.
Signs rather than normal numbers, because a choice must not hang on which of two nearly equal numbers is the larger: a
model that is not sure of it shows both.

A number on a scale is spelled in twos, the largest part first, the smallest parts in a place of their own; one of
several things likewise, by its place in the list, some of the things having more spellings than others. A hero in the
middle is one that stands neither left nor right, so that the middle comes twice as often as a side.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from .story import BELLY_COLORS, HOUSE_COLORS, ROOF_COLORS, TREE_SPOTS, Story

Signs = NDArray[np.float32]
_SIDE, _BLINK, _SCENE, _TREES, _FAR, _SUN, _CLOUDS, _HEROES, _HERO = 0, 2, 5, 15, 30, 46, 51, 58, 6
_FINE_SUN, _FINE_TREES, _FINE_FAR, _FINE_CLOUDS, _FINE_HEROES, _FINE_BLINK = 70, 73, 82, 90, 94, 98
CHOICES = _FINE_BLINK + 1
"""How many signs a shot has."""


def choices(story: Story, k: int, shown: Collection[int], seed: int) -> Signs:
    """The signs of shot k (zero-based), float32 ``[CHOICES]`` of -1 and 1; NaN where there is nothing to choose.

    shown: shots of the story that whoever draws the picture has seen; what these show is no choice any more, and
    without any the whole scene is one. seed: decides between several spellings of a choice.
    """
    rng = np.random.default_rng(seed)
    found = np.full(CHOICES, np.nan, np.float32)
    shot = story.shots[k]
    if len(shot.cast) == 1:
        turn = -1 if rng.random() < 0.5 else 1
        found[_SIDE : _SIDE + 2] = (shot.side, shot.side) if shot.side else (turn, -turn)
    else:  # two stand on one side or the other
        found[_SIDE] = shot.side
    _put_scale(found, shot.blink, 0, 1, (_BLINK, 3), (_FINE_BLINK, 1))
    if not shown:
        _put_scene(found, story, rng)
    met = {who for s in shown for who in story.shots[s].cast}
    for who in shot.cast:
        if who not in met:
            hero, place, fine = story.characters[who], _HEROES + _HERO * who, _FINE_HEROES + 2 * who
            _put(found, place, BELLY_COLORS.index(hero.belly), 2)
            _put_scale(found, hero.eye_scale, 0.9, 1.15, (place + 2, 2), (fine, 1))
            _put_scale(found, hero.height, 0.94, 1.05, (place + 4, 2), (fine + 1, 1))
    return found


def _put_scene(found: Signs, story: Story, rng: np.random.Generator) -> None:
    scene = story.background
    _put(found, _SCENE, _spelling(HOUSE_COLORS.index(scene.house_color), len(HOUSE_COLORS), 3, rng), 3)
    _put(found, _SCENE + 3, _spelling(ROOF_COLORS.index(scene.roof), len(ROOF_COLORS), 3, rng), 3)
    found[_SCENE + 6] = scene.house_side
    _put(found, _SCENE + 7, _spelling(len(scene.trees) - 1, len(TREE_SPOTS), 3, rng), 3)
    for i, ((x, scale), (_, near, far)) in enumerate(zip(scene.trees, TREE_SPOTS, strict=False)):
        place, fine = _TREES + 5 * i, _FINE_TREES + 3 * i
        _put_scale(found, abs(x), near, far, (place, 3), (fine, 2))
        _put_scale(found, scale, 0.85, 1.15, (place + 3, 2), (fine + 2, 1))
    for i, phase in enumerate(scene.far_phase):
        _put_scale(found, phase, 0, 1, (_FAR + 2 * i, 2), (_FINE_FAR + i, 1))
    _put_scale(found, scene.sun[0], 0.12, 0.88, (_SUN, 3), (_FINE_SUN, 2))
    _put_scale(found, scene.sun[1], 0.14, 0.24, (_SUN + 3, 2), (_FINE_SUN + 2, 1))
    found[_CLOUDS] = 1 if len(scene.clouds) > 1 else -1
    spots = ((0.3, 0.45, 0.1, 0.2), (0.6, 0.7, 0.08, 0.24))
    for i, ((x, y), (near, far, high, low)) in enumerate(zip(scene.clouds, spots, strict=False)):
        place, fine = _CLOUDS + 1 + 3 * i, _FINE_CLOUDS + 2 * i
        _put_scale(found, (x - scene.sun[0]) % 1.0, near, far, (place, 2), (fine, 1))
        _put_scale(found, y, high, low, (place + 2, 1), (fine + 1, 1))


def _put(found: Signs, place: int, number: int, count: int) -> None:
    """Spell a whole number in ``count`` signs."""
    found[place : place + count] = [1 if number >> (count - 1 - i) & 1 else -1 for i in range(count)]


def _put_scale(
    found: Signs, value: float, low: float, high: float, coarse: tuple[int, int], fine: tuple[int, int]
) -> None:
    """Spell where on a scale a value lies. coarse, fine: place and number of the signs for large and small parts."""
    (place, count), (fine_place, more) = coarse, fine
    level = _level(value, low, high, count + more)
    _put(found, place, level >> more, count)
    _put(found, fine_place, level % 2**more, more)


def _level(value: float, low: float, high: float, count: int) -> int:
    """Which of ``2**count`` equal parts of a scale the value lies in."""
    parts = 2**count
    return min(max(int((value - low) / (high - low) * parts), 0), parts - 1)


def _spelling(index: int, things: int, count: int, rng: np.random.Generator) -> int:
    """A number of ``count`` signs that stands for this one of the things; all of them stand for one."""
    return int(rng.choice([n for n in range(2**count) if n * things // 2**count == index]))
