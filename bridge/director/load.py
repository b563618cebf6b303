"""Event maps from yaml: read, checked key by key, compiled and rehearsed once, so that no mistake waits for its event.

A map may say `base: tiny` (or `cinematic`): it then has all of that map, its own parts instead of the base's parts of
the same name, and its own rules instead of those for the same kind and tags.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from shotstream.bridge.director.eventmap import EventMap, Grammar, Size
from shotstream.bridge.director.language import Language
from shotstream.bridge.director.load_rules import read_rules
from shotstream.bridge.director.rehearse import rehearse
from shotstream.bridge.director.sections import Section, parse_yaml
from shotstream.bridge.director.templates import compile_template
from shotstream.bridge.director.text import MAX_CAST, listed
from shotstream.bridge.director.wording import ACT_SAMPLE, GLOBAL_SAMPLE, SHOT_SAMPLE
from shotstream.runtime.errors import UserError

SHIPPED = ("tiny", "cinematic")
MAX_FILE_BYTES = 1 << 20
_MAPS = Path(__file__).parent / "maps"
_PARTS = ("place", "time", "mood", "style")
_WORDINGS = ("global_caption", "shot_caption", "act")


@lru_cache(maxsize=len(SHIPPED))
def shipped_map(name: str) -> EventMap:
    """A map that comes with the package: "tiny" or "cinematic"."""
    if name not in SHIPPED:
        raise UserError(f"there is no event map '{name}'; there is {listed(SHIPPED)}")
    return load_map(_MAPS / f"{name}.yaml")


def load_map(path: Path) -> EventMap:
    """Read an event map. Raises UserError, with file and key, for everything that is wrong with it."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} is larger than 1 MiB; that is not an event map")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"there is no event map {path}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save the event map as UTF-8") from None
    except OSError as error:
        raise UserError(f"the event map {path} cannot be read: {error.strerror or error}") from None
    return parse_map(text, path.name)


def parse_map(text: str, name: str) -> EventMap:
    """An event map from yaml text; `name` begins every error, and without its suffix is the map's name."""
    data = parse_yaml(text, name)
    own = {"rules": data.get("rules", [])}
    base: dict[str, Any] = {}
    if "base" in data:
        base = _base(data.pop("base"), name)
        data = {**base, **data, "rules": base["rules"]}
    return _read(Section(name, data), name, own, bool(base))


def _base(base: object, name: str) -> dict[str, Any]:
    if base not in SHIPPED:
        raise UserError(f"{name}: base must be {listed(SHIPPED, 'or')}")
    return parse_yaml((_MAPS / f"{base}.yaml").read_text(encoding="utf-8"), f"{base}.yaml")


def _read(top: Section, name: str, own: Mapping[str, Any], has_base: bool) -> EventMap:
    cameras, angles = top.table("cameras", empty=True), top.table("angles", empty=True)
    if not cameras:
        raise UserError(f"{name} needs cameras; the first one is the camera at rest")
    sizes = _sizes(top.section("sizes"), cameras, angles)
    grammar = _grammar(top.section("grammar"), sizes)
    notes = next(iter(sizes.values())).notes
    wording = top.section("wording")
    samples = (GLOBAL_SAMPLE, {**SHOT_SAMPLE, "notes": notes}, ACT_SAMPLE)
    texts = [
        compile_template(wording.at(key), wording.text(key), sample)
        for key, sample in zip(_WORDINGS, samples, strict=True)
    ]
    wording.done()
    language = _language(top.section("language")) if "language" in top else None
    inherited = read_rules(top.items("rules"), sizes, cameras, angles, language is not None) if has_base else ()
    rules = read_rules(Section(name, own).items("rules"), sizes, cameras, angles, language is not None)
    overruled = {(rule.kind, rule.tags) for rule in rules}
    kept = tuple(rule for rule in inherited if (rule.kind, rule.tags) not in overruled)
    chart = EventMap(
        name=name.rpartition(".")[0] or name,
        source=name,
        heroes=top.number("heroes", 1, MAX_CAST),
        defaults=_defaults(top.section("defaults")),
        sizes=sizes,
        cameras=cameras,
        angles=angles,
        grammar=grammar,
        shot_words=top.number("shot_words", 10, 1000, 0) or None,
        global_template=texts[0],
        shot_template=texts[1],
        act_template=texts[2],
        rules=(*rules, *kept),
        language=language,
    )
    top.raw("rules")
    top.done()
    if not chart.rules:
        raise UserError(f"{name} has no rules; write at least one")
    rehearse(chart)
    return chart


def _sizes(section: Section, cameras: Mapping[str, str], angles: Mapping[str, str]) -> dict[str, Size]:
    sizes: dict[str, Size] = {}
    for key in section.keys():  # noqa: SIM118
        if not key.isidentifier() or key != key.lower():
            raise UserError(f"{section.where}: '{key}' cannot be a size; use small letters and _")
        part = Section(section.at(key), section.raw(key))
        sizes[key] = Size(
            key=key,
            words=part.text("words"),
            sees=part.number("sees", 1, MAX_CAST, 1),
            everyone=part.flag("everyone", False),
            cameras=part.choices("cameras", cameras, (next(iter(cameras)),)),
            angles=part.choices("angles", angles, tuple(angles)[:1]),
            notes=part.table("notes"),
        )
        part.done()
    names = {key: set(size.notes) for key, size in sizes.items()}
    if len({frozenset(each) for each in names.values()}) > 1:
        raise UserError(f"{section.where}: all sizes need the same notes; they have {names}")
    return sizes


def _grammar(section: Section, sizes: Mapping[str, Size]) -> Grammar:
    def table(key: str) -> dict[str, str]:
        part = section.section(key)
        found = {size: part.choice(size, sizes) for size in sizes}
        part.done()
        return found

    insert = section.choice("insert", sizes, "")
    if len([key for key in sizes if key != insert]) < 2:
        raise UserError(f"{section.where} needs two sizes that are no insert: shots in a row have to differ")
    grammar = Grammar(
        opening=section.choice("opening", [key for key in sizes if key != insert]),
        closer=table("closer"),
        reverse=table("reverse"),
        wider=table("wider"),
        insert=insert,
        object_verbs=tuple(verb.lower() for verb in section.texts("object_verbs", ())),
        everyone_at_start=section.choice("start", ("everyone", "nobody"), "nobody") == "everyone",
        idle=section.text("idle"),
    )
    section.done()
    for size, following in grammar.closer.items():
        if size == following:
            raise UserError(f"{section.at('closer')}: {size} cannot follow itself")
    for key in ("closer", "reverse", "wider"):
        if insert and insert in getattr(grammar, key).values():
            raise UserError(f"{section.at(key)}: {insert} is the insert and follows nothing by itself")
    return grammar


def _defaults(section: Section) -> dict[str, str]:
    found = {part: section.text(part) for part in ("place", "time")}
    found |= {part: section.text(part, "") for part in ("mood", "style")}
    section.done()
    return {part: found[part] for part in _PARTS if found[part]}


def _language(section: Section) -> Language:
    actions = section.section("actions")
    language = Language(
        species=section.texts("species"),
        colours=section.texts("colours"),
        accessories=section.texts("accessories"),
        accessory_colours=section.texts("accessory_colours"),
        places=section.texts("places"),
        times=section.table("times"),
        actions={name: actions.texts(name) if actions.raw(name) else () for name in actions.keys()},  # noqa: SIM118
        still_camera=section.choices("still_camera", actions.keys(), ()),
        reads_global=section.text("global_caption"),
        reads_shot=section.text("shot_caption"),
    )
    section.done()
    return language
