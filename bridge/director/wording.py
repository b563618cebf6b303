"""From a planned shot to its words: which variables a template sees, and what it makes of them.

README.md lists the variables; they are a contract with the maps people write. All of them are plain data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shotstream.bridge.director.eventmap import EventMap, Rule
from shotstream.bridge.director.facts import CastMember, Event, Scalar, StoryState
from shotstream.bridge.director.grammar import Plan
from shotstream.bridge.director.templates import CaptionTemplate

_NOBODY = {"key": "", "name": "", "description": "", "short": "", "words": ""}
_NAMED = {"key": "", "words": ""}

EVENT_SAMPLE: Mapping[str, Any] = {
    "kind": "", "tags": [], "action": "", "target": "", "actor": _NOBODY, "params": {},
    "place": "", "time": "", "mood": "", "style": "",
}  # fmt: skip
"""The variables of a rule's `action`, `reaction`, `describe` and `set`; what they hold here does not matter."""

SHOT_SAMPLE: Mapping[str, Any] = {
    **EVENT_SAMPLE, "seen": [], "acts": [], "subject": "", "size": _NAMED, "angle": _NAMED, "camera": _NAMED,
    "notes": {}, "insert": False, "opening": False, "brief": False,
}  # fmt: skip
"""The variables of a shot caption."""

GLOBAL_SAMPLE: Mapping[str, Any] = {"cast": [], "place": "", "time": "", "style": ""}
"""The variables of a global caption. The mood is none: it changes from shot to shot."""

ACT_SAMPLE: Mapping[str, Any] = {"who": "", "action": "", "target": ""}
"""The variables of one act, "who does what"."""


def member_variables(member: CastMember, state: StoryState) -> dict[str, str]:
    """A cast member for templates; `words` is the description where it is first seen in the scene, then `short`."""
    words = member.short if member.key in state.appearances else member.description
    return {
        "key": member.key,
        "name": member.name,
        "description": member.description,
        "short": member.short,
        "words": words,
    }


def scene_variables(chart: EventMap, state: StoryState) -> dict[str, Any]:
    """Place, time, mood and style, the time in the words of the model."""
    time = chart.language.times.get(state.time, state.time) if chart.language else state.time
    return {"place": state.place, "time": time, "mood": state.mood, "style": state.style}


def event_variables(chart: EventMap, state: StoryState, event: Event, params: Mapping[str, Scalar]) -> dict[str, Any]:
    """What a rule's own templates see."""
    actor, target = state.member(event.actor), state.member(event.target)
    return scene_variables(chart, state) | {
        "kind": event.kind,
        "tags": list(event.tags),
        "action": event.action,
        "target": target.short if target else event.target,
        "actor": member_variables(actor, state) if actor else _NOBODY | {"key": event.actor},
        "params": dict(params),
    }


def global_caption(chart: EventMap, state: StoryState) -> str:
    """The global caption of a scene, in the style's words."""
    members = [member_variables(member, state) for key in state.heroes if (member := state.member(key))]
    return chart.global_template.render({"cast": members} | scene_variables(chart, state))


def shot_caption(
    chart: EventMap,
    state: StoryState,
    rule: Rule,
    plan: Plan,
    event: Event,
    params: Mapping[str, Scalar],
    actions: Mapping[str, str],
) -> str:
    """The caption of a planned shot. actions: cast key -> what that one does; all others idle."""
    variables = event_variables(chart, state, event, params)
    seen: list[dict[str, str]] = []
    for key in plan.seen:
        if member := state.member(key):
            action = actions.get(key, chart.grammar.idle)
            target = variables["target"] if key == event.actor else ""
            act = chart.act_template.render({"who": member.short, "action": action, "target": target})
            seen.append(member_variables(member, state) | {"action": action, "act": act})
    size = chart.sizes[plan.size]
    variables |= {
        "seen": seen,
        "acts": [one["act"] for one in seen],
        "subject": plan.subject,
        "size": {"key": size.key, "words": size.words},
        "angle": {"key": plan.angle, "words": chart.angles.get(plan.angle, "")},
        "camera": {"key": plan.camera, "words": chart.cameras[plan.camera]},
        "notes": dict(size.notes),
        "insert": plan.insert,
        "opening": plan.opening,
        "brief": False,
    }
    template: CaptionTemplate = rule.caption or chart.shot_template
    caption = template.render(variables)
    if chart.shot_words and len(caption.split()) > chart.shot_words:
        caption = template.render(variables | {"brief": True})
    return caption
