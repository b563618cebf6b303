"""Event maps of one's own: mistakes are found when the file is loaded, and named with their place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from shotstream.bridge.director import (
    CastMember,
    Director,
    Event,
    StoryState,
    load,
    load_map,
    parse_map,
    shipped_map,
)
from shotstream.runtime.errors import UserError

CAST = (CastMember("june", "June", "a young woman"), CastMember("mara", "Mara", "an older woman"))


def own(*lines: str, base: str = "cinematic", more: str = "") -> Director:
    text = f"base: {base}\n{more}\nrules:\n" + "\n".join(f"  - {line}" for line in lines)
    return Director(parse_map(text, "mine.yaml"))


# ------------------------------------------------------------------------------------ files
def test_a_map_of_ones_own_adds_rules_to_a_shipped_one(tmp_path):
    file = tmp_path / "quest.yaml"
    file.write_text("base: cinematic\nrules:\n  - {kind: Quest.Won, action: cheers, at: now}\n")
    director = Director(load_map(file))
    state, _ = director.scene(StoryState(), cast=CAST)
    direction, state = director.direct(state, Event("Quest.Won", "june"))
    assert (director.name, direction.rule, direction.at) == ("quest", "Quest.Won", "now")
    assert "June cheers." in direction.caption
    assert director.direct(state, Event("Player.Look", "june"))[0].rule == "Player.Look"


def test_a_rule_of_ones_own_takes_the_place_of_the_shipped_one():
    director = own("{kind: Player.Look, action: stares}")
    state, _ = director.scene(StoryState(), cast=CAST)
    assert "June stares." in director.direct(state, Event("Player.Look", "june"))[0].caption
    assert [rule.kind for rule in director.chart.rules].count("Player.Look") == 1


def test_a_caption_of_ones_own_sees_the_shot():
    caption = "{{ size.words | capital }}: a screen says {{ params.text }}."
    director = own(
        f"{{kind: Chat, params: {{text: {{example: hello}}}}, chunks: 3, show: nobody, caption: '{caption}'}}"
    )
    state, _ = director.scene(StoryState(), cast=CAST)
    direction, _ = director.direct(state, Event("Chat", params={"text": "good night"}))
    assert (direction.caption, direction.chunks) == ("Wide shot: a screen says good night.", 3)


def test_shipped_maps_are_read_once_and_unknown_ones_are_named():
    assert shipped_map("tiny") is shipped_map("tiny")
    with pytest.raises(UserError, match="there is no event map 'huge'; there is tiny and cinematic"):
        shipped_map("huge")


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        ("{kind: A.B, sise: wide}", r"mine\.yaml: rules\[0\]: unknown key 'sise'; the nearest are size"),
        ("{at: now}", r"mine\.yaml: rules\[0\] needs the key 'kind'"),
        ("A.B", r"mine\.yaml: rules\[0\] must have keys, not 'A\.B'"),
        ("{kind: A.B, size: huge}", r"rules\[0\]\.size must be wide, medium, close_up or insert, not 'huge'"),
        ("{kind: A.B, at: auto}", r"rules\[0\]\.at must be now, next_chunk or next_shot, not 'auto'"),
        ("{kind: A.B, show: all}", r"rules\[0\]\.show must be actor, target, both, everyone, nobody or whoever"),
        ("{kind: A.B, camera: fly}", r"rules\[0\]\.camera must be static, push in, .* or follow, not 'fly'"),
        ("{kind: A.B, angle: odd}", r"rules\[0\]\.angle must be eye level, .*, not 'odd'"),
        ("{kind: A.B, chunks: 0}", r"rules\[0\]\.chunks must be a whole number from 1 to 100, not 0"),
        ("{kind: A.B, insert: maybe}", r"rules\[0\]\.insert must be true or false, not 'maybe'"),
        ("{kind: A.B, enter: hero}", r"rules\[0\]\.enter must be actor or target, not 'hero'"),
        ("{kind: A.B, action: yes}", r"rules\[0\]\.action must be text, not true; put it in quotes"),
        ("{kind: A..B}", r"rules\[0\]\.kind: 'A\.\.B' is no kind; write"),
        ("{kind: A.*.B}", r"rules\[0\]\.kind: 'A\.\*\.B' is no kind"),
        ("{kind: A.B, params: {size: 1}}", r"rules\[0\]\.params: 'size' cannot be a param here"),
        ("{kind: A.B, params: {x: [1]}}", r"rules\[0\]\.params\.x must be text, a number, true or false, or"),
        (
            "{kind: A.B, set: {weather: wet}}",
            r"rules\[0\]\.set: unknown key 'weather'; known are place, time, mood and",
        ),
        ("{kind: A.B, action: '{{ nam }}'}", r"rules\[0\]\.action: there is no variable 'nam'; known are kind"),
        ("{kind: A.B, action: '{{ actor.age }}'}", r"rules\[0\]\.action: there is no 'actor\.age'; .*name"),
        ("{kind: A.B, action: '{{ params.x }}'}", r"there is no 'params\.x'; declare it under the rule's params"),
        ("{kind: A.B, action: 'a {{ b'}", r"rules\[0\]\.action: this template does not compile"),
        ("{kind: A.B, action: '{{ action | nope }}'}", r"there is no filter 'nope'"),
        (
            "{kind: A.B, caption: '{% if brief %}{{ size.wordz }}{% endif %}'}",
            r"there is no 'size\.wordz'; the nearest",
        ),
        ("{kind: A.B, caption: '{% for one in seen %}{{ one.age }}{% endfor %}'}", r"rules\[0\]\.caption: .*'age'"),
        ("{kind: A.B, caption: '{{ seen + 1 }}'}", r"rules\[0\]\.caption: this template fails"),
        ("{kind: A.B, caption: '{{ mood | default(nothing) }}'}", "there is no variable 'nothing'"),
        ("{kind: A.B, caption: '{# nothing #}'}", r"rules\[0\] \(A\.B\): event A\.\w+: the caption is empty|is empty"),
    ],
)
def test_a_mistake_in_a_rule_is_named_with_its_place(rule, problem):
    with pytest.raises(UserError, match=problem):
        own(rule)


def test_two_rules_for_one_kind_need_tags_to_tell_them_apart():
    with pytest.raises(UserError, match=r"rules\[1\]: there already is a rule for A\.B, mine\.yaml: rules\[0\]"):
        own("{kind: A.B}", "{kind: [C, A.B]}")
    own("{kind: A.B}", "{kind: A.B, tags: [slow]}", "{kind: A.B, tags: [loud]}")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"colour": 3}, r"mine\.yaml: unknown key 'colour'"),
        ({"heroes": 0}, r"mine\.yaml: heroes must be a whole number from 1 to 8, not 0"),
        ({"rules": []}, r"mine\.yaml has no rules; write at least one"),
        ({"cameras": {}}, r"mine\.yaml needs cameras"),
        ({"cameras": {"still": ""}}, r"mine\.yaml: sizes\.wide\.cameras\[?.* must be still, not"),
        ({"defaults": {"place": "here"}}, r"mine\.yaml: defaults needs the key 'time'"),
        ({"sizes": {"wide": {"words": "wide"}}}, r"mine\.yaml: grammar\.insert must be wide, not 'insert'"),
        ({"sizes": {"Wide": {"words": "wide"}}}, r"mine\.yaml: sizes: 'Wide' cannot be a size"),
        ({"wording": {"act": "{{ who }}"}}, r"mine\.yaml: wording needs the key 'global_caption'"),
        ({"language": {"species": ["cat"]}}, r"mine\.yaml: language needs the key 'colours'"),
    ],
)
def test_a_mistake_elsewhere_in_a_map_is_named_with_its_place(change, problem):
    text = yaml.safe_dump({"base": "cinematic", "rules": [{"kind": "A"}]} | change)
    if change.get("rules") == []:
        shipped = yaml.safe_load((shipped_file("cinematic")).read_text())
        text = yaml.safe_dump(shipped | change)
    with pytest.raises(UserError, match=problem):
        parse_map(text, "mine.yaml")


def shipped_file(name: str) -> Path:
    return Path(load.__file__).parent / "maps" / f"{name}.yaml"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"closer": {"wide": "wide", "medium": "wide", "close_up": "wide", "insert": "wide"}},
            "wide cannot follow itself",
        ),
        ({"closer": {"wide": "medium"}}, r"grammar\.closer needs the key 'medium'"),
        ({"opening": "insert"}, r"grammar\.opening must be wide, medium or close_up, not 'insert'"),
        ({"reverse": dict.fromkeys(("wide", "medium", "close_up", "insert"), "insert")}, "follows nothing by itself"),
    ],
)
def test_a_grammar_that_could_stall_is_refused(change, problem):
    shipped = yaml.safe_load(shipped_file("cinematic").read_text())
    shipped["grammar"] |= change
    with pytest.raises(UserError, match=problem):
        parse_map(yaml.safe_dump(shipped, sort_keys=False), "mine.yaml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rules: [", r"mine\.yaml, line 1: this is not valid yaml"),
        ("a: 1\nrules: []\na: 2", r"mine\.yaml, line 3: this is not valid yaml: the key 'a' appears twice"),
        ("- 1", r"mine\.yaml is no event map"),
        ("base: huge", r"mine\.yaml: base must be tiny or cinematic"),
        ("base: [tiny]", r"mine\.yaml: base must be tiny or cinematic"),
        ("base: tiny\n3: x", r"mine\.yaml: the key 3 must be text"),
        ("base: tiny\nrules: {a: b}", r"mine\.yaml: rules must be a list, not a mapping"),
        ("a: !!python/object/apply:os.system [ls]", "not valid yaml"),
        ("{[1]: 2}", "not valid yaml"),
        ("[" * 5000, "not valid yaml"),
    ],
)
def test_what_is_no_map_is_refused(text, problem):
    with pytest.raises(UserError, match=problem):
        parse_map(text, "mine.yaml")


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no event map"):
        load_map(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_map(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(UserError, match="is not UTF-8"):
        load_map(tmp_path / "latin.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(UserError, match="larger than 1 MiB"):
        load_map(tmp_path / "big.yaml")


def test_the_example_of_the_readme_loads_and_does_what_it_says():
    readme = (Path(load.__file__).parent / "README.md").read_text()
    director = Director(parse_map(re.search(r"```yaml\n(.+?)```", readme, re.DOTALL)[1], "mine.yaml"))
    state, _ = director.scene(StoryState(), cast=CAST)
    opened, state = director.direct(state, Event("Story.Act1.DoorOpened", "june", target="the door"))
    fight, state = director.direct(state, Event("Story.Act1.Fight", "june", "faces", "mara", tags=("danger",)))
    chat, _ = director.direct(state, Event("Chat.Message", params={"text": "run"}))
    assert (opened.rule, opened.at, fight.rule, fight.size) == (
        "Story.Act1.DoorOpened", "now", "Story.Act1.* danger", "close_up",
    )  # fmt: skip
    assert "The mood is tense." in fight.caption
    assert chat.caption.endswith("of a screen that says: run.")
