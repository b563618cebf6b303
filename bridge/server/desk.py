"""What a session uses and what it keeps of its film. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from shotstream.bridge.frame_store import SlotBook
from shotstream.bridge.model import orders
from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.limits import Limits
from shotstream.bridge.server.plan import ShotOrder, SteerOrder
from shotstream.bridge.server.replay_buffer import Payload

if TYPE_CHECKING:
    from shotstream.bridge.server.choosing import Branch
    from shotstream.bridge.server.session import Session


class Desk(Protocol):
    """What a session needs of the hub."""

    limits: Limits
    slots: SlotBook

    @property
    def facts(self) -> orders.Facts: ...
    def say(self, session: Session, message: m.ServerMessage, payload: Payload | None) -> None: ...
    def order(self, order: orders.Order) -> None: ...
    def new_number(self) -> int: ...


@dataclass
class Making:
    """The chunk in the making, and what it begins with. ``unwanted``: its frames are thrown away."""

    ticket: int
    film: int
    slot: int
    order: ShotOrder | SteerOrder | None
    branch: Branch | None = None
    unwanted: bool = False

    @property
    def request(self) -> int:
        """The request that this chunk will show first; 0 if none."""
        return self.order.request if self.order is not None else 0


@dataclass(frozen=True)
class Boundary:
    """A film between two shots: the model's state (empty at the start) and the director's."""

    saved: bytes
    shot: int
    words: Any
    global_caption: str
