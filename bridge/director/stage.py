"""Who is in the story, where and when: what events and scenes change before a shot is planned.

Functions from one `StoryState` to the next. A change of heroes, their looks, place, time or style makes a new global
caption and begins a scene; the mood and who is on screen do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from shotstream.bridge.director.eventmap import EventMap, Rule
from shotstream.bridge.director.facts import CastMember, Event, Scalar, StoryState
from shotstream.bridge.director.text import (
    KEY,
    MAX_CAST,
    MAX_FIELD,
    checked_caption,
    clean_within,
    listed,
    nearest,
)
from shotstream.bridge.director.wording import event_variables, global_caption
from shotstream.runtime.errors import UserError

Staged = tuple[StoryState, tuple[str, ...], str]
"""The state before a shot, whom the shot is about (cast keys) and what thing, if any."""


# ------------------------------------------------------------------------------------ scenes
def new_scene(
    chart: EventMap,
    state: StoryState,
    cast: Iterable[CastMember] | None,
    said: Mapping[str, str],
    caption: str | None,
) -> tuple[StoryState, str]:
    """A scene with what was said about it; `caption` replaces the global caption the style would make."""
    if cast is not None:
        members = _checked_cast(chart, cast)
        state = replace(state, cast=members, heroes=tuple(member.key for member in members[: chart.heroes]))
    state = _with_defaults(chart, _with_words(chart, state, said, "scene"))
    started = state.heroes if chart.grammar.everyone_at_start else ()
    state = replace(state, on_screen=started, shots=(), appearances=())
    words = _global_caption(chart, state) if caption is None else checked_caption(caption, "the global caption")
    return replace(state, global_caption=words), words


def _checked_cast(chart: EventMap, cast: Iterable[CastMember]) -> tuple[CastMember, ...]:
    members = tuple(checked_member(chart, member) for member in cast)
    if len(members) > MAX_CAST:
        raise UserError(f"the cast has {len(members)} members; at most {MAX_CAST} fit")
    keys = [member.key for member in members]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UserError(f"the cast has two members with the key '{twice[0]}'")
    return members


def checked_member(chart: EventMap, member: CastMember) -> CastMember:
    """The member with clean text and nothing empty, in the words of the model's language if it has one."""
    if not isinstance(member.key, str) or not KEY.fullmatch(member.key):
        raise UserError(f"'{str(member.key)[:40]}' cannot be the key of a cast member; use letters, digits, _ and -")
    who = f"cast member '{member.key}'"
    name = clean_within(member.name, f"{who}: name", MAX_FIELD)
    description = clean_within(member.description, f"{who}: description").rstrip(".")
    short = clean_within(member.short, f"{who}: short", MAX_FIELD)
    if not (name or description):
        raise UserError(f"{who} has no name and no description; give one of them")
    member = CastMember(member.key, name, description, short)
    if chart.language:
        return chart.language.member(member)
    name = name or member.key.replace("_", " ").capitalize()
    return replace(member, name=name, description=description or name, short=short or name)


# ------------------------------------------------------------------------------------ events
def read_params(rule: Rule, event: Event) -> dict[str, Scalar]:
    """The params that the rule declares, from the event or by default; UserError for one that must be given."""
    found: dict[str, Scalar] = {}
    for name, param in rule.params.items():
        value = event.params.get(name, param.default)
        if value is None or value == "":
            raise UserError(f"event {event.kind} needs the param '{name}', for example {param.example!r}")
        found[name] = value
    return found


def before_shot(chart: EventMap, state: StoryState, rule: Rule, event: Event, params: Mapping[str, Scalar]) -> Staged:
    """Everything that the event changes before its shot is shown."""
    where = f"event {event.kind}"
    before = state
    state = _with_defaults(chart, state)
    variables = event_variables(chart, state, event, params)
    if rule.describe:
        _role_given(state, event, "actor")
        state = _described(chart, state, event.actor, rule.describe.render(variables))
    state = _with_words(chart, state, {part: text.render(variables) for part, text in rule.sets.items()}, where)
    focus = _focus(chart, state, rule, event)
    entering = [_role(state, event, role) for role in rule.enter]
    for role in rule.leave:
        _role(state, event, role)
    state = _entered(chart, state, (*focus, *entering), where)
    thing = "" if state.member(event.target) else event.target
    return _scene_if_changed(chart, before, state), focus, thing


def after_shot(rule: Rule, event: Event, state: StoryState) -> StoryState:
    """Those who leave have left; the next shot of everyone is without them."""
    left = {getattr(event, role) for role in rule.leave}
    return replace(state, on_screen=tuple(key for key in state.on_screen if key not in left))


