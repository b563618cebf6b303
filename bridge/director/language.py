"""The closed language of a model that was trained on few words: what can be said, and whether a caption says only that.

Models that read any English have none. The words are data (the part `language` of an event map); this file checks cast
sheets, places, times and actions against them and reads finished captions back, so that a caption the model cannot
read never leaves the director.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from shotstream.bridge.director.facts import CastMember
from shotstream.bridge.director.text import article, listed
from shotstream.runtime.errors import UserError


@dataclass(frozen=True)
class Hero:
    """A description taken apart. `accessory` and its colour are empty together."""

    colour: str
    species: str
    accessory: str = ""
    accessory_colour: str = ""

    @property
    def name(self) -> str:
        return f"{self.colour} {self.species}"

    @property
    def description(self) -> str:
        worn = f" with {article(f'{self.accessory_colour} {self.accessory}')}" if self.accessory else ""
        return article(self.name) + worn


@dataclass(frozen=True)
class Language:
    """All words that a model knows. A mapping is of the word in captions to other ways of saying it to the director."""

    species: tuple[str, ...]
    colours: tuple[str, ...]
    accessories: tuple[str, ...]
    accessory_colours: tuple[str, ...]
    places: tuple[str, ...]
    times: Mapping[str, str]
    """Name of a time ("day") to its words in a caption ("by day")."""
    actions: Mapping[str, tuple[str, ...]]
    still_camera: tuple[str, ...]
    """Actions during which the camera cannot move."""
    reads_global: str
    """Form of a global caption, with {heroes}, {place} and {time}."""
    reads_shot: str
    """Form of a shot caption, with {size}, {acts} and {camera}."""

    # ------------------------------------------------------------------------------------ single facts
    def hero(self, text: str, who: str) -> Hero:
        """Take a description apart: "[a] red cat [with a blue scarf]".

        Raises UserError that begins with `who` and says what is known, for words that the model does not know, and for
        an accessory in the hero's own colour, which no training story shows."""
        words = re.sub(r"^(a|an|the) ", "", text.strip().lower().rstrip("."))
        body, _, worn = words.partition(" with ")
        colour, _, species = body.strip().partition(" ")
        species = species.strip()
        if not species:
            raise UserError(f"{who}: '{text}' is no hero this model knows; write {self._hero_form()}")
        _known(colour, self.colours, who, "colour", "colours")
        _known(species, self.species, who, "species", "species")
        if not worn:
            return Hero(colour, species)
        worn_colour, _, accessory = re.sub(r"^(a|an|the) ", "", worn.strip()).partition(" ")
        _known(accessory.strip(), self.accessories, who, "accessory", "accessories")
        _known(worn_colour, self.accessory_colours, who, "accessory colour", "accessory colours")
        if worn_colour == colour:
            others = [each for each in self.accessory_colours if each != colour]
            raise UserError(f"{who}: a {colour} hero wears another colour than {colour}: {listed(others, 'or')}")
        return Hero(colour, species, accessory.strip(), worn_colour)

    def member(self, member: CastMember) -> CastMember:
        """The cast member in the model's words: "red cat", "a red cat with a blue scarf", "the red cat"."""
        who = f"cast member '{member.key}'"
        hero = self.hero(member.description or member.name, who)
        short = f"the {hero.name}"
        if member.short and member.short.lower() != short:
            raise UserError(f"{who}: the model knows this hero as '{short}', not as '{member.short}'; leave short out")
        return replace(member, name=hero.name, description=hero.description, short=short)

    def action(self, text: str, where: str) -> str:
        """The action in the model's words: "waves" for "wave"."""
        return _alias(text, self.actions, where, "action", "actions")

    def place(self, text: str, where: str) -> str:
        """The place in the model's words."""
        return _known(re.sub(r"^(a|an|the) ", "", text.lower()), self.places, where, "place", "places")

    def time(self, text: str, where: str) -> str:
        """The name of a time, from itself or its words: "day" for "by day"."""
        return _alias(text, {name: (words,) for name, words in self.times.items()}, where, "time", "times")

    def check_heroes(self, members: Iterable[CastMember]) -> None:
        """Two heroes of one global caption must differ in species and colour, or no caption could tell them apart."""
        seen: dict[str, str] = {}
        for member in members:
            hero = self.hero(member.description, f"cast member '{member.key}'")
            for word in (hero.colour, hero.species):
                if other := seen.get(word):
                    raise UserError(
                        f"'{other}' and '{member.key}' are both {word}; two heroes of one scene differ in colour and "
                        "species, or the model could not tell them apart"
                    )
            seen |= {hero.colour: member.key, hero.species: member.key}

    # ------------------------------------------------------------------------------------ whole captions
    def check_global(self, caption: str, where: str) -> None:
        """Raise UserError unless the model can read this global caption."""
        heroes = rf"(?:{self._hero_pattern()})(?: and (?:{self._hero_pattern()}))?"
        parts = {"heroes": heroes, "place": _any(self.places), "time": _any(self.times.values())}
        if not re.fullmatch(_filled(self.reads_global, parts), caption):
            raise UserError(f"{where}: the model cannot read '{caption}'; its form is '{self.reads_global}'")

    def check_shot(self, caption: str, sizes: Iterable[str], cameras: Iterable[str], where: str) -> None:
        """Raise UserError unless the model can read this shot caption. sizes, cameras: their words in captions."""
        act = rf"the {_any(self.colours)} {_any(self.species)} {_any(self.actions)}"
        parts = {"size": _any(sizes), "acts": f"{act}(?: and {act})?", "camera": _any(cameras)}
        if not re.fullmatch(_filled(self.reads_shot, parts), caption):
            raise UserError(f"{where}: the model cannot read '{caption}'; its form is '{self.reads_shot}'")

    def _hero_form(self) -> str:
        colour, worn = self.colours[0], next(each for each in self.accessory_colours if each != self.colours[0])
        worn = f"{worn} {self.accessories[0]}"
        return f"colour and species, as in '{article(f'{colour} {self.species[0]}')} with {article(worn)}'"

    def _hero_pattern(self) -> str:
        worn = f" with an? {_any(self.accessory_colours)} {_any(self.accessories)}"
        return f"an? {_any(self.colours)} {_any(self.species)}(?:{worn})?"


def _known(word: str, known: Iterable[str], where: str, one: str, many: str) -> str:
    if word not in known:
        raise UserError(f"{where}: this model does not know the {one} '{word}'; its {many} are {listed(known)}")
    return word


def _alias(text: str, known: Mapping[str, tuple[str, ...]], where: str, one: str, many: str) -> str:
    wanted = text.lower().rstrip(".")
    for word, others in known.items():
        if wanted == word or wanted in others:
            return word
    raise UserError(f"{where}: this model does not know the {one} '{text}'; its {many} are {listed(known)}")


def _any(words: Iterable[str]) -> str:
    # Longest first: "walks left" must not stop at a word that begins it.
    return f"(?:{'|'.join(re.escape(word) for word in sorted(words, key=len, reverse=True))})"


def _filled(form: str, parts: Mapping[str, str]) -> str:
    """The form as a pattern: its own words literally, {names} replaced."""
    pieces = re.split(r"\{(\w+)\}", form)
    return "".join(parts[piece] if number % 2 else re.escape(piece) for number, piece in enumerate(pieces))
