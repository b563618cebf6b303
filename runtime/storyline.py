"""What a story is: shots, scenes and choices; how it is told when the choices are made; which captions are too long.

This file knows words and line numbers. It reads no files (see story.py), and knows no tensors, no sessions and no
tokenizer: the length of a caption is checked by a function that the model's preset brings along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from shotstream.runtime.errors import UserError


@dataclass(frozen=True)
class Scene:
    """A new global caption for the shots that follow: another place, another time, other heroes.

    Unless `keep_memory`, what was in earlier shots is forgotten. `line` is that of the source (1-based)."""

    global_caption: str
    keep_memory: bool = False
    line: int = 0


@dataclass(frozen=True)
class Taken:
    """A choice that was made: its question, the name and label of the option taken, and the names of all options."""

    question: str
    option: str
    label: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class StoryShot:
    """One shot as written: its caption (cast names replaced), its length in chunks (None: the preset's default) and
    the line of the source it came from (1-based).

    A story that is being told adds the scene that begins with this shot, and the choices made right before it."""

    caption: str
    chunks: int | None = None
    line: int = 0
    scene: Scene | None = None
    taken: tuple[Taken, ...] = ()


@dataclass(frozen=True)
class Option:
    """One way a story can go on: the word that picks it, what people are shown, and what is played."""

    name: str
    label: str
    entries: tuple[StoryShot | Scene, ...]


@dataclass(frozen=True)
class Choice:
    """A question in the middle of a story. The first option is the usual one. `line` as for a shot."""

    question: str
    options: tuple[Option, ...]
    line: int = 0

    def taken(self, option: Option) -> Taken:
        """The record of this choice, made."""
        return Taken(self.question, option.name, option.label, tuple(each.name for each in self.options))


Entry = StoryShot | Scene | Choice


class StorySource(Protocol):
    """Where shots come from. Iterating may block: a live story waits for its next line, a choice for its answer."""

    @property
    def name(self) -> str: ...
    @property
    def global_caption(self) -> str: ...
    @property
    def total_shots(self) -> int | None: ...
    def __iter__(self) -> Iterator[StoryShot]: ...


@dataclass(frozen=True)
class Story:
    """A story that is known in full before the film starts. Played as it is, every choice takes its first option;
    `Telling` plays it with others."""

    name: str
    global_caption: str
    entries: tuple[Entry, ...]
    cast: Mapping[str, str] = field(default_factory=dict)

    @property
    def shots(self) -> tuple[StoryShot, ...]:
        """Every shot in the order written, those of all options included."""
        found: list[StoryShot] = []
        for entry in self.entries:
            within = [e for option in entry.options for e in option.entries] if isinstance(entry, Choice) else [entry]
            found += [each for each in within if isinstance(each, StoryShot)]
        return tuple(found)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The choices in order; every telling meets all of them."""
        return tuple(entry for entry in self.entries if isinstance(entry, Choice))

    @property
    def total_shots(self) -> int | None:
        return Telling(self).total_shots

    def __iter__(self) -> Iterator[StoryShot]:
        return iter(Telling(self))


class Telling:
    """A story with its choices made: some beforehand, the others when the story has come to them."""

    def __init__(
        self,
        story: Story,
        picks: Sequence[Option | None] = (),
        ask: Callable[[Choice], Option] | None = None,
    ) -> None:
        """picks: the options taken, in the order of the choices; None, or none left, where it is still open. ask:
        called for an open choice when it is reached, and may take its time; without it the first option is taken."""
        self.story = story
        self.name = story.name
        self.global_caption = story.global_caption
        self._ask = ask
        missing = len(story.choices) - len(picks)
        self._picks = [*picks, *[None] * missing]
        if ask is None:
            pairs = zip(self._picks, story.choices, strict=True)
            self._picks = [pick or choice.options[0] for pick, choice in pairs]

    @property
    def total_shots(self) -> int | None:
        """Shots of the whole film; None as long as an open choice decides it."""
        total, picks = 0, iter(self._picks)
        for entry in self.story.entries:
            if isinstance(entry, Choice):
                pick = next(picks)
                counts = {_count(option.entries) for option in ([pick] if pick else entry.options)}
                if len(counts) > 1:
                    return None
                total += counts.pop()
            else:
                total += _count((entry,))
        return total

    def __iter__(self) -> Iterator[StoryShot]:
        scene: Scene | None = None
        taken: tuple[Taken, ...] = ()
        for entry in self._entries():
            if isinstance(entry, Scene):
                scene = entry
            elif isinstance(entry, Taken):
                taken = (*taken, entry)
            else:
                yield replace(entry, scene=scene, taken=taken)
                scene, taken = None, ()

    def _entries(self) -> Iterator[StoryShot | Scene | Taken]:
        """The story as a line without branches; choices are made on the way."""
        number = 0
        for entry in self.story.entries:
            if isinstance(entry, Choice):
                option = self._picks[number] or (self._ask(entry) if self._ask else entry.options[0])
                self._picks[number] = option
                number += 1
                yield entry.taken(option)
                yield from option.entries
            else:
                yield entry


def _count(entries: Sequence[Entry]) -> int:
    return sum(isinstance(entry, StoryShot) for entry in entries)


def check_lengths(source: StorySource, limit: int, count_tokens: Callable[[str], int] | None = None) -> None:
    """Refuses captions of a known story that the model could not read to their end, whatever is going to be chosen.

    `limit` is in tokens."""
    story = source.story if isinstance(source, Telling) else source
    if not isinstance(story, Story):
        return

    def walk(entries: Sequence[Entry], before: set[tuple[str, int]]) -> set[tuple[str, int]]:
        # Where a shot can stand: its global caption and its label. Sets of them keep many choices in a row cheap.
        places = before
        for entry in entries:
            if isinstance(entry, Scene):
                places = {(entry.global_caption, label if entry.keep_memory else 0) for _, label in places}
            elif isinstance(entry, Choice):
                places = set().union(*(walk(option.entries, places) for option in entry.options))
            else:
                for global_caption, label in sorted(places):
                    check_length(story.name, global_caption, label, entry, limit, count_tokens)
                places = {(global_caption, label + 1) for global_caption, label in places}
        return places

    walk(story.entries, {(story.global_caption, 0)})


def check_length(
    name: str,
    global_caption: str,
    label: int,
    shot: StoryShot,
    limit: int,
    count_tokens: Callable[[str], int] | None = None,
) -> None:
    """Refuses one shot whose full caption (global caption, label, shot caption) is longer than `limit` tokens.

    name: the story's. label: the shot's number since memory began, zero-based.
    The reference cuts such captions at their end, so that the shot's own part is lost first; a refusal is kinder.
    Without a tokenizer words are counted: every word is at least one token."""
    full = full_caption(global_caption, label, shot.caption)
    count = count_tokens(full) if count_tokens else len(full.split())
    if count > limit:
        raise UserError(
            f"{name}, line {shot.line}: the caption of this shot has {count} tokens together with the "
            f"global caption ({len(full.split())} words), but this model reads at most {limit}; shorten one of them"
        )


def full_caption(global_caption: str, label: int, caption: str) -> str:
    """What the text encoder reads for a shot: no separators, as the reference joins them. `label` as for
    `check_length`."""
    return f"{global_caption}shot{label}:{caption}"
