"""What is to be shown next: the orders of a session that have not begun, and which of them make way. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from shotstream.bridge.model.orders import NewShot


@dataclass(frozen=True)
class ShotOrder:
    """A shot that was asked for. ``before`` and ``after`` are the director's states around it; ``request`` 0: ours.

    ``flush``: what lies in the client's queue is not to be shown any more.
    """

    request: int
    arrived: float
    shot: NewShot
    size: str
    before: Any
    after: Any
    flush: bool = False
    coalesce: str = ""
    deaths: int = 0
    """How often the model process died while it made a chunk of this shot."""


@dataclass(frozen=True)
class SteerOrder:
    """Another caption for the running shot."""

    request: int
    arrived: float
    caption: str


class Plan:
    """The next cut (`cut`), the shot after the running one (`later`) and a new caption (`steer`), at most one each."""

    def __init__(self) -> None:
        self.cut: ShotOrder | None = None
        self.later: ShotOrder | None = None
        self.steer: SteerOrder | None = None

    @property
    def empty(self) -> bool:
        """True if nothing waits."""
        return self.cut is None and self.later is None and self.steer is None

    def state(self, shown: Any) -> Any:
        """The director's state after everything that waits, ``shown`` being that of the running shot."""
        last = self.later or self.cut
        return last.after if last else shown

    def set_state(self, state: Any) -> bool:
        """Put another director's state behind the last shot that waits; False if none does."""
        if self.later is not None:
            self.later = replace(self.later, after=state)
        elif self.cut is not None:
            self.cut = replace(self.cut, after=state)
        else:
            return False
        return True

    def put_cut(self, order: ShotOrder) -> list[int]:
        """Cut as soon as possible; returns the requests that make way."""
        superseded = [o.request for o in (self.cut, self.steer) if o is not None]
        if self.cut is not None and self.cut.flush:
            order = replace(order, flush=True)
        self.cut, self.steer = order, None
        return superseded

    def put_later(self, order: ShotOrder) -> list[int]:
        """Begin when the running shot has ended."""
        superseded = [self.later.request] if self.later else []
        self.later = order
        return superseded

    def put_steer(self, order: SteerOrder) -> list[int]:
        """Steer with the next chunk."""
        superseded = [self.steer.request] if self.steer else []
        self.steer = order
        return superseded

    def take(self, running: bool) -> ShotOrder | SteerOrder | None:
        """What the next chunk begins with, taken off the plan; None to go on as before."""
        order: ShotOrder | SteerOrder | None
        if self.cut is not None:
            order, self.cut = self.cut, None
        elif not running:
            order, self.later = self.later, None
        else:
            order, self.steer = self.steer, None
        return order

    def begins(self, running: bool) -> bool:
        """True if the next chunk is the first of a shot."""
        return self.cut is not None or (not running and self.later is not None)

    def cancel(self, request: int) -> bool:
        """Take a request back; False if it does not wait any more."""
        for name in ("cut", "later", "steer"):
            order = getattr(self, name)
            if order is not None and order.request == request:
                setattr(self, name, None)
                return True
        return False

    def coalesce(self, key: str) -> list[int]:
        """Drop waiting events with this key; returns their requests."""
        dropped = []
        for name in ("cut", "later"):
            order = getattr(self, name)
            if key and order is not None and order.coalesce == key:
                setattr(self, name, None)
                dropped.append(order.request)
        return dropped

    def clear(self) -> list[int]:
        """Drop everything; returns the requests."""
        dropped = [o.request for o in (self.cut, self.later, self.steer) if o is not None]
        self.cut = self.later = self.steer = None
        return dropped
