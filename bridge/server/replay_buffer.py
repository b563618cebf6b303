"""What a session has said lately, so that a client that lost its connection can be told again. Pure.

Frames and the messages between them lie in the order of sending; each carries the number of the frame that comes next,
which is all that is needed to find where a client stopped listening.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from shotstream.bridge.frame_store import SlotBook
from shotstream.bridge.protocol.messages import Frame, ServerMessage


@dataclass(frozen=True)
class Payload:
    """A frame's bytes: where they lie in the frame store."""

    slot: int
    start: int
    length: int


@dataclass(frozen=True)
class Said:
    """One message, sent when ``seq`` was the number of the next frame."""

    seq: int
    message: ServerMessage
    payload: Payload | None = None


class ReplayBuffer:
    """The newest ``frames`` frames with everything said among them. It holds the slots of the frames it keeps."""

    def __init__(self, frames: int, slots: SlotBook) -> None:
        self.limit, self._slots = frames, slots
        self._said: deque[Said] = deque()
        self._frames = 0

    def add(self, said: Said) -> None:
        """Keep a message; the oldest frames make way."""
        self._said.append(said)
        if said.payload is not None:
            self._slots.hold(said.payload.slot)
        self._frames += isinstance(said.message, Frame)
        while self._frames > self.limit or len(self._said) > 8 * self.limit + 64:
            self._pop()

    def first_seq(self) -> int | None:
        """Number of the oldest frame kept; None if there is none."""
        return next((s.seq for s in self._said if isinstance(s.message, Frame)), None)

    def since(self, seq: int) -> list[Said]:
        """All that was said when frame ``seq`` or a later one was next."""
        return [s for s in self._said if s.seq >= seq]

    def clear(self) -> None:
        """Let go of everything."""
        while self._said:
            self._pop()

    def _pop(self) -> None:
        said = self._said.popleft()
        self._frames -= isinstance(said.message, Frame)
        if said.payload is not None:
            self._slots.drop(said.payload.slot)
