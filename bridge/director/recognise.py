"""What a caption that a person wrote shows, as far as it says so: the shot grammar goes on from there."""

from __future__ import annotations

import re

from shotstream.bridge.director.eventmap import EventMap
from shotstream.bridge.director.facts import ShotRecord, StoryState


def shot(chart: EventMap, state: StoryState, caption: str) -> ShotRecord:
    """Size and subject of a caption; "" for a size that it does not name, and for a subject without cast members.

    The size named first counts; everyone is seen whose name or short words appear."""
    text = caption.lower()
    found = {size.key: text.find(size.words.lower()) for size in chart.sizes.values()}
    named = {key: place for key, place in found.items() if place >= 0}
    size = min(named, key=lambda key: named[key]) if named else ""
    keys = [
        member.key
        for member in state.cast
        if any(re.search(rf"\b{re.escape(words.lower())}\b", text) for words in (member.name, member.short))
    ]
    order = list(dict.fromkeys((*state.heroes, *keys)))
    return ShotRecord(size, "+".join(sorted(keys, key=order.index)))
