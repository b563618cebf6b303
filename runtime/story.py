"""Story files: what the user wrote, read and checked. Yaml, plain text, or lines from a pipe while the film is made.

This file knows words and line numbers. It knows no tensors, no sessions and no tokenizer: the length of a caption is
checked by a function that the model's preset brings along.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Protocol

import yaml

from shotstream.runtime.errors import UserError

MAX_CHUNKS = 100  # a shot of 100 chunks is 1197 frames; the ring would carry more, the rotary table ends at 339
MAX_FILE_BYTES = 1 << 20
_STORY_KEYS = ("global_caption", "cast", "shots")
_SHOT_KEYS = ("caption", "chunks")
_CAST_NAME = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class StoryShot:
    """One shot as written: its caption (cast names replaced), its length in chunks (None: the preset's default) and
    the line of the source it came from (1-based)."""

    caption: str
    chunks: int | None = None
    line: int = 0


class StorySource(Protocol):
    """Where shots come from. Iterating may block: a live story waits for its next line."""

    @property
    def name(self) -> str: ...
    @property
    def global_caption(self) -> str: ...
    @property
    def total_shots(self) -> int | None: ...
    def __iter__(self) -> Iterator[StoryShot]: ...


@dataclass(frozen=True)
class Story:
    """A story that is known in full before the film starts."""

    name: str
    global_caption: str
    shots: tuple[StoryShot, ...]
    cast: Mapping[str, str] = field(default_factory=dict)

    @property
    def total_shots(self) -> int | None:
        return len(self.shots)

    def __iter__(self) -> Iterator[StoryShot]:
        return iter(self.shots)


def load_story(path: Path) -> Story:
    """Reads a story file: yaml for the suffixes .yaml and .yml, plain text for any other.

    Raises UserError with file name and line number for everything that is wrong with it."""
    name = str(path)
    try:
        if path.is_dir():
            raise UserError(f"{name} is a folder; give a story file (.yaml or plain text), or - for standard input")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{name} is larger than 1 MiB; that is not a story file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no story file {name}") from None
    except OSError as error:
        raise UserError(f"the story file {name} cannot be read: {error.strerror or error}") from None
    text = _decode(data, name)
    if path.suffix.lower() in (".yaml", ".yml"):
        return parse_yaml(text, name)
    return parse_text(text, name)


def parse_text(text: str, name: str) -> Story:
    """Plain text: the first line is the global caption, every further line a shot; blank lines are skipped."""
    lines = [(number, _tidy(line)) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise UserError(f"{name} is empty; the first line is the global caption, each further line one shot")
    if len(lines) == 1:
        raise UserError(f"{name} has a global caption but no shots; write one line for each shot under it")
    shots = tuple(StoryShot(caption=line, line=number) for number, line in lines[1:])
    return Story(name=name, global_caption=lines[0][1], shots=shots)


def parse_yaml(text: str, name: str) -> Story:
    """Yaml: `global_caption`, optional `cast` (name: description), `shots` (list of `caption`, optional `chunks`)."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}, line {mark.line + 1}" if mark else name
        raise UserError(f"{where}: this is not valid yaml: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{name} is not valid yaml: {' '.join(str(error).split()) or 'nested too deeply'}") from None
    if root is None:
        raise UserError(f"{name} is empty; a story needs global_caption and shots")
    top = _mapping(root, name, "a story", _STORY_KEYS)
    if "global_caption" not in top:
        raise UserError(f"{name} has no global_caption; it is the sentence that every shot shares")
    if "shots" not in top:
        raise UserError(f"{name} has no shots; a story needs at least one")
    cast = _cast(top["cast"], name) if "cast" in top else {}
    shots_node = top["shots"]
    if not isinstance(shots_node, yaml.SequenceNode):
        raise UserError(f"{_at(shots_node, name)}: shots must be a list of entries with a caption")
    if not shots_node.value:
        raise UserError(f"{_at(shots_node, name)}: the story has 0 shots; write at least one")
    return Story(
        name=name,
        global_caption=_caption(top["global_caption"], name, "global_caption", cast),
        shots=tuple(_shot(node, name, cast) for node in shots_node.value),
        cast=MappingProxyType(cast),
    )


def check_lengths(source: StorySource, limit: int, count_tokens: Callable[[str], int] | None = None) -> None:
    """Refuses captions of a known story that the model could not read to their end. `limit` is in tokens."""
    if isinstance(source, Story):
        for index, shot in enumerate(source.shots):
            check_length(source, index, shot, limit, count_tokens)


def check_length(
    source: StorySource, index: int, shot: StoryShot, limit: int, count_tokens: Callable[[str], int] | None = None
) -> None:
    """Refuses one shot whose full caption (global caption, label, shot caption) is longer than `limit` tokens.

    The reference cuts such captions at their end, so that the shot's own part is lost first; a refusal is kinder.
    Without a tokenizer words are counted: every word is at least one token."""
    full = full_caption(source.global_caption, index, shot.caption)
    count = count_tokens(full) if count_tokens else len(full.split())
    if count > limit:
        raise UserError(
            f"{source.name}, line {shot.line}: the caption of shot {index + 1} has {count} tokens together with the "
            f"global caption ({len(full.split())} words), but this model reads at most {limit}; shorten one of them"
        )


def full_caption(global_caption: str, index: int, caption: str) -> str:
    """What the text encoder reads for shot `index` (zero-based): no separators, as the reference joins them."""
    return f"{global_caption}shot{index}:{caption}"


class LiveStory:
    """A story that is written while the film is made: the first line is the global caption, each further line the
    next shot. A thread reads the lines, so that the film never waits for a line that has already been typed."""

    def __init__(self, stream: IO[bytes], name: str = "standard input") -> None:
        self.name = name
        self.total_shots: int | None = None
        self._lines: queue.Queue[tuple[int, bytes] | OSError | None] = queue.Queue()
        self._global_caption: str | None = None
        self._thread = threading.Thread(target=self._read, args=(stream,), name="story-lines", daemon=True)
        self._thread.start()

    def _read(self, stream: IO[bytes]) -> None:
        try:
            for number, line in enumerate(iter(stream.readline, b""), start=1):
                self._lines.put((number, line))
        except (OSError, ValueError) as error:  # ValueError: the stream was closed under us
            self._lines.put(error if isinstance(error, OSError) else None)
        self._lines.put(None)

    def _next_line(self) -> tuple[int, str] | None:
        while True:
            try:
                item = self._lines.get(timeout=0.2)  # wakes up so that Ctrl-C works on every system
            except queue.Empty:
                continue
            if item is None:
                self._lines.put(None)
                return None
            if isinstance(item, OSError):
                raise UserError(f"{self.name} cannot be read: {item.strerror or item}")
            number, raw = item
            line = _tidy(_decode(raw, self.name, number))
            if line:
                return number, line

    @property
    def global_caption(self) -> str:
        """The first line; waits for it. Raises UserError if the input ends before it."""
        if self._global_caption is None:
            first = self._next_line()
            if first is None:
                raise UserError(
                    f"{self.name} is empty; the first line is the global caption, each further line one shot"
                )
            self._global_caption = first[1]
        return self._global_caption

    def __iter__(self) -> Iterator[StoryShot]:
        _ = self.global_caption
        count = 0
        while (found := self._next_line()) is not None:
            count += 1
            yield StoryShot(caption=found[1], line=found[0])
        if count == 0:
            raise UserError(f"{self.name} ended after the global caption; write one line for each shot after it")


def _decode(data: bytes, name: str, line: int | None = None) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = line or data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name}, line {line}: this is not UTF-8 text; save the story as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{name} holds zero bytes; that is not a text file")
    return text


