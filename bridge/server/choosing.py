"""Choices: every option is a branch of the film whose first chunk is made before anybody has chosen. Pure.

A branch starts where the shot stands when it is prepared; what that shot still shows until the choice is made, the
option's shots do not remember.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from shotstream.bridge.model import orders
from shotstream.bridge.protocol import messages as m
from shotstream.bridge.server.plan import ShotOrder

if TYPE_CHECKING:
    from shotstream.bridge.server.session import Session


class Progress(Enum):
    """How far an option has come."""

    WAITING = "waiting"
    MAKING = "making"
    READY = "ready"
    FAILED = "failed"


@dataclass
class Branch:
    """One option. ``film`` is its number in the studio, 0 before it was branched off."""

    key: str
    order: ShotOrder
    film: int = 0
    progress: Progress = Progress.WAITING
    made: orders.Made | None = None


@dataclass
class Offer:
    """A choice that is open: its request, its branches in order, and when the default is taken (None: never)."""

    request: int
    branches: dict[str, Branch]
    deadline: float | None = None
    default: str = ""
    committed: tuple[Branch, int, float] | None = None
    """What was chosen while its chunk was still being made, by which request, and when."""


class Choosing:
    """A session's open choice, at most one."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.offer: Offer | None = None

    def open(self, offer: Offer) -> None:
        """A new choice takes the place of an open one."""
        self.drop()
        self.offer = offer

    def next_waiting(self) -> Branch | None:
        """The first option that nobody has begun to prepare."""
        branches = self.offer.branches.values() if self.offer else ()
        return next((b for b in branches if b.progress is Progress.WAITING), None)

    def overdue(self, now: float) -> Branch | None:
        """The default of a choice whose time is over."""
        offer = self.offer
        if offer is None or offer.deadline is None or now < offer.deadline or offer.committed:
            return None
        return offer.branches.get(offer.default)

    def ready(self, branch: Branch, made: orders.Made, unwanted: bool, now: float) -> None:
        """An option's first chunk is there."""
        session, offer = self._session, self.offer
        if unwanted or offer is None or offer.branches.get(branch.key) is not branch:
            session.desk.slots.drop(made.slot)
            session.desk.order(orders.CloseFilm(branch.film))
            return
        branch.progress, branch.made = Progress.READY, made
        ready = m.ChoiceReady(re=offer.request, session=session.name, key=branch.key, frames=len(made.sizes))
        session.answer(offer.request, ready)
        if offer.committed and offer.committed[0] is branch:
            self._reveal(branch, offer.committed[1], offer.committed[2], now)

    def failed(self, branch: Branch, result: orders.NotMade) -> None:
        """An option came to nothing: it can still be committed, as a cut, unless the model refused its words."""
        session, offer = self._session, self.offer
        branch.progress = Progress.FAILED
        session.desk.order(orders.CloseFilm(branch.film))
        if offer is None or offer.branches.get(branch.key) is not branch or result.code == "stopped":
            return
        code = "out_of_memory" if result.code == "idle" else result.code
        text = f"option {branch.key!r}: {result.message or 'no chunk came of it'}"
        session.answer(offer.request, m.Error(code=code, message=text, re=offer.request, session=session.name))
        if offer.committed and offer.committed[0] is branch:
            _, request, arrived = offer.committed
            offer.committed = None
            self._cut(branch, request, arrived)

    def commit(self, branch: Branch, request: int, now: float) -> None:
        """Take an option: from memory if it is ready, as soon as it is if it is in the making, else as a cut."""
        assert self.offer is not None
        self._session.ack(request)
        if branch.progress is Progress.READY:
            self._reveal(branch, request, now, now)
        elif branch.progress is Progress.MAKING:
            self.offer.committed = branch, request, now
        else:
            self._cut(branch, request, now)

    def _cut(self, branch: Branch, request: int, arrived: float) -> None:
        session = self._session
        self.drop()
        session.give_up_making()
        session.supersede(session.plan.put_cut(replace(branch.order, request=request, arrived=arrived, flush=True)))

    def _reveal(self, branch: Branch, request: int, arrived: float, now: float) -> None:
        """The film goes on as this branch; the others, and what was in the making, are dropped."""
        session, offer, made = self._session, self.offer, branch.made
        assert offer is not None
        assert made is not None
        del offer.branches[branch.key]
        offer.committed = None
        self.drop()
        session.supersede(session.plan.clear())
        session.give_up_making()
        session.desk.order(orders.CloseFilm(session.film))
        session.film = branch.film
        session.show(made, replace(branch.order, request=request, arrived=arrived, flush=True), now, speculative=True)

    def cancel(self, request: int) -> bool:
        """Take back a choice, or a commit that waits for its chunk; False if this request is neither."""
        offer = self.offer
        if offer is None:
            return False
        if offer.committed is not None and offer.committed[1] == request:
            offer.committed = None
            return True
        if offer.request != request:
            return False
        self.drop()
        return True

    def drop(self) -> None:
        """Close an open choice and free what was prepared."""
        session, offer = self._session, self.offer
        self.offer = None
        if offer is None:
            return
        if offer.committed is not None:
            session.supersede([offer.committed[1]])
        for branch in offer.branches.values():
            if branch.made is not None:
                session.desk.slots.drop(branch.made.slot)
            if branch.progress is Progress.MAKING:
                session.give_up_making()  # its film is closed when the model answers
            elif branch.film and branch.progress is not Progress.FAILED:
                session.desk.order(orders.CloseFilm(branch.film))
