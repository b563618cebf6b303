"""A director's words for a session: the wire's events, scenes and options as the director knows them."""

from __future__ import annotations

from typing import cast

from shotstream.bridge.director import CastMember, Direction, Director, StoryState
from shotstream.bridge.director import Event as Told
from shotstream.bridge.protocol import messages as m
from shotstream.bridge.server.words import Worded


class DirectedWords:
    """`Words` by a director. A scene that the director begins is not remembered in the next one, as in story files."""

    def __init__(self, name: str, director: Director) -> None:
        self.name, self.director = name, director

    def begin(self, opened: m.OpenSession) -> tuple[StoryState, str]:
        """A first scene if the client brought a cast, a style or a caption; else the first event makes it."""
        state = StoryState(seed=opened.seed or 0)
        if not (opened.cast or opened.style or opened.global_caption):
            return state, ""
        return self.director.scene(
            state, cast=_cast(opened.cast), style=opened.style or None, global_caption=opened.global_caption or None
        )

    def event(self, state: StoryState, event: m.Event) -> tuple[Worded, StoryState]:
        """By the director's map."""
        params = {key: value for key, value in event.params.items() if value is not None}
        told = Told(event.kind, event.actor, event.action, event.target, params, tuple(event.tags), event.at)
        return self._worded(state, *self.director.direct(state, told))

    def option(self, state: StoryState, option: m.Option) -> tuple[Worded, StoryState]:
        """A caption as it is, or an event of that kind."""
        if option.caption or not option.kind:
            return self._worded(state, *self.director.prompt(state, option.caption))
        params = {key: value for key, value in option.params.items() if value is not None}
        told = Told(option.kind, option.actor, option.action, option.target, params, at="now")
        return self._worded(state, *self.director.direct(state, told))

    def prompt(self, state: StoryState, prompt: m.Prompt) -> tuple[Worded, StoryState]:
        """As it is."""
        at = "next_chunk" if prompt.at == "auto" else prompt.at
        return self._worded(state, *self.director.prompt(state, prompt.text, at=at), chunks=prompt.chunks)

    def cut(self, state: StoryState, cut: m.Cut) -> tuple[Worded, StoryState]:
        """The client's caption, or the director's for this size and subject."""
        answer = self.director.cut(
            state, cut.caption or None, size=cut.size or None, subject=cut.subject or None,
            at="now" if cut.flush else "next_chunk",
        )  # fmt: skip
        return self._worded(state, *answer, chunks=cut.chunks)

    def scene(self, state: StoryState, scene: m.Scene) -> tuple[str | None, StoryState]:
        """A scene of the director's."""
        after, caption = self.director.scene(
            state, cast=_cast(scene.cast) or None, place=scene.place or None, time=scene.time or None,
            style=scene.style or None, global_caption=scene.global_caption or None,
        )  # fmt: skip
        return caption, after

    def _worded(
        self, before: StoryState, direction: Direction, after: StoryState, *, chunks: int = 0
    ) -> tuple[Worded, StoryState]:
        anew = direction.global_caption is not None and bool(before.told)
        at = cast(m.Urgency, direction.at)
        return Worded(
            direction.caption, at, direction.global_caption, direction.size, chunks or direction.chunks or 0, anew
        ), after  # fmt: skip


def _cast(members: list[m.Cast]) -> list[CastMember]:
    return [CastMember(member.key, member.name, member.description, member.short) for member in members]
