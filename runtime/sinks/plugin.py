"""The plugin that offers our sinks by name. It loads none of them: each is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shotstream.runtime.plugins import Registry
    from shotstream.runtime.sinks.base import Sink

SINKS: Mapping[str, str] = {
    "mp4": "shotstream.runtime.sinks.mp4:Mp4Sink",
    "contact-sheet": "shotstream.runtime.sinks.contact_sheet:ContactSheetSink",
    "story-json": "shotstream.runtime.sinks.story_json:StoryJsonSink",
    "window": "shotstream.runtime.sinks.window:WindowSink",
    "terminal": "shotstream.runtime.sinks.terminal:TerminalSink",
}


class SinksPlugin:
    """Registers the sinks of this folder in the slot `sink`."""

    name = "sinks"

    def build(self, registry: Registry) -> None:
        """Register every sink under its name."""
        for name, where in SINKS.items():
            registry.register("sink", name, _factory(where))


def _factory(where: str) -> Callable[[Path, Mapping[str, Any]], Sink]:
    def make(target: Path, options: Mapping[str, Any]) -> Sink:
        module, _, attribute = where.partition(":")
        sink: Sink = getattr(importlib.import_module(module), attribute)(target, options)
        return sink

    return make
