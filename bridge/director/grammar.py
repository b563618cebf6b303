"""Shot grammar: which size the next shot has, whom it shows, from which angle, with which camera move.

Pure functions of the map and the story state. Within a scene two shots in a row never have the same size and the same
subject, unless a rule, an event or a person asked for that size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shotstream.bridge.director.eventmap import EventMap
from shotstream.bridge.director.facts import ShotRecord, StoryState
from shotstream.runtime.errors import UserError


@dataclass(frozen=True)
class Wish:
    """What a shot is to be about. Empty strings are left to the grammar."""

    focus: tuple[str, ...]
    """Cast keys, the most important first; may be empty."""
    thing: str = ""
    """Words for a thing; the shot shows it alone where the size is an insert."""
    insert: bool = False
    """The thing is worth an insert, if the style has one and the scene is established."""
    size: str = ""
    angle: str = ""
    camera: str = ""


@dataclass(frozen=True)
class Plan:
    """A shot as decided. `seen`: cast keys, in the order of the global caption."""

    size: str
    angle: str
    camera: str
    seen: tuple[str, ...]
    subject: str
    insert: bool
    opening: bool
    """The scene's first shot."""


def plan_shot(chart: EventMap, state: StoryState, wish: Wish, where: str) -> Plan:
    """Decide the next shot. `where` begins the error if the wish cannot be met."""
    insert = chart.grammar.insert
    if wish.size and wish.size == insert and not wish.thing:
        raise UserError(f"{where}: a shot of size {insert} shows a thing; give a target that is not of the cast")
    size = wish.size or _other_than_last(chart, state, wish, _next_size(chart, state, wish))
    now = chart.sizes[size]
    return Plan(
        size=size,
        angle=wish.angle or in_turn(now.angles, state),
        camera=wish.camera or in_turn(now.cameras, state),
        seen=_seen(chart, state, wish, size),
        subject=_subject(chart, state, wish, size),
        insert=size == insert,
        opening=not state.shots,
    )


def in_turn(names: Sequence[str], state: StoryState) -> str:
    """One of the names, the next one with every shot; where it begins depends on the seed. "" if there are none."""
    return names[(state.seed + state.told) % len(names)] if names else ""


def _next_size(chart: EventMap, state: StoryState, wish: Wish) -> str:
    grammar = chart.grammar
    if not state.shots:
        return grammar.opening
    if wish.insert and wish.thing and grammar.insert:
        return grammar.insert
    last = state.shots[-1]
    if not wish.focus or last.size not in chart.sizes:  # nobody to come closer to, or a shot that somebody worded
        return grammar.opening
    before, now = set(last.subject.split("+")), set(wish.focus)
    if now <= before:
        return grammar.closer[last.size]
    return (grammar.wider if now > before else grammar.reverse)[last.size]


def _other_than_last(chart: EventMap, state: StoryState, wish: Wish, size: str) -> str:
    """The size, or the first after it that does not repeat the last shot."""
    if not state.shots:
        return size
    rest = [key for key in chart.sizes if key != chart.grammar.insert]
    for candidate in (size, chart.grammar.closer[size], *rest):
        if ShotRecord(candidate, _subject(chart, state, wish, candidate)) != state.shots[-1]:
            return candidate
    raise AssertionError("a map has two sizes that are no inserts; load.py checks that")


def _seen(chart: EventMap, state: StoryState, wish: Wish, size: str) -> tuple[str, ...]:
    now = chart.sizes[size]
    wanted: Iterable[str] = (*wish.focus, *state.on_screen) if now.everyone and wish.focus else wish.focus
    chosen = list(dict.fromkeys(wanted))[: now.sees]
    order = list(dict.fromkeys((*state.heroes, *(member.key for member in state.cast))))
    return tuple(sorted(chosen, key=order.index))


def _subject(chart: EventMap, state: StoryState, wish: Wish, size: str) -> str:
    if size == chart.grammar.insert:
        return wish.thing
    return "+".join(_seen(chart, state, wish, size)) or wish.thing or state.place