def _tidy(text: str) -> str:
    return " ".join(text.split())


def _at(node: yaml.Node, name: str) -> str:
    return f"{name}, line {node.start_mark.line + 1}"


def _mapping(node: yaml.Node, name: str, what: str, known: tuple[str, ...] | None) -> dict[str, yaml.Node]:
    if not isinstance(node, yaml.MappingNode):
        keys = ", ".join(known or ())
        raise UserError(f"{_at(node, name)}: {what} must have keys" + (f" ({keys})" if keys else ""))
    found: dict[str, yaml.Node] = {}
    for key_node, value_node in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str) or (known is not None and key not in known):
            shown = key if isinstance(key, str) else "?"
            raise UserError(
                f"{_at(key_node, name)}: unknown key '{shown}' in {what}; known are {', '.join(known or ())}"
            )
        if key in found:
            raise UserError(f"{_at(key_node, name)}: the key '{key}' appears twice in {what}")
        found[key] = value_node
    return found


def _text(node: yaml.Node, name: str, what: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or node.tag == "tag:yaml.org,2002:binary":
        raise UserError(f"{_at(node, name)}: {what} must be text")
    text = "" if node.tag == "tag:yaml.org,2002:null" else _tidy(node.value)
    if not text:
        raise UserError(f"{_at(node, name)}: {what} is empty")
    return text


def _cast(node: yaml.Node, name: str) -> dict[str, str]:
    members = _mapping(node, name, "the cast", None)
    for member, value in members.items():
        if not member.isidentifier():
            raise UserError(f"{_at(value, name)}: '{member}' cannot be a cast name; use letters, digits and _")
    return {member: _text(value, name, f"the description of '{member}'") for member, value in members.items()}


def _caption(node: yaml.Node, name: str, what: str, cast: Mapping[str, str]) -> str:
    def describe(match: re.Match[str]) -> str:
        if match.group(1) not in cast:
            known = f"the cast has {', '.join(cast)}" if cast else "the story has no cast"
            raise UserError(f"{_at(node, name)}: {what} names {match.group(0)}, but {known}")
        return cast[match.group(1)]

    return _CAST_NAME.sub(describe, _text(node, name, what))


def _shot(node: yaml.Node, name: str, cast: Mapping[str, str]) -> StoryShot:
    entry = _mapping(node, name, "a shot", _SHOT_KEYS)
    if "caption" not in entry:
        raise UserError(f"{_at(node, name)}: this shot has no caption")
    chunks = _chunks(entry["chunks"], name) if "chunks" in entry else None
    line = entry["caption"].start_mark.line + 1
    return StoryShot(caption=_caption(entry["caption"], name, "caption", cast), chunks=chunks, line=line)


def _chunks(node: yaml.Node, name: str) -> int:
    text = node.value if isinstance(node, yaml.ScalarNode) else "a list"
    if not (isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:int" and text.isdecimal()):
        raise UserError(f"{_at(node, name)}: chunks must be a whole number from 1 to {MAX_CHUNKS}, not '{text}'")
    if not 1 <= int(text[:9]) <= MAX_CHUNKS:
        raise UserError(f"{_at(node, name)}: chunks must be from 1 to {MAX_CHUNKS}, not {text[:20]}")
    return int(text)
