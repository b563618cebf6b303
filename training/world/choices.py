"""What a shot shows and no caption says, as numbers: where the hero stands, which house, how the hills run.

A caption has many true pictures; caption, history and these numbers together have one. The numbers are standard normal
and independent when the choices are what the story sampler draws, so that a model may be given them as a part of its
noise (`method/coupled.py`) and draws its own when it plays:

- one of several: so many numbers, the largest of which names it;
- one of two: a number's sign;
- a place on a scale: the normal number of the same rank;
- a phase: the direction of two numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .story import BELLY_COLORS, HOUSE_COLORS, ROOF_COLORS, TREE_SPOTS, Character, Story

Numbers = NDArray[np.float64]
_SIDE, _BLINK, _SCENE, _HEROES, _HERO = 0, 3, 5, 38, 6
CHOICES = _HEROES + 2 * _HERO
"""How many numbers a shot has."""
_NORMAL = NormalDist()


def choices(story: Story, k: int, shown: Collection[int], seed: int) -> NDArray[np.float32]:
    """The numbers of shot k (zero-based), float32 ``[CHOICES]``; NaN where there is nothing to choose.

    shown: shots of the story that whoever draws the picture has seen; what these show is no choice any more, and
    without any the whole scene is one. seed: decides what the choice leaves open of a number.
    """
    rng = np.random.default_rng(seed)
    found: Numbers = np.full(CHOICES, np.nan)

    def put(place: int, numbers: Sequence[float] | Numbers) -> None:
        found[place : place + len(numbers)] = numbers

    shot = story.shots[k]
    one = len(shot.cast) == 1  # two stand on one side or the other, one may stand in the middle
    put(_SIDE, _one_of(3, shot.side + 1, rng) if one else _either(shot.side > 0, rng))
    put(_BLINK, _phase(shot.blink, rng))
    if not shown:
        _put_scene(put, story, rng)
    met = {who for s in shown for who in story.shots[s].cast}
    for who in shot.cast:
        if who not in met:
            put(_HEROES + _HERO * who, _hero(story.characters[who], rng))
    return found.astype(np.float32)


def _put_scene(put: Callable[[int, Any], None], story: Story, rng: np.random.Generator) -> None:
    scene = story.background
    put(_SCENE, _one_of(len(HOUSE_COLORS), HOUSE_COLORS.index(scene.house_color), rng))
    put(_SCENE + 5, _one_of(len(ROOF_COLORS), ROOF_COLORS.index(scene.roof), rng))
    put(_SCENE + 8, _either(scene.house_side > 0, rng))
    put(_SCENE + 9, _one_of(len(TREE_SPOTS), len(scene.trees) - 1, rng))
    for i, ((x, scale), (_, near, far)) in enumerate(zip(scene.trees, TREE_SPOTS, strict=False)):
        put(_SCENE + 12 + 2 * i, [_on_scale(abs(x), near, far), _on_scale(scale, 0.85, 1.15)])
    put(_SCENE + 18, [_on_scale(phase, 0, 1) for phase in scene.far_phase])
    put(_SCENE + 26, [_on_scale(scene.sun[0], 0.12, 0.88), _on_scale(scene.sun[1], 0.14, 0.24)])
    put(_SCENE + 28, _either(len(scene.clouds) > 1, rng))
    spots = ((0.3, 0.45, 0.1, 0.2), (0.6, 0.7, 0.08, 0.24))
    for i, ((x, y), (near, far, high, low)) in enumerate(zip(scene.clouds, spots, strict=False)):
        put(_SCENE + 29 + 2 * i, [_on_scale((x - scene.sun[0]) % 1.0, near, far), _on_scale(y, high, low)])


def _hero(who: Character, rng: np.random.Generator) -> Numbers:
    belly = _one_of(len(BELLY_COLORS), BELLY_COLORS.index(who.belly), rng)
    return np.append(belly, [_on_scale(who.eye_scale, 0.9, 1.15), _on_scale(who.height, 0.94, 1.05)])


def _one_of(count: int, index: int, rng: np.random.Generator) -> Numbers:
    numbers = rng.standard_normal(count)
    largest = int(numbers.argmax())
    numbers[index], numbers[largest] = numbers[largest], numbers[index]
    return numbers


def _either(positive: bool, rng: np.random.Generator) -> list[float]:
    size = abs(float(rng.standard_normal()))
    return [size if positive else -size]


def _on_scale(value: float, low: float, high: float) -> float:
    return _NORMAL.inv_cdf(min(max((value - low) / (high - low), 1e-4), 1 - 1e-4))


def _phase(turns: float, rng: np.random.Generator) -> list[float]:
    length = float(np.sqrt(-2 * np.log(1 - rng.random())))
    return [length * float(np.cos(2 * np.pi * turns)), length * float(np.sin(2 * np.pi * turns))]
