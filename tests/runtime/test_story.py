"""Story files: what is read, and the one sentence that each mistake gets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shotstream.runtime.errors import UserError
from shotstream.runtime.story import LiveStory, load_story, parse_text, parse_yaml
from shotstream.runtime.storyline import Choice, Option, Scene, StoryShot

GOOD = """\
global_caption: "A story about a {hero}."
cast:
  hero: red cat
shots:
  - caption: "Wide shot: the {hero} waves."
    chunks: 2
  - caption: "Close-up: the {hero}."
"""


def test_a_yaml_story_is_read_with_its_cast_chunks_and_line_numbers() -> None:
    story = parse_yaml(GOOD, "s.yaml")
    assert story.global_caption == "A story about a red cat."
    assert story.shots == (
        StoryShot("Wide shot: the red cat waves.", 2, line=5),
        StoryShot("Close-up: the red cat.", None, line=7),
    )
    assert story.total_shots == 2


def test_a_plain_text_story_has_a_global_line_and_one_line_per_shot() -> None:
    story = parse_text("A cat.\n\n  it  waves \r\nit jumps\n", "s.txt")
    assert story.global_caption == "A cat."
    assert [(shot.caption, shot.line) for shot in story.shots] == [("it waves", 3), ("it jumps", 4)]


BRANCHES = """\
global_caption: "A {hero}."
cast: {hero: red cat}
shots:
  - caption: the {hero} waves
  - choice: Where does it go?
    options:
      sea:
        label: to the sea
        shots:
          - scene: "A {hero}. Setting: beach."
          - caption: the {hero} jumps
            chunks: 2
      stay-here:
        label: nowhere
        shots:
          - caption: the {hero} dances
  - scene: "A {hero}. Setting: city."
    keep_memory: true
  - caption: it stands