def before_cut(chart: EventMap, state: StoryState, subject: str | None) -> Staged:
    """The state and focus of a shot that a person asks for: cast keys joined by "+", words for a thing, or None."""
    before = state
    state = _with_defaults(chart, state)
    thing = ""
    if subject is None:
        last = state.shots[-1].subject if state.shots else ""
        keys = tuple(key for key in last.split("+") if state.member(key)) or _everyone(chart, state)
    else:
        subject = clean_within(subject, "subject", MAX_FIELD)
        keys = tuple(key for key in subject.split("+") if state.member(key))
        if len(keys) != len(subject.split("+")):
            if keys or chart.language:
                raise UserError(f"subject: '{subject}' is not of the cast; {_cast_hint(state, subject)}")
            thing = subject
    state = _entered(chart, state, keys, "cut")
    return _scene_if_changed(chart, before, state), keys, thing


# ------------------------------------------------------------------------------------ steps
def _with_defaults(chart: EventMap, state: StoryState) -> StoryState:
    missing: dict[str, Any] = {part: text for part, text in chart.defaults.items() if not getattr(state, part)}
    return replace(state, **missing)


def _with_words(chart: EventMap, state: StoryState, said: Mapping[str, str], where: str) -> StoryState:
    """New place, time, mood or style; empty words are refused, for a caption would have a hole."""
    words: dict[str, Any] = dict(said)
    for part, text in said.items():
        if not text:
            raise UserError(f"{where}: {part} is empty")
        if chart.language and part in ("place", "time"):
            words[part] = getattr(chart.language, part)(text, where)
    return replace(state, **words)


def _described(chart: EventMap, state: StoryState, key: str, description: str) -> StoryState:
    """The cast sheet with a new description of one member, or with a new member."""
    old = state.member(key)
    kept = CastMember(key, "" if chart.language or not old else old.name, description)
    new = checked_member(chart, kept)
    if old:
        return replace(state, cast=tuple(new if member.key == key else member for member in state.cast))
    if len(state.cast) >= MAX_CAST:
        raise UserError(f"'{key}' cannot join: the cast has {MAX_CAST} members already")
    return replace(state, cast=(*state.cast, new))


def _focus(chart: EventMap, state: StoryState, rule: Rule, event: Event) -> tuple[str, ...]:
    if rule.show == "everyone":
        return _everyone(chart, state)
    if rule.show == "nobody":
        return ()
    roles: tuple[str, ...] = ("actor", "target") if rule.show == "both" else (rule.show,)
    if rule.show == "whoever":
        roles = ("actor",) * bool(event.actor) + ("target",) * bool(state.member(event.target))
        if not roles:
            return () if event.target and chart.language is None else _everyone(chart, state)
    return tuple(dict.fromkeys(_role(state, event, role) for role in roles))


def _everyone(chart: EventMap, state: StoryState) -> tuple[str, ...]:
    """All who are on screen. Where nobody is, a style whose shots always show somebody takes all heroes."""
    return state.on_screen or (state.heroes if chart.grammar.everyone_at_start else ())


def _entered(chart: EventMap, state: StoryState, keys: tuple[str, ...], where: str) -> StoryState:
    """Everyone of `keys` on screen and named in the global caption, where another one may have to make room."""
    heroes, on_screen = list(state.heroes), list(state.on_screen)
    for key in dict.fromkeys(keys):
        if key in heroes:
            continue
        if len(heroes) < chart.heroes:
            heroes.append(key)
            continue
        free = [each for each in heroes if each not in keys]
        if not free:
            raise UserError(f"{where}: {listed(keys)} do not fit into one scene, which has {chart.heroes} heroes")
        heroes[heroes.index(free[0])] = key
    shown = dict.fromkeys(key for key in (*on_screen, *keys) if key in heroes)
    return replace(state, heroes=tuple(heroes), on_screen=tuple(shown))


def _scene_if_changed(chart: EventMap, before: StoryState, state: StoryState) -> StoryState:
    if before.global_caption and _facts(before) == _facts(state):
        return state
    return replace(state, global_caption=_global_caption(chart, state), shots=(), appearances=())


def _facts(state: StoryState) -> tuple[object, ...]:
    looks = [(key, member.description) for key in state.heroes if (member := state.member(key))]
    return looks, state.place, state.time, state.style


def _global_caption(chart: EventMap, state: StoryState) -> str:
    if chart.language:
        if not state.heroes:
            raise UserError("nobody is in the scene; give it a cast first")
        chart.language.check_heroes(member for key in state.heroes if (member := state.member(key)))
    caption = global_caption(chart, state)
    if chart.language:
        chart.language.check_global(caption, chart.global_template.where)
    return checked_caption(caption, chart.global_template.where)


def _role(state: StoryState, event: Event, role: str) -> str:
    """The cast key of the event's actor or target."""
    key = _role_given(state, event, role)
    if state.member(key) is None:
        raise UserError(f"event {event.kind}: {role} '{key}' is not of the cast; {_cast_hint(state, key)}")
    return key


def _role_given(state: StoryState, event: Event, role: str) -> str:
    key: str = getattr(event, role)
    if not key:
        raise UserError(f"event {event.kind} needs {'an' if role == 'actor' else 'a'} {role}; {_cast_hint(state, '')}")
    return key


def _cast_hint(state: StoryState, key: str) -> str:
    keys = [member.key for member in state.cast]
    return nearest(key, keys) if keys else "the cast is empty"
