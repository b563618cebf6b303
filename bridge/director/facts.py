"""What a director is told, what it remembers and what it answers. Plain data: no rules, no wording, no files.

Everything here is frozen, compares by value and goes through msgspec, so a bridge can store a `StoryState` in a
snapshot and go on from it later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Scalar = str | int | float | bool
"""What a parameter of an event may be."""

AT = ("now", "next_chunk", "next_shot", "auto")
"""When a direction takes effect. `auto` leaves it to the rule, and never stands in a `Direction`."""

REMEMBERED_SHOTS = 16
"""So many shots of a scene are kept in a `StoryState`; the grammar needs the last one, consoles show the others."""


@dataclass(frozen=True)
class Event:
    """Something that happened in the game. Text in it may come from players: it is cleaned before it is used."""

    kind: str
    """Dotted, from the general to the particular: "Story.Act1.DoorOpened"."""
    actor: str = ""
    """Key of the cast member who acts."""
    action: str = ""
    """What the actor does, as a verb phrase in the third person that the target may follow: "opens"."""
    target: str = ""
    """Key of a cast member, or words for a thing: "the brass key"."""
    params: Mapping[str, Scalar] = field(default_factory=dict)
    """What the rule asks for; `size`, `angle` and `camera` are understood with every rule. Others are ignored."""
    tags: tuple[str, ...] = ()
    at: str = "auto"


@dataclass(frozen=True)
class CastMember:
    """One line of the cast sheet. A hero keeps its looks only if the words for it stay the same in every shot."""

    key: str
    name: str = ""
    """What the hero is called: "June", or "red cat". Empty: taken from the description, or from the key."""
    description: str = ""
    """The looks in full, used where the hero is first seen: "a young woman with short black hair". Empty: the name."""
    short: str = ""
    """The words of all later shots. Empty: the name, or what the model's language makes of the description."""


@dataclass(frozen=True)
class ShotRecord:
    """A shot that was asked for. `subject`: cast keys joined by "+", or words for a thing or a place."""

    size: str
    subject: str


@dataclass(frozen=True)
class StoryState:
    """Where the story stands between two directions. The empty one is the start of every film."""

    cast: tuple[CastMember, ...] = ()
    heroes: tuple[str, ...] = ()
    """Keys of those whom the global caption names, in its order."""
    on_screen: tuple[str, ...] = ()
    """Keys of those who are in the scene now; a shot of everyone shows them."""
    appearances: tuple[str, ...] = ()
    """Keys of those whom a shot of this scene has already shown: later captions use the short words for them."""
    place: str = ""
    time: str = ""
    style: str = ""
    mood: str = ""
    global_caption: str = ""
    """The one in force; empty before the first scene."""
    shots: tuple[ShotRecord, ...] = ()
    """Shots of this scene, newest last, at most `REMEMBERED_SHOTS`."""
    told: int = 0
    """Shots since the film began; shifts the choice of angles and camera moves."""
    seed: int = 0
    """Shifts the same choice, so that two films of one story need not look alike. Any whole number."""

    def member(self, key: str) -> CastMember | None:
        """The cast member of that key, if there is one."""
        return next((member for member in self.cast if member.key == key), None)

    def after_shot(self, record: ShotRecord, seen: tuple[str, ...]) -> StoryState:
        """The state once a shot was asked for that shows `seen` (cast keys)."""
        new = tuple(key for key in seen if key not in self.appearances)
        return replace(
            self,
            shots=(*self.shots, record)[-REMEMBERED_SHOTS:],
            appearances=(*self.appearances, *new),
            told=self.told + 1,
        )


@dataclass(frozen=True)
class Direction:
    """What the film is to show next."""

    caption: str
    """The shot's caption."""
    global_caption: str | None
    """A new global caption that begins with this shot; None: the one in force stays."""
    size: str
    subject: str
    """Both as in `ShotRecord`; empty where a person's own caption does not say."""
    at: str
    """"now", "next_chunk" or "next_shot"."""
    chunks: int | None
    """Length of the shot, 1 to 100; None: the model's usual length."""
    rule: str
    """Kind of the rule that decided, with its tags behind it; "cut" or "prompt" where none did."""
