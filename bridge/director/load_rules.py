"""The rules of an event map, from yaml. A rule with several kinds is as many rules that differ in nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from shotstream.bridge.director.eventmap import DIRECTED, SETTABLE, SHOW, Param, Rule, Size
from shotstream.bridge.director.facts import AT
from shotstream.bridge.director.sections import Section
from shotstream.bridge.director.templates import CaptionTemplate, compile_template
from shotstream.bridge.director.text import KIND, MAX_TAGS
from shotstream.bridge.director.wording import EVENT_SAMPLE, SHOT_SAMPLE
from shotstream.runtime.errors import UserError

MAX_CHUNKS = 100
_KIND = re.compile(rf"\*|{KIND.pattern}(\.\*)?")


def read_rules(
    items: Iterable[tuple[str, Any]],
    sizes: Mapping[str, Size],
    cameras: Mapping[str, str],
    angles: Mapping[str, str],
    closed: bool,
) -> tuple[Rule, ...]:
    """All rules in order. closed: the model has a closed language, in which every shot shows somebody.

    Raises UserError for what is wrong with one, and for two rules with the same kind and the same tags."""
    rules: list[Rule] = []
    first: dict[tuple[str, frozenset[str]], str] = {}
    for where, data in items:
        section = Section(where, data)
        shot_sample = {**SHOT_SAMPLE, "notes": next(iter(sizes.values())).notes}
        for rule in _rule(section, sizes, cameras, angles, closed, shot_sample):
            key = (rule.kind, rule.tags)
            if key in first:
                raise UserError(
                    f"{where}: there already is a rule for {rule.name}, {first[key]}; tags tell rules apart"
                )
            first[key] = where
            rules.append(rule)
    return tuple(rules)


def _rule(
    section: Section,
    sizes: Mapping[str, Size],
    cameras: Mapping[str, str],
    angles: Mapping[str, str],
    closed: bool,
    shot_sample: Mapping[str, Any],
) -> list[Rule]:
    kinds = section.texts("kind")
    for kind in kinds:
        if not _KIND.fullmatch(kind):
            raise UserError(f"{section.at('kind')}: '{kind}' is no kind; write Story.Act1.Door, Story.Act1.* or *")
    tags = frozenset(section.texts("tags", ()))
    if len(tags) > MAX_TAGS:
        raise UserError(f"{section.at('tags')}: at most {MAX_TAGS} tags")
    params = _params(section.section("params"))
    values = {name: param.example for name, param in params.items()}
    sample, shot_sample = {**EVENT_SAMPLE, "params": values}, {**shot_sample, "params": values}

    def template(key: str, variables: Mapping[str, Any]) -> CaptionTemplate | None:
        return compile_template(section.at(key), section.text(key), variables) if key in section else None

    show = [each for each in SHOW if not (closed and each == "nobody")]
    insert = section.flag("insert") if "insert" in section else None
    chunks = section.number("chunks", 1, MAX_CHUNKS) if "chunks" in section else None
    common: dict[str, Any] = {
        "tags": tags,
        "at": section.choice("at", [each for each in AT if each != "auto"], "next_shot"),
        "show": section.choice("show", show, "actor"),
        "size": section.choice("size", sizes, ""),
        "angle": section.choice("angle", angles, ""),
        "camera": section.choice("camera", cameras, ""),
        "chunks": chunks,
        "insert": insert,
        "action": template("action", sample),
        "reaction": template("reaction", sample),
        "caption": template("caption", shot_sample),
        "describe": template("describe", sample),
        "sets": _sets(section.section("set"), sample),
        "params": params,
        "enter": section.choices("enter", ("actor", "target"), ()),
        "leave": section.choices("leave", ("actor", "target"), ()),
        "where": section.where,
    }
    for key in ("action", "reaction", "caption", "describe", "insert", "chunks"):
        section.raw(key)  # known keys, whether they are there or not
    section.done()
    return [Rule(kind=kind, **common) for kind in kinds]


def _sets(section: Section, sample: Mapping[str, Any]) -> dict[str, CaptionTemplate]:
    found = {key: compile_template(section.at(key), section.text(key), sample) for key in SETTABLE if key in section}
    for key in SETTABLE:
        section.raw(key)
    section.done()
    return found


def _params(section: Section) -> dict[str, Param]:
    params: dict[str, Param] = {}
    for name in section.keys():  # noqa: SIM118
        if not name.isidentifier() or name in DIRECTED:
            raise UserError(f"{section.where}: '{name}' cannot be a param here; {', '.join(DIRECTED)} always are one")
        value = section.raw(name)
        if isinstance(value, Mapping):
            part = Section(section.at(name), value)
            example = part.raw("example")
            part.done()
            params[name] = Param(None, _scalar(part.at("example"), example))
        else:
            default = _scalar(section.at(name), value)
            params[name] = Param(default, default)
    return params


def _scalar(where: str, value: object) -> str | int | float | bool:
    if not isinstance(value, str | int | float | bool) or value == "":
        raise UserError(f"{where} must be text, a number, true or false, or {{example: ...}} if the event must say it")
    return value
