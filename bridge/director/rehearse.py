"""A map is rehearsed when it is loaded: every rule directs shots of a made-up story, so that mistakes show there."""

from __future__ import annotations

from shotstream.bridge.director.director import Director
from shotstream.bridge.director.eventmap import EventMap, Rule
from shotstream.bridge.director.facts import CastMember, Event, StoryState
from shotstream.bridge.director.grammar import Wish, plan_shot
from shotstream.bridge.director.wording import shot_caption
from shotstream.runtime.errors import UserError

_STRANGERS = (
    CastMember("first", "June", "a young woman with short black hair", "June"),
    CastMember("second", "Mara", "an older woman with a grey coat", "Mara"),
)


def rehearse(chart: EventMap) -> None:
    """Direct every rule in a fresh scene and again in a running one, at every size.

    Raises UserError that begins with the rule's place in the file, for templates that fail and for captions that the
    model's language cannot read."""
    director = Director(chart)
    cast = _cast(chart)
    try:
        scene, _ = director.scene(StoryState(), cast=cast)
        alone, _ = director.scene(StoryState(), cast=cast[:1])
    except UserError as error:
        raise UserError(_placed(chart.source, error)) from None
    for rule in chart.rules:
        try:
            # New looks might be those of the second one, which a closed language would refuse.
            _rehearse_rule(director, alone if rule.describe and not rule.needs("target") else scene, rule)
        except UserError as error:
            raise UserError(_placed(f"{rule.where} ({rule.name})", error)) from None


def _rehearse_rule(director: Director, scene: StoryState, rule: Rule) -> None:
    chart = director.chart
    for target in ("second",) if rule.needs("target") else ("the lamp", "second", ""):
        event = _event(chart, rule, target)
        _, running = director.direct_by(rule, scene, event)
        director.direct_by(rule, running, event)
        # The grammar shows only some sizes; the templates have to do for all of them.
        keys = () if rule.show == "nobody" else scene.heroes
        thing = "" if scene.member(event.target) else event.target
        for size in chart.sizes if thing else [size for size in chart.sizes if size != chart.grammar.insert]:
            plan = plan_shot(chart, scene, Wish(keys, thing, size=size), rule.where)
            shot_caption(chart, running, rule, plan, event, event.params, {})


def _cast(chart: EventMap) -> tuple[CastMember, ...]:
    if chart.language is None:
        return _STRANGERS[: chart.heroes]
    pairs = zip(chart.language.species, chart.language.colours, ("first", "second"), strict=False)
    return tuple(CastMember(key, description=f"{colour} {species}") for species, colour, key in pairs)


def _event(chart: EventMap, rule: Rule, target: str) -> Event:
    return Event(
        kind=rule.kind.replace("*", "Rehearsal"),
        actor="first",
        action=next(iter(chart.language.actions)) if chart.language else "looks around",
        target=target,
        params={name: param.example for name, param in rule.params.items()},
        tags=tuple(sorted(rule.tags)),
    )


def _placed(where: str, error: UserError) -> str:
    text = str(error)
    return text if where.split(" ")[0] in text else f"{where}: {text}"
