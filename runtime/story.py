"""Story files: what the user wrote, read and checked. Yaml, plain text, or lines from a pipe while the film is made.

What a story is, and how it is told, is in storyline.py.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO

import yaml

from shotstream.runtime.errors import UserError
from shotstream.runtime.storyline import Choice, Entry, Option, Scene, Story, StoryShot

MAX_CHUNKS = 100  # a shot of 100 chunks is 1197 frames; the ring would carry more, the rotary table ends at 339
MAX_FILE_BYTES = 1 << 20
MAX_OPTIONS = 6
MAX_LABEL = 60  # characters: an option's label stands in one line of a terminal and of the contact sheet
_STORY_KEYS = ("global_caption", "cast", "shots")
_SHOT_KEYS = ("caption", "chunks")
_SCENE_KEYS = ("scene", "keep_memory")
_CHOICE_KEYS = ("choice", "options")
_OPTION_KEYS = ("label", "shots")
_CAST_NAME = re.compile(r"\{([^{}]*)\}")
_OPTION_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


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
    return Story(name=name, global_caption=lines[0][1], entries=shots)


def parse_yaml(text: str, name: str) -> Story:
    """Yaml: `global_caption`, optional `cast` (name: description), `shots`: a list of shots (`caption`, optional
    `chunks`), scenes (`scene`, optional `keep_memory`) and choices (`choice`, `options`: name to `label` and `shots`).

    Raises UserError with the line for everything that is wrong with it."""
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
    entries: list[Entry] = []
    for node in _shot_nodes(top["shots"], name, "the story"):
        entries.append(_choice(node, name, cast) if _has_key(node, "choice") else _shot_or_scene(node, name, cast))
    if not any(isinstance(entry, StoryShot | Choice) for entry in entries):
        raise UserError(f"{_at(top['shots'], name)}: the story has 0 shots; write at least one")
    _refuse_idle_scenes(entries, name)
    return Story(
        name=name,
        global_caption=_caption(top["global_caption"], name, "global_caption", cast),
        entries=tuple(entries),
        cast=MappingProxyType(cast),
    )


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
        if not isinstance(key, str):
            raise UserError(f"{_at(key_node, name)}: a key of {what} must be text")
        if known is not None and key not in known:
            raise UserError(f"{_at(key_node, name)}: unknown key '{key}' in {what}; known are {', '.join(known)}")
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


def _shot_nodes(node: yaml.Node, name: str, what: str) -> list[yaml.Node]:
    if not isinstance(node, yaml.SequenceNode):
        raise UserError(f"{_at(node, name)}: shots must be a list of entries with a caption")
    if not node.value:
        raise UserError(f"{_at(node, name)}: {what} has 0 shots; write at least one")
    return list(node.value)


def _has_key(node: yaml.Node, key: str) -> bool:
    return isinstance(node, yaml.MappingNode) and any(found.value == key for found, _ in node.value)


def _shot_or_scene(node: yaml.Node, name: str, cast: Mapping[str, str]) -> StoryShot | Scene:
    if _has_key(node, "scene"):
        entry = _mapping(node, name, "a scene", _SCENE_KEYS)
        keep = _flag(entry["keep_memory"], name, "keep_memory") if "keep_memory" in entry else False
        return Scene(_caption(entry["scene"], name, "scene", cast), keep, entry["scene"].start_mark.line + 1)
    entry = _mapping(node, name, "a shot", _SHOT_KEYS)
    if "caption" not in entry:
        raise UserError(f"{_at(node, name)}: this shot has no caption")
    chunks = _chunks(entry["chunks"], name) if "chunks" in entry else None
    line = entry["caption"].start_mark.line + 1
    return StoryShot(caption=_caption(entry["caption"], name, "caption", cast), chunks=chunks, line=line)


def _choice(node: yaml.Node, name: str, cast: Mapping[str, str]) -> Choice:
    entry = _mapping(node, name, "a choice", _CHOICE_KEYS)
    question = _text(entry["choice"], name, "choice")
    if "options" not in entry:
        raise UserError(f"{_at(node, name)}: this choice has no options; give it 2 to {MAX_OPTIONS}")
    options = _mapping(entry["options"], name, "options", None)
    if not 2 <= len(options) <= MAX_OPTIONS:
        raise UserError(f"{_at(entry['options'], name)}: a choice has 2 to {MAX_OPTIONS} options, not {len(options)}")
    found = tuple(_option(key, value, name, cast) for key, value in entry["options"].value)
    return Choice(question, found, entry["choice"].start_mark.line + 1)


def _option(key: yaml.Node, node: yaml.Node, name: str, cast: Mapping[str, str]) -> Option:
    option = str(key.value)
    if not _OPTION_NAME.fullmatch(option):
        raise UserError(
            f"{_at(key, name)}: '{option}' cannot be an option's name; use one word: a letter, then letters, digits, - "
            "and _"
        )
    entry = _mapping(node, name, f"the option '{option}'", _OPTION_KEYS)
    for needed in _OPTION_KEYS:
        if needed not in entry:
            raise UserError(f"{_at(key, name)}: the option '{option}' has no {needed}")
    label = _text(entry["label"], name, "label")
    if len(label) > MAX_LABEL:
        raise UserError(f"{_at(entry['label'], name)}: label has {len(label)} characters; write at most {MAX_LABEL}")
    nodes = _shot_nodes(entry["shots"], name, f"the option '{option}'")
    for inner in nodes:
        if _has_key(inner, "choice"):
            raise UserError(f"{_at(inner, name)}: a choice cannot stand inside the option '{option}' of another choice")
    entries = tuple(_shot_or_scene(inner, name, cast) for inner in nodes)
    if not any(isinstance(each, StoryShot) for each in entries):
        raise UserError(f"{_at(entry['shots'], name)}: the option '{option}' has 0 shots; write at least one")
    return Option(option, label, entries)


def _refuse_idle_scenes(entries: Sequence[Entry], name: str) -> None:
    """A scene that no shot plays in, on some way through the story, is a slip of the pen."""

    def walk(entries: Sequence[Entry], idle: Scene | None) -> Scene | None:
        for entry in entries:
            if isinstance(entry, Scene):
                if idle is not None:
                    raise UserError(f"{name}, line {idle.line}: no shot stands between this scene and the next one")
                idle = entry
            elif isinstance(entry, Choice):
                ends = [walk(option.entries, idle) for option in entry.options]
                idle = next((end for end in ends if end is not None), None)
            else:
                idle = None
        return idle

    if (idle := walk(entries, None)) is not None:
        raise UserError(f"{name}, line {idle.line}: no shot follows this scene")


def _flag(node: yaml.Node, name: str, what: str) -> bool:
    value = None
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:bool":
        value = yaml.SafeLoader.bool_values.get(node.value.lower())
    if value is None:
        raise UserError(f"{_at(node, name)}: {what} must be true or false")
    return value


def _chunks(node: yaml.Node, name: str) -> int:
    text = node.value if isinstance(node, yaml.ScalarNode) else "a list"
    if not (isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:int" and text.isdecimal()):
        raise UserError(f"{_at(node, name)}: chunks must be a whole number from 1 to {MAX_CHUNKS}, not '{text}'")
    if not 1 <= int(text[:9]) <= MAX_CHUNKS:
        raise UserError(f"{_at(node, name)}: chunks must be from 1 to {MAX_CHUNKS}, not {text[:20]}")
    return int(text)
