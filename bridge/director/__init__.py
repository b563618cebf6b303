"""From events of a game to captions: rules, story state, shot grammar, wording. No torch, no sockets, no clock."""

from shotstream.bridge.director.director import Director
from shotstream.bridge.director.eventmap import EventMap
from shotstream.bridge.director.facts import CastMember, Direction, Event, ShotRecord, StoryState
from shotstream.bridge.director.load import load_map, parse_map, shipped_map

__all__ = [
    "CastMember",
    "Direction",
    "Director",
    "Event",
    "EventMap",
    "ShotRecord",
    "StoryState",
    "load_map",
    "parse_map",
    "shipped_map",
]