"""


def test_scenes_and_choices_are_read_with_the_cast_and_line_numbers() -> None:
    story = parse_yaml(BRANCHES, "s.yaml")
    sea = Option("sea", "to the sea", (
        Scene("A red cat. Setting: beach.", False, line=10), StoryShot("the red cat jumps", 2, line=11),
    ))  # fmt: skip
    stay = Option("stay-here", "nowhere", (StoryShot("the red cat dances", None, line=16),))
    assert story.entries == (
        StoryShot("the red cat waves", None, line=4),
        Choice("Where does it go?", (sea, stay), line=5),
        Scene("A red cat. Setting: city.", True, line=17),
        StoryShot("it stands", None, line=19),
    )


def test_a_scene_keeps_the_memory_only_when_it_says_so() -> None:
    for written, keeps in (("", False), ("\n  keep_memory: false", False), ("\n  keep_memory: yes", True)):
        story = parse_yaml(f"global_caption: x\nshots:\n- scene: z{written}\n- caption: y", "s.yaml")
        assert story.entries[0] == Scene("z", keeps, line=3)


def choice(options: str, question: str = "why?") -> str:
    """A story whose second entry, from line 4 on, is this choice; `options` begins on line 5."""
    return f"global_caption: x\nshots:\n- caption: y\n- choice: {question}\n{options}\n- caption: z"


A = "    a: {label: l, shots: [{caption: y}]}\n"
B = "    b: {label: l, shots: [{caption: y}]}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("globalcaption: x\nshots: [{caption: y}]", "line 1: unknown key 'globalcaption' in a story"),
        ("global_caption: x\nshots:\n  - caption: y\n    chunk: 2", "line 4: unknown key 'chunk' in a shot"),
        ("global_caption: x\nshots:\n  - caption: '  '", "line 3: caption is empty"),
        ("global_caption:\nshots:\n  - caption: y", "line 1: global_caption is empty"),
        ("global_caption: x\nshots:\n  - chunks: 2", "line 3: this shot has no caption"),
        ("global_caption: x\nshots: []", "line 2: the story has 0 shots"),
        ("global_caption: x", "has no shots"),
        ("shots: [{caption: y}]", "has no global_caption"),
        ("global_caption: x\nshots: {caption: y}", "line 2: shots must be a list"),
        ("global_caption: x\nshots: [y]", "line 2: a shot must have keys"),
        ("- x\n- y", "line 1: a story must have keys"),
        (
            "global_caption: x\nglobal_caption: z\nshots: [{caption: y}]",
            "line 2: the key 'global_caption' appears twice",
        ),
        ("global_caption: [x]\nshots: [{caption: y}]", "line 1: global_caption must be text"),
        ("global_caption: x\nshots: [{caption: y, chunks: 0}]", "chunks must be from 1 to 100, not 0"),
        ("global_caption: x\nshots: [{caption: y, chunks: -3}]", "whole number"),
        ("global_caption: x\nshots: [{caption: y, chunks: 2.5}]", "whole number"),
        ("global_caption: x\nshots: [{caption: y, chunks: '2'}]", "whole number"),
        ("global_caption: x\nshots: [{caption: y, chunks: 101}]", "from 1 to 100"),
        ("global_caption: x\nshots: [{caption: y, chunks: 99999999999999999999}]", "from 1 to 100"),
        ("global_caption: x\nshots: [{caption: the hero {hero} waves}]", "line 2"),
        ("global_caption: x\nshots:\n- caption: the {hero}", "line 3: caption names {hero}, but the story has no cast"),
        ("global_caption: 'x\nshots: [", "not valid yaml"),
        ("a: b: c", "line 1: this is not valid yaml"),
        ("global_caption: *x", "not valid yaml"),
        ("", "is empty"),
        ("[" * 5000, "yaml"),
        ("global_caption: x\nshots:\n- scene:\n- caption: y", "line 3: scene is empty"),
        ("global_caption: x\nshots:\n- scene: [z]\n- caption: y", "line 3: scene must be text"),
        ("global_caption: x\nshots:\n- scene: the {hero}\n- caption: y", "line 3: scene names {hero}"),
        ("global_caption: x\nshots:\n- caption: y\n  scene: z", "line 3: unknown key 'caption' in a scene"),
        (
            "global_caption: x\nshots:\n- scene: z\n  keep_memory: 1\n- caption: y",
            "line 4: keep_memory must be true or",
        ),
        (
            "global_caption: x\nshots:\n- scene: z\n  keep_memory: !!bool so\n- caption: y",
            "line 4: keep_memory must be",
        ),
        ("global_caption: x\nshots:\n- scene: z\n  keep_memory: [yes]\n- caption: y", "line 4: keep_memory must be"),
        ("global_caption: x\nshots:\n- scene: z", "line 3: the story has 0 shots"),
        ("global_caption: x\nshots:\n- caption: y\n- scene: z", "line 4: no shot follows this scene"),
        (
            "global_caption: x\nshots:\n- scene: z\n- scene: w\n- caption: y",
            "line 3: no shot stands between this scene and the next",
        ),
        (choice("  options:"), "line 5: options must have keys"),
        ("global_caption: x\nshots:\n- caption: y\n- choice: why?", "line 4: this choice has no options"),
        (choice("  options: {}", question=""), "line 4: choice is empty"),
        (choice("  option: {}"), "line 5: unknown key 'option' in a choice"),
        (choice(f"  options:\n{A}"), "line 6: a choice has 2 to 6 options, not 1"),
        (
            choice("  options:\n" + "".join(f"    {n}: {{label: l, shots: [{{caption: y}}]}}\n" for n in "abcdefg")),
            "line 6: a choice has 2 to 6 options, not 7",
        ),
        (choice(f"  options:\n{A}{A}"), "line 7: the key 'a' appears twice in options"),
        (choice(f"  options:\n{A}    [c]: x"), "line 7: a key of options must be text"),
        (choice(f"  options:\n{A}    1st:\n      label: l"), "line 7: '1st' cannot be an option's name"),
        (choice(f"  options:\n{A}    b:\n      label: l"), "line 7: the option 'b' has no shots"),
        (choice(f"  options:\n{A}    b:\n      shots: [{{caption: y}}]"), "line 7: the option 'b' has no label"),
        (choice(f"  options:\n{A}    b:\n      text: l"), "line 8: unknown key 'text' in the option 'b'"),
        (choice(f"  options:\n{A}    b:\n      label: [l]\n      shots: [y]"), "line 8: label must be text"),
        (choice(f"  options:\n{A}    b:\n      label: {'l' * 61}\n      shots: []"), "line 8: label has 61 characters"),
        (choice(f"  options:\n{A}    b:\n      label: l\n      shots: y"), "line 9: shots must be a list"),
        (choice(f"  options:\n{A}    b:\n      label: l\n      shots: []"), "line 9: the option 'b' has 0 shots"),
        (choice(f"  options:\n{A}    b: {{label: l, shots: [{{scene: z}}]}}"), "line 7: the option 'b' has 0 shots"),
        (choice(f"  options:\n{A}    b: {{label: l, shots: [{{chunks: 1}}]}}"), "line 7: this shot has no caption"),
        (
            choice(f"  options:\n{A}    b:\n      label: l\n      shots:\n      - choice: how?"),
            "line 10: a choice cannot stand inside the option 'b'",
        ),
        (
            choice(
                f"  options:\n{A}    b:\n      label: l\n      shots:\n      - caption: y\n      - scene: w\n- scene: v"
            ),
            "line 11: no shot stands between this scene and the next",
        ),
        (
            f"global_caption: x\nshots:\n- scene: z\n- choice: why?\n  options:\n{A}"
            "    b: {label: l, shots: [{scene: w}, {caption: y}]}",
            "line 3: no shot stands between this scene and the next",
        ),
        (
            f"global_caption: x\nshots:\n- choice: why?\n  options:\n{A}"
            "    b: {label: l, shots: [{caption: y}, {scene: w}]}",
            "line 6: no shot follows this scene",
        ),
        ("global_caption: x\nshots: &s\n- choice: why?\n  options:\n    a: {label: l, shots: *s}\n    b: {}", "inside"),
    ],
)
def test_a_broken_yaml_story_is_refused_with_one_sentence_that_names_the_place(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "s.yaml")
    message = str(caught.value)
    assert says in message
    assert "s.yaml" in message
    assert "\n" not in message


@pytest.mark.parametrize(("text", "says"), [("", "is empty"), (" \n\n", "is empty"), ("only this", "no shots")])
def test_a_plain_text_story_without_shots_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_text(text, "s.txt")


def test_files_that_are_no_stories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no story file"):
        load_story(tmp_path / "missing.yaml")
    with pytest.raises(UserError, match="is a folder"):
        load_story(tmp_path)
    latin = tmp_path / "latin.txt"
    latin.write_bytes("one\nder Bär\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"line 2: this is not UTF-8"):
        load_story(latin)
    binary = tmp_path / "film.txt"
    binary.write_bytes(b"\0\0\0 ftyp\n")
    with pytest.raises(UserError, match="not a text file"):
        load_story(binary)
    huge = tmp_path / "huge.txt"
    huge.write_bytes(b"a\n" * 600_000)
    with pytest.raises(UserError, match="1 MiB"):
        load_story(huge)


@settings(deadline=None)  # beside other work a single parse may take as long as it likes
@given(st.text())
def test_any_text_is_a_story_or_gets_a_user_error(text: str) -> None:
    for parse in (parse_yaml, parse_text):
        try:
            story = parse(text, "any")
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 - the other outcome is fine too
        else:
            assert story.shots


def test_a_scene_at_the_end_of_an_option_is_for_the_shots_behind_the_choice() -> None:
    text = choice(f"  options:\n{A}    b: {{label: l, shots: [{{caption: y}}, {{scene: w}}]}}")
    assert parse_yaml(text, "s.yaml").choices[0].options[1].entries[-1] == Scene("w", False, line=7)


@pytest.fixture
def pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader, os.fdopen(write_end, "wb", buffering=0) as writer:
        yield reader, writer  # type: ignore[misc]


def test_a_live_story_gives_each_line_before_the_next_is_written(pipe: tuple[BinaryIO, BinaryIO]) -> None:
    reader, writer = pipe
    story = LiveStory(reader)
    writer.write(b"A cat.\n")
    assert story.global_caption == "A cat."
    shots = iter(story)
    writer.write(b"it waves\n")
    assert next(shots) == StoryShot("it waves", None, line=2)
    writer.write(b"\nit jumps\n")
    assert next(shots) == StoryShot("it jumps", None, line=4)
    writer.close()
    assert list(shots) == []


@pytest.mark.parametrize(
    ("data", "says"), [(b"", "is empty"), (b"A cat.\n", "ended after the global"), (b"A cat.\n\xff\n", "line 2.*UTF-8")]
)
def test_a_live_story_that_is_no_story_is_refused(pipe: tuple[BinaryIO, BinaryIO], data: bytes, says: str) -> None:
    reader, writer = pipe
    writer.write(data)
    writer.close()
    with pytest.raises(UserError, match=says):
        list(LiveStory(reader))
