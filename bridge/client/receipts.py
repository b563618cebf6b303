"""What became of a request: a receipt, handed out at once by every call about a film and kept up to date by `poll`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from shotstream.bridge.protocol.codes import RETRYABLE
from shotstream.runtime.errors import UserError

Status: TypeAlias = Literal["pending", "accepted", "queued", "applied", "rejected", "superseded", "cancelled"]
"""``pending``: no answer yet. ``accepted`` and ``queued``: understood, will be done. The other four are final."""

_RANK: dict[Status, int] = {"pending": 0, "queued": 1, "accepted": 2}
_FINAL = 3


@dataclass(eq=False)
class Receipt:
    """One request's fate. Written by the client, read by the application; never goes back to an earlier status."""

    id: int
    """The request's number; `Frame.prompt` and `ShotBegin.cause` name it."""
    kind: str
    """The message's type: "event", "cut" and so on."""
    asked_at: float = 0.0
    """When it was asked for, in seconds of the client's clock."""
    on_change: Callable[[Receipt], None] | None = field(default=None, repr=False)
    """Called from `poll` after each change of status."""
    status: Status = "pending"
    caption: str = ""
    """What the model was given, once applied."""
    seq: int = -1
    """The first frame that shows it, once applied; -1 before."""
    shot: int = -1
    chunk: int = -1
    latency_ms: float = 0.0
    """From the request's arrival at the server to its application, in ms."""
    seen_ms: float = 0.0
    """From the call to the moment its first frame was shown here, in ms; 0 before that."""
    snap: str = ""
    """The snapshot's name, of `snapshot` and `restore`."""
    code: str = ""
    """The protocol's word for what went wrong, where something did."""
    error: str = ""
    """The same as a sentence."""

    @property
    def done(self) -> bool:
        """True once nothing more will happen to it. Requests that show nothing (pause, cancel) stay ``accepted``."""
        return self.status not in _RANK

    @property
    def answered(self) -> bool:
        return self.status != "pending"

    @property
    def retryable(self) -> bool:
        """True where the same request may succeed later."""
        return self.code in RETRYABLE

    def advance(self, status: Status) -> bool:
        """Take on a later status; False (and no change) where that would be a step back or none at all."""
        if _RANK.get(status, _FINAL) <= _RANK.get(self.status, _FINAL):
            return False
        self.status = status
        return True


class Refused(UserError):
    """A request was refused, or the film it was about is gone. ``code`` is one of the protocol's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})" if message else code)
        self.code = code
