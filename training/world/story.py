"""Stories of the picture-book world: who, where, when and which shots, all drawn from one seed.

This file knows no pixels (see render.py) and no wording (see captions.py). Attributes named in captions and
hidden ones are kept side by side; the hidden ones are never captioned and stay fixed through a story, so only
memory can carry them from shot to shot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SPECIES = ("cat", "bear", "rabbit", "robot")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
ACCESSORIES = ("none", "top hat", "party hat", "scarf")
ACCESSORY_COLORS = ("red", "yellow", "blue", "white")
PLACES = ("meadow", "forest", "beach", "desert", "snowfield", "city")
TIMES = ("day", "sunset", "night")
SIZES = ("wide", "medium", "close-up")
ACTIONS = ("stands still", "walks left", "walks right", "jumps", "waves", "dances")
CAMERAS = ("static", "push in", "pan left", "pan right")

HOUSE_COLORS = ("red", "yellow", "blue", "white", "purple")
ROOF_COLORS = ("brick", "slate", "straw")
BELLY_COLORS = ("cream", "charcoal", "mint", "rose")

# Side, nearest and farthest x: one tree balances the house on the other side; further ones stand beyond it or behind
# the house.
TREE_SPOTS = ((-1, 1.0, 1.4), (-1, 1.75, 2.1), (1, 2.1, 2.4))

HELD_OUT_HEROES = frozenset({("cat", "green"), ("bear", "purple"), ("rabbit", "orange"), ("robot", "pink")})
HELD_OUT_SETTINGS = frozenset({("beach", "night"), ("forest", "sunset")})


@dataclass(frozen=True)
class Character:
    """One hero. `belly`, `eye_scale`, `height` and `home_x` are hidden: no caption ever names them."""

    species: str
    color: str
    accessory: str
    accessory_color: str  # "" when there is no accessory
    belly: str
    eye_scale: float  # 0.9 .. 1.15
    height: float  # 0.94 .. 1.05 world units; 1 is the usual height
    home_x: float  # world units, along the stage

    @property
    def name(self) -> str:
        return f"{self.color} {self.species}"


@dataclass(frozen=True)
class Background:
    """The stage. All but `place` and `time` is hidden. x values are world units, sun values are frame shares."""

    place: str
    time: str
    house_color: str
    house_side: int  # -1 left of the stage, 1 right
    roof: str
    trees: tuple[tuple[float, float], ...]  # (x, scale)
    far_phase: tuple[float, ...]  # 8 numbers in 0 .. 1 that shape the far layer
    sun: tuple[float, float]  # x, y as shares of the frame
    clouds: tuple[tuple[float, float], ...]  # x, y as shares of the frame


@dataclass(frozen=True)
class Shot:
    """One shot: who is seen, doing what, from where."""

    size: str
    cast: tuple[int, ...]  # indices into Story.characters; exactly these are visible
    actions: tuple[str, ...]  # one per member of the cast
    camera: str
    side: int  # -1, 0, 1: the cast stands right of, at, left of the frame's centre
    blink: float  # 0 .. 1, phase of the blinking


@dataclass(frozen=True)
class Story:
    """A whole story. Captions are the canonical ones; `paraphrased` words the same story freely."""

    seed: int
    characters: tuple[Character, ...]
    background: Background
    shots: tuple[Shot, ...]

    @property
    def global_caption(self) -> str:
        from .captions import global_caption

        return global_caption(self)

    def shot_caption(self, k: int) -> str:
        from .captions import shot_caption

        return shot_caption(self, k)


def is_held_out(story: Story) -> bool:
    """True when the story holds a (species, colour) or (place, time) pair that training never shows."""
    heroes = any((c.species, c.color) in HELD_OUT_HEROES for c in story.characters)
    return heroes or (story.background.place, story.background.time) in HELD_OUT_SETTINGS


def sample_story(seed: int, shots: int = 5) -> Story:
    """The training sampler: one story per seed, never a held-out pair."""
    rng = np.random.default_rng([seed, 1])
    while True:
        story = _draw_story(rng, seed, shots)
        if not is_held_out(story):
            return story


def sample_held_out_story(seed: int, shots: int = 5) -> Story:
    """A story that holds at least one pair training never shows, half of them heroes, half settings."""
    rng = np.random.default_rng([seed, 2])
    heroes = rng.random() < 0.5
    while True:
        story = _draw_story(rng, seed, shots)
        if heroes and any((c.species, c.color) in HELD_OUT_HEROES for c in story.characters):
            return story
        if not heroes and (story.background.place, story.background.time) in HELD_OUT_SETTINGS:
            return story


def _draw_story(rng: np.random.Generator, seed: int, shots: int) -> Story:
    count = 1 if rng.random() < 0.55 else 2
    characters: list[Character] = []
    while len(characters) < count:
        home = 0.0 if count == 1 else (-0.43, 0.43)[len(characters)]
        new = _draw_character(rng, home)
        # Two heroes must differ in species and colour, or a caption could not tell them apart.
        if all(new.species != c.species and new.color != c.color for c in characters):
            characters.append(new)
    background = _draw_background(rng)
    drawn: list[Shot] = []
    while len(drawn) < shots:
        shot = _draw_shot(rng, count, first=not drawn)
        if not drawn or _is_visible_cut(drawn[-1], shot):
            drawn.append(shot)
    return Story(seed, tuple(characters), background, tuple(drawn))


def _choose(rng: np.random.Generator, options: tuple[str, ...], weights: tuple[float, ...] | None = None) -> str:
    return options[int(rng.choice(len(options), p=weights))]


def _draw_character(rng: np.random.Generator, home_x: float) -> Character:
    color = _choose(rng, COLORS)
    accessory = _choose(rng, ACCESSORIES, (0.31, 0.23, 0.23, 0.23))
    free = tuple(c for c in ACCESSORY_COLORS if c != color)
    return Character(
        species=_choose(rng, SPECIES),
        color=color,
        accessory=accessory,
        accessory_color="" if accessory == "none" else _choose(rng, free),
        belly=_choose(rng, BELLY_COLORS),
        eye_scale=float(rng.uniform(0.9, 1.15)),
        height=float(rng.uniform(0.94, 1.05)),
        home_x=home_x,
    )


def _draw_background(rng: np.random.Generator) -> Background:
    house_side = int(rng.choice((-1, 1)))
    count = int(rng.integers(1, 4))
    trees = tuple(
        (float(side * house_side * rng.uniform(near, far)), float(rng.uniform(0.85, 1.15)))
        for side, near, far in TREE_SPOTS[:count]
    )
    sun_x = float(rng.uniform(0.12, 0.88))
    clouds = [(float((sun_x + rng.uniform(0.3, 0.45)) % 1.0), float(rng.uniform(0.1, 0.2)))]
    if rng.random() < 0.5:
        clouds.append((float((sun_x + rng.uniform(0.6, 0.7)) % 1.0), float(rng.uniform(0.08, 0.24))))
    return Background(
        place=_choose(rng, PLACES),
        time=_choose(rng, TIMES),
        house_color=_choose(rng, HOUSE_COLORS),
        house_side=house_side,
        roof=_choose(rng, ROOF_COLORS),
        trees=trees,
        far_phase=tuple(float(v) for v in rng.random(8)),
        sun=(sun_x, float(rng.uniform(0.14, 0.24))),
        clouds=tuple(clouds),
    )


def _draw_shot(rng: np.random.Generator, characters: int, first: bool) -> Shot:
    size = _choose(rng, SIZES, (0.5, 0.4, 0.1) if first else (0.33, 0.36, 0.31))
    if characters == 1:
        cast: tuple[int, ...] = (0,)
    elif size == "close-up" or (not first and rng.random() < 0.4):
        cast = (int(rng.integers(2)),)
    else:
        cast = (0, 1)
    weights = (0.16, 0.16, 0.16, 0.16, 0.2, 0.16)
    if size == "close-up":
        weights = (0.3, 0.1, 0.1, 0.12, 0.23, 0.15)  # legs are out of the frame: walking is hard to see
    actions = tuple(_choose(rng, ACTIONS, weights) for _ in cast)
    walking = any(a.startswith("walks") for a in actions)
    # A camera that moves while someone walks would add up to too much motion for the x4 temporal latent.
    camera = "static" if walking else _choose(rng, CAMERAS, (0.66, 0.14, 0.1, 0.1))
    side = int(rng.choice((-1, 0, 1))) if len(cast) == 1 else int(rng.choice((-1, 1)))
    return Shot(size, cast, actions, camera, side, float(rng.random()))


def _is_visible_cut(before: Shot, after: Shot) -> bool:
    """The 30-degree rule: another size, other subjects, or the camera on the other side."""
    return before.size != after.size or before.cast != after.cast or before.side * after.side < 0
