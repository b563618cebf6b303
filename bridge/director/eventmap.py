"""An event map: the rules, shot grammar and wording of one style, checked and compiled. Reading the file is `load.py`.

An event's kind is dotted words. A rule's kind is the same, or ends in `*`, which stands for anything below: rules for
`Story.Act1.DoorOpened`, `Story.Act1.*`, `Story.*` and `*` are tried in this order. Of two rules with one kind the one
that asks for more tags is tried first, then the one that stands first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shotstream.bridge.director.facts import Event, Scalar
from shotstream.bridge.director.language import Language
from shotstream.bridge.director.templates import CaptionTemplate
from shotstream.bridge.director.text import listed, nearest
from shotstream.runtime.errors import UserError

SHOW = ("actor", "target", "both", "everyone", "nobody", "whoever")
"""Whom a rule's shot is about: `everyone` is all who are on screen, `nobody` the place or a thing as the target,
`whoever` those whom the event names, else the thing that it names, else everyone."""
SETTABLE = ("place", "time", "mood", "style")
DIRECTED = ("size", "angle", "camera")
"""Params that every event may have: they overrule the grammar and the rule."""


@dataclass(frozen=True)
class Size:
    """A shot size. `cameras` and `angles` are names the grammar goes through in turn; `notes` are further words for
    the templates, under the same names in every size."""

    key: str
    words: str
    sees: int
    """So many cast members fit into the picture, 1 to 8."""
    everyone: bool
    """Shows all who are on screen, not only those whom the event is about."""
    cameras: tuple[str, ...]
    angles: tuple[str, ...]
    notes: Mapping[str, str]


@dataclass(frozen=True)
class Grammar:
    """Which size follows which. The tables have an entry for every size."""

    opening: str
    """Size of a scene's first shot."""
    closer: Mapping[str, str]
    """The next shot is about the same subject, or about a part of it. Never the same size."""
    reverse: Mapping[str, str]
    """The next shot is about somebody else."""
    wider: Mapping[str, str]
    """The next shot is about the same and somebody more."""
    insert: str
    """Size for a thing that is acted on; empty: this style has none."""
    object_verbs: tuple[str, ...]
    """Actions that begin with one of these and have a thing as their target make an insert."""
    everyone_at_start: bool
    """A scene begins with all its heroes on screen, or with none."""
    idle: str
    """What those do of whom nothing is said."""


@dataclass(frozen=True)
class Param:
    """A parameter that a rule reads. `default` None: the event must give it. `example` is for the check at loading."""

    default: Scalar | None
    example: Scalar


@dataclass(frozen=True)
class Rule:
    """What one kind of event does. Empty strings and None leave the decision to the grammar or to the event."""

    kind: str
    tags: frozenset[str] = frozenset()
    at: str = "next_shot"
    show: str = "actor"
    size: str = ""
    angle: str = ""
    camera: str = ""
    chunks: int | None = None
    insert: bool | None = None
    """True: the target is shown alone whatever the verb; False: never; None: the grammar decides."""
    action: CaptionTemplate | None = None
    """What the actor does; None: the event's `action`."""
    reaction: CaptionTemplate | None = None
    """What the target does, if it is of the cast; None: idle."""
    caption: CaptionTemplate | None = None
    """The shot's whole caption; None: that of the style."""
    describe: CaptionTemplate | None = None
    """The actor's new description. Puts an actor on the cast sheet who is not there yet."""
    sets: Mapping[str, CaptionTemplate] = field(default_factory=dict)
    """New place, time, mood, style."""
    params: Mapping[str, Param] = field(default_factory=dict)
    enter: tuple[str, ...] = ()
    """"actor" and "target", if they come on screen before the shot. Whom the shot is about does so anyway."""
    leave: tuple[str, ...] = ()
    """The same, for leaving after the shot."""
    where: str = ""
    """Where it stands: "tiny.yaml: rules[3]"."""

    @property
    def name(self) -> str:
        """The kind, with the tags behind it."""
        return " ".join([self.kind, *sorted(self.tags)])

    @property
    def specificity(self) -> tuple[bool, int, int]:
        """Orders the rules that match one event; the largest wins."""
        words = self.kind.split(".")
        return "*" not in words, len(words) - ("*" in words), len(self.tags)

    def matches(self, kind: str, tags: Iterable[str]) -> bool:
        """Whether the rule is for this kind, and all its tags are among the event's."""
        if self.kind.endswith("*"):
            return kind.startswith(self.kind[:-1]) and self.tags.issubset(tags)
        return kind == self.kind and self.tags.issubset(tags)

    def needs(self, role: str) -> bool:
        """Whether the rule is about the `role` ("actor" or "target") as a cast member."""
        return role in (*self.enter, *self.leave) or self.show in (role, "both") or (role == "actor" and self.describes)

    @property
    def describes(self) -> bool:
        return self.describe is not None


@dataclass(frozen=True)
class EventMap:
    """Everything a director of one style goes by."""

    name: str
    """File name without folders and suffix: "tiny"."""
    source: str
    """The file, as errors name it."""
    heroes: int
    """So many cast members fit into one global caption, 1 to 8."""
    defaults: Mapping[str, str]
    """place, time, mood and style of a scene that does not say them."""
    sizes: Mapping[str, Size]
    cameras: Mapping[str, str]
    """Name of a camera move to its words; the first is the camera at rest."""
    angles: Mapping[str, str]
    grammar: Grammar
    shot_words: int | None
    """Captions of more words are worded again with `brief` set; None: never."""
    global_template: CaptionTemplate
    shot_template: CaptionTemplate
    act_template: CaptionTemplate
    rules: tuple[Rule, ...]
    language: Language | None
    """None: the model reads any English."""

    def match(self, event: Event) -> Rule:
        """The rule for an event; UserError that names the nearest kinds where none matches."""
        found = [rule for rule in self.rules if rule.matches(event.kind, event.tags)]
        if found:
            return max(found, key=lambda rule: rule.specificity)
        kinds = [rule.kind for rule in self.rules]
        tagged = [rule.name for rule in self.rules if rule.matches(event.kind, rule.tags)]
        if tagged:
            raise UserError(f"event {event.kind} needs tags: {self.source} has {listed(tagged)}")
        raise UserError(f"{self.source} has no rule for the event {event.kind}; {nearest(event.kind, kinds)}")

    def size(self, name: str, where: str) -> str:
        """The key of a size, however it is spelt ("close-up", "Close up"); UserError lists the sizes."""
        key = name.strip().lower().replace("-", "_").replace(" ", "_")
        return _one_of(key, self.sizes, name, where, "size")

    def camera(self, name: str, where: str) -> str:
        """The name of a camera move; UserError lists them."""
        return _one_of(name.strip().lower().replace("_", " "), self.cameras, name, where, "camera move")

    def angle(self, name: str, where: str) -> str:
        """The name of an angle; UserError lists them."""
        return _one_of(name.strip().lower().replace("_", " "), self.angles, name, where, "angle")


def _one_of(key: str, known: Mapping[str, object], said: str, where: str, what: str) -> str:
    if key not in known:
        raise UserError(f"{where}: there is no {what} '{said}'; there is {listed(known) or 'none'}")
    return key
