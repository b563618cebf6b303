"""How a session finds words: a director's, or none, so that games which bring their own captions need no director."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from shotstream.bridge.protocol.messages import Cut, Event, OpenSession, Option, Prompt, Scene, Urgency
from shotstream.runtime.errors import UserError


@dataclass(frozen=True)
class Worded:
    """A shot in words. ``global_caption`` None: the one in force; ``at`` is never auto; ``chunks`` 0: the usual;
    ``forget``: earlier shots are not remembered."""

    caption: str
    at: Urgency
    global_caption: str | None = None
    size: str = ""
    chunks: int = 0
    forget: bool = False


class Words(Protocol):
    """Turns what a client says into captions. Pure: states go in and come out, and are never changed in place.

    Everything raises UserError for what it has no words for.
    """

    name: str

    def begin(self, opened: OpenSession) -> tuple[Any, str]:
        """State and global caption at a film's start."""
        ...

    def event(self, state: Any, event: Event) -> tuple[Worded, Any]: ...
    def option(self, state: Any, option: Option) -> tuple[Worded, Any]: ...
    def prompt(self, state: Any, prompt: Prompt) -> tuple[Worded, Any]: ...
    def cut(self, state: Any, cut: Cut) -> tuple[Worded, Any]: ...
    def scene(self, state: Any, scene: Scene) -> tuple[str | None, Any]:
        """New global caption (None: unchanged) and state."""
        ...


class OwnWords:
    """No director: captions come from the client, word for word."""

    name = ""

    def begin(self, opened: OpenSession) -> tuple[Any, str]:
        """No state."""
        return None, opened.global_caption

    def event(self, state: Any, event: Event) -> tuple[Worded, Any]:
        """Events cannot be worded."""
        raise UserError("this session has no director to word events; send a prompt, or open it with a director")

    def option(self, state: Any, option: Option) -> tuple[Worded, Any]:
        """Options need captions."""
        if not option.caption:
            raise UserError(f"option {option.key!r} has no caption, and this session has no director to find one")
        return Worded(option.caption, "now"), state

    def prompt(self, state: Any, prompt: Prompt) -> tuple[Worded, Any]:
        """As it is."""
        at: Urgency = "next_chunk" if prompt.at == "auto" else prompt.at
        return Worded(prompt.text, at, chunks=prompt.chunks), state

    def cut(self, state: Any, cut: Cut) -> tuple[Worded, Any]:
        """As it is."""
        if not cut.caption:
            raise UserError("a cut without a caption needs a director; give the caption, or open with a director")
        return Worded(cut.caption, "now" if cut.flush else "next_chunk", size=cut.size, chunks=cut.chunks), state

    def scene(self, state: Any, scene: Scene) -> tuple[str | None, Any]:
        """Only a global caption can be taken as it is."""
        if not scene.global_caption:
            raise UserError("a scene without a global caption needs a director; give the caption, or open with one")
        return scene.global_caption, state
