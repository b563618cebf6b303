"""What fields of messages hold, in both directions: numbers, texts, and words out of a fixed list."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta

from shotstream.bridge.protocol.limits import BIGGEST, NAME, TEXT

Count: TypeAlias = Annotated[int, Meta(ge=0, le=BIGGEST)]
RequestId: TypeAlias = Annotated[int, Meta(ge=1, le=BIGGEST)]
Name: TypeAlias = Annotated[str, Meta(max_length=NAME)]
Text: TypeAlias = Annotated[str, Meta(max_length=TEXT)]
Scalar: TypeAlias = bool | Annotated[int, Meta(ge=-BIGGEST, le=BIGGEST)] | float | Text | None

Urgency: TypeAlias = Literal["now", "next_chunk", "next_shot", "auto"]
"""``now`` cuts at once and drops what is queued, ``next_chunk`` cuts behind the chunk in the making, ``next_shot``
waits for the shot's end, ``auto`` leaves it to the director."""
Size: TypeAlias = Literal["wide", "medium", "close_up"]
Policy: TypeAlias = Literal["pace", "latest"]
Role: TypeAlias = Literal["player", "viewer", "director"]
Encoding: TypeAlias = Literal["rgb24", "rgba32", "bgra32", "jpeg", "none"]
Empty: TypeAlias = Literal[""]
