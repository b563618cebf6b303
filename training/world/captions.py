"""What is said about a story: canonical captions, and free paraphrases of the same facts.

Canonical captions are fixed wording (tests, the command line, games); paraphrases draw templates, synonyms and
clause order so that a text encoder trained on them understands people. Hidden attributes never appear.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import numpy as np

from .story import Character, Story

SYNONYMS: dict[str, tuple[str, ...]] = {
    "red": ("crimson", "scarlet"),
    "orange": ("tangerine",),
    "yellow": ("golden", "lemon"),
    "green": ("emerald",),
    "blue": ("navy", "azure"),
    "purple": ("violet",),
    "pink": ("rosy",),
    "white": ("snow-white", "ivory"),
    "cat": ("kitten", "kitty"),
    "bear": ("grizzly", "teddy bear"),
    "rabbit": ("bunny", "hare"),
    "robot": ("droid", "android"),
    "top hat": ("tall hat", "cylinder hat"),
    "party hat": ("pointed hat", "cone hat"),
    "scarf": ("shawl", "muffler"),
    "meadow": ("field of grass", "pasture", "grassland"),
    "forest": ("woods", "woodland"),
    "beach": ("shore", "seaside"),
    "desert": ("dunes", "sandy desert"),
    "snowfield": ("tundra", "snowy plain"),
    "city": ("downtown", "town"),
    "wide": ("Establishing shot", "Long shot", "Wide view"),
    "medium": ("Mid shot", "Waist shot", "Medium view"),
    "close-up": ("Tight shot", "Face shot", "Close shot"),
    "stands still": ("waits", "is standing", "stays put"),
    "walks left": ("strolls left", "wanders to the left", "is walking left"),
    "walks right": ("strolls right", "wanders to the right", "is walking right"),
    "jumps": ("leaps", "hops", "is jumping"),
    "waves": ("says hello", "is waving", "waves a hand"),
    "dances": ("boogies", "grooves", "is dancing"),
    "push in": ("the camera moves closer", "slow push in", "the camera zooms in"),
    "pan left": ("panning left", "the camera moves left", "slow pan left"),
    "pan right": ("panning right", "the camera moves right", "slow pan right"),
}
SIZE_NAMES = {"wide": "Wide shot", "medium": "Medium shot", "close-up": "Close-up"}
CAMERA_NAMES = {"push in": "the camera pushes in", "pan left": "the camera pans left",
                "pan right": "the camera pans right"}
TIME_NAMES = {"day": "by day", "sunset": "at sunset", "night": "at night"}
TIME_SYNONYMS: dict[str, tuple[str, ...]] = {
    "day": ("in daylight", "during the day", "at noon", "in the sunshine"),
    "sunset": ("at dusk", "in the evening", "at sundown", "in evening light"),
    "night": ("after dark", "by night", "in the moonlight", "at midnight"),
}
PREPOSITIONS = {"meadow": "in", "forest": "in", "beach": "on", "desert": "in", "snowfield": "on", "city": "in"}

# In words, full stops and colons; with "shot0:" in between a full caption fits the 48 rows of the text encoder.
GLOBAL_LENGTH, SHOT_LENGTH = 27, 19

GLOBAL_TEMPLATES = (
    "A story about {heroes}. Setting: {place} {time}.",
    "{Heroes} {prep} the {place} {time}.",
    "{Place} {time}. With {heroes}.",
    "Once upon a time there was {heroes}. Place: {place} {time}.",
    "Setting: {place} {time}. Heroes: {heroes}.",
    "This is the tale of {heroes}, {prep} the {place} {time}.",
    "{Time}, {prep} the {place}: {heroes}.",
)
SHOT_TEMPLATES = (
    "{size}: {acts}{camera}.",
    "{size} of {acts}{camera}.",
    "{Acts}, {size_lower}{camera}.",
    "{Camera_first}{size_lower}, {acts}.",
    "{Acts}{camera}. {size}.",
    "In a {size_lower}, {acts}{camera}.",
)
WEARING = ("with {a}", "wearing {a}", "who wears {a}", "in {a}", "that has {a}")


def article(words: str) -> str:
    """The words with "a" or "an" in front."""
    return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"


def global_caption(story: Story) -> str:
    """The canonical caption of the whole story: heroes with accessories, place, time."""
    heroes = " and ".join(_hero(c) for c in story.characters)
    place = story.background
    return f"A story about {heroes}. Setting: {place.place} {TIME_NAMES[place.time]}."


def shot_caption(story: Story, k: int) -> str:
    """The canonical caption of shot k (zero-based): size, every visible character with its action, camera."""
    shot = story.shots[k]
    acts = " and ".join(f"the {story.characters[i].name} {a}" for i, a in zip(shot.cast, shot.actions, strict=True))
    camera = f", {CAMERA_NAMES[shot.camera]}" if shot.camera in CAMERA_NAMES else ""
    return f"{SIZE_NAMES[shot.size]}: {acts}{camera}."


def paraphrased(story: Story, seed: int) -> tuple[str, list[str]]:
    """The same story worded freely: (global caption, shot captions). Deterministic in (story, seed)."""
    rng = np.random.default_rng([story.seed & 0x7FFFFFFF, seed & 0x7FFFFFFF, 3])
    say = _Speaker(rng)
    whole = _within(GLOBAL_LENGTH, lambda: say.story(story))
    return whole, [_within(SHOT_LENGTH, partial(say.shot, story, k)) for k in range(len(story.shots))]


def _within(length: int, draw: Callable[[], str]) -> str:
    """Draws until the wording is short enough; the short templates always are."""
    while True:
        caption = draw()
        if len(re.findall(r"[\w-]+|[.:]", caption)) <= length:
            return caption


def _hero(who: Character) -> str:
    worn = f" with {article(f'{who.accessory_color} {who.accessory}')}" if who.accessory != "none" else ""
    return article(who.name) + worn


class _Speaker:
    """Draws words. The canonical word keeps the largest share, so that it is known best."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def pick(self, options: tuple[str, ...]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def word(self, key: str, canonical: str | None = None) -> str:
        if key in SYNONYMS and self.rng.random() < 0.4:
            return self.pick(SYNONYMS[key])
        return canonical if canonical is not None else key

    def story(self, story: Story) -> str:
        order = self.rng.permutation(len(story.characters))
        heroes = " and ".join(self._hero(story.characters[i]) for i in order)
        place, time = self.word(story.background.place), story.background.time
        when = self.pick(TIME_SYNONYMS[time]) if self.rng.random() < 0.4 else TIME_NAMES[time]
        canonical = self.rng.random() < 0.35
        template = GLOBAL_TEMPLATES[0] if canonical else self.pick(GLOBAL_TEMPLATES)
        return template.format(heroes=heroes, Heroes=_upper(heroes), place=place, Place=_upper(place), time=when,
                               Time=_upper(when), prep=PREPOSITIONS[story.background.place])

    def shot(self, story: Story, k: int) -> str:
        shot = story.shots[k]
        order = self.rng.permutation(len(shot.cast))
        # Sometimes the colour is left out: who it is must then come from the global caption or from memory.
        plain = self.rng.random() < 0.2
        acts = []
        for i in order:
            who = story.characters[shot.cast[i]]
            name = self.word(who.species) if plain else f"{self.word(who.color)} {self.word(who.species)}"
            acts.append(f"the {name} {self.word(shot.actions[i])}")
        size = self.word(shot.size, SIZE_NAMES[shot.size])
        camera = self.word(shot.camera, CAMERA_NAMES[shot.camera]) if shot.camera in CAMERA_NAMES else ""
        canonical = self.rng.random() < 0.35
        template = SHOT_TEMPLATES[0] if canonical else self.pick(SHOT_TEMPLATES)
        said = " and ".join(acts)
        return _upper(template.format(size=size, size_lower=size.lower(), acts=said, Acts=_upper(said),
                                      camera=f", {camera}" if camera else "",
                                      Camera_first=f"{_upper(camera)}, " if camera else ""))

    def _hero(self, who: Character) -> str:
        name = article(f"{self.word(who.color)} {self.word(who.species)}")
        if who.accessory == "none":
            return name
        worn = article(f"{self.word(who.accessory_color)} {self.word(who.accessory)}")
        return f"{name} {self.pick(WEARING).format(a=worn)}"


def _upper(words: str) -> str:
    return words[:1].upper() + words[1:]
