"""A template of an event map reaches nothing it should not, and text of players is only ever text."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from shotstream.bridge.director import CastMember, Director, Event, StoryState, parse_map, shipped_map
from shotstream.runtime.errors import UserError

CAST = (CastMember("june", "June", "a young woman"), CastMember("mara", "Mara", "an older woman"))


def own(*lines: str) -> Director:
    return Director(parse_map("base: cinematic\nrules:\n" + "\n".join(f"  - {line}" for line in lines), "mine.yaml"))


# ------------------------------------------------------------------------------------ the sandbox
@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ action.__class__ }}",
        "{{ action['__class__'] }}",
        "{{ action | attr('__class__') }}",
        "{{ actor | map(attribute='__class__') | list }}",
        "{{ [action] | join(attribute='__class__') }}",
        "{{ params['__class__'] }}",
        "{{ params.items() }}",
        "{{ params.update({'a': 1}) }}",
        "{{ action.format(action) }}",
        "{{ '{0.__class__}'.format(action) }}",
        "{{ ('a' ~ 'b')['upper'] }}",
        "{{ self }}",
        "{{ self.__init__ }}",
        "{{ __import__('os') }}",
        "{{ range(9) }}",
        "{{ lipsum() }}",
        "{{ cycler }}",
        "{{ namespace }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%9999999999s' % action }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% from 'os' import path %}",
        "{% extends 'x' %}",
        "{% macro m() %}x{% endmacro %}",
        "{% block b %}{% endblock %}",
        "{% set x = action %}{{ x }}",
        "{% set x %}y{% endset %}",
        "{% filter upper %}x{% endfilter %}",
        "{% for a in tags %}{% for b in tags %}x{% endfor %}{% endfor %}",
        "{% for a in tags recursive %}{{ loop(a) }}{% endfor %}",
        "{% for a in [1] %}{{ loop._iterator }}{% endfor %}",
        "{% for a in [1] %}{{ loop.cycle }}{% endfor %}",
        "{{ action[0:1] }}",
        "{{ " + "x" * 4001 + " }}",
        "{{ " + "(" * 900 + "1" + ")" * 900 + " }}",
    ],
)
@pytest.mark.parametrize("key", ["action", "caption"])
def test_a_template_that_reaches_out_of_the_sandbox_is_refused_at_loading(key, template):
    text = yaml.safe_dump({"base": "cinematic", "rules": [{"kind": "A", key: template}]})
    with pytest.raises(UserError, match=r"mine\.yaml: rules\[0\]"):
        parse_map(text, "mine.yaml")


# ------------------------------------------------------------------------------------ text from players
HOSTILE = (
    "{{ 7 * 7 }}", "{% for x in y %}", "{{ ''.__class__ }}", "{# #}", "\x00\x1b[31mred\x07", "a\u202eb\u2066c\u200bd",
    "\ud800", "line\nbreak\r\ttab",
    "x" * 10_000, "#{x} ${y} %s {0}", "<b>&amp;</b>", "\U000e0041tag", "'; drop table", "shot7:",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_players_is_shown_as_text(text):
    director = own("{kind: Say, params: {text: {example: hello}}, action: 'says {{ params.text }}'}")
    state, _ = director.scene(StoryState(), cast=CAST)
    direction, _ = director.direct(state, Event("Say", "june", params={"text": f"[{text}"}))
    said = direction.caption.partition("June says [")[2]
    assert said
    assert direction.caption.isprintable()
    assert len(direction.caption) < 1000
    if text.isprintable() and len(text) < 100:
        assert said.startswith(text.rstrip())


@given(st.text(max_size=300), st.text(max_size=300), st.text(max_size=300), st.text(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_text_gives_a_clean_caption_or_an_error_for_the_user(action, target, place, name):
    director = Director(shipped_map("cinematic"))
    try:
        state, _ = director.scene(StoryState(), cast=[CastMember("june", name, "a young woman")], place=place)
        direction, state = director.direct(state, Event("Player.Act", "june", action, target))
        again, _ = director.direct(state, Event("Other", "june", action, target, {"x": place}, (name,)))
    except UserError:
        return
    assert direction.caption.isprintable()
    assert again.caption.isprintable()


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_text_is_refused_by_the_closed_language_or_is_in_it(kind, action, looks):
    director = Director(shipped_map("tiny"))
    state, _ = director.scene(StoryState(), cast=[CastMember("hero", "red cat")])
    for event in (
        Event(kind, "hero", action),
        Event("Player.Act", "hero", action, looks),
        Event("Character.Join", "new", params={"looks": looks}),
        Event("World.Place", params={"place": looks}),
    ):
        try:
            direction, _ = director.direct(state, event)
        except UserError:
            continue
        assert "red cat" in direction.caption


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        (Event("Other", params={str(n): n for n in range(33)}), "33 params; at most 32"),
        (Event("Other", tags=("t",) * 17), "17 tags; at most 16"),
        (Event("Other", params={"x": [1]}), "param 'x' must be text, true or false, or a number"),
        (Event("Other", params={"x": 10**400}), "param 'x' must be"),
        (Event("Other", params={"x": float("nan")}), "param 'x' must be"),
        (Event("Other", actor=3), "actor must be text"),
        (Event("Other", tags=(3,)), "tags must be text"),
        (Event("x" * 2000), "is no kind of event"),
        (Event(None), "is no kind of event"),
    ],
)
def test_events_have_limits(event, problem):
    with pytest.raises(UserError, match=problem):
        Director(shipped_map("cinematic")).direct(StoryState(), event)
