"""Story files: what is read, and the one sentence that each mistake gets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shotstream.runtime.errors import UserError
from shotstream.runtime.story import (
    LiveStory,
    StoryShot,
    check_lengths,
    full_caption,
    load_story,
    parse_text,
    parse_yaml,
)

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


def test_the_full_caption_is_joined_as_the_reference_does() -> None:
    assert full_caption("A cat.", 3, "it waves") == "A cat.shot3:it waves"


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


def test_a_caption_of_900_words_is_refused_with_its_line_and_length() -> None:
    story = parse_text("A cat.\nit waves\n" + "very " * 899 + "long\n", "s.txt")
    with pytest.raises(UserError, match=r"line 3: the caption of shot 2 has 901 tokens .* at most 512"):
        check_lengths(story, limit=512)
    check_lengths(parse_text("A cat.\nit waves", "s.txt"), limit=512)


def test_the_models_own_tokenizer_decides_when_there_is_one() -> None:
    story = parse_text("A cat.\nit waves", "s.txt")
    with pytest.raises(UserError, match="20 tokens"):
        check_lengths(story, limit=19, count_tokens=len)
    check_lengths(story, limit=20, count_tokens=len)


@given(st.text())
def test_any_text_is_a_story_or_gets_a_user_error(text: str) -> None:
    for parse in (parse_yaml, parse_text):
        try:
            story = parse(text, "any")
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 - the other outcome is fine too
        else:
            assert story.shots


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
