"""All films of a server and the one model that they share: whose turn it is, and what the model says to whom. Pure."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from shotstream.bridge.frame_store import SlotBook
from shotstream.bridge.model import orders
from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.codes import RETRYABLE
from shotstream.bridge.protocol.limits import TEXT, Limits
from shotstream.bridge.server.replay_buffer import Payload
from shotstream.bridge.server.session import Session

log = logging.getLogger(__name__)

CHUNKS_IN_FLIGHT = 3
"""Slots of a session beyond those that its replay buffer holds: one in the making, two on their way out."""


class Send(Protocol):
    """Sends to a connection."""

    def __call__(self, peer_id: bytes, message: m.ServerMessage, payload: Payload | None = None) -> None: ...


class Films:
    """The sessions by name, and the desk that they work at. ``closed`` is called with every session that ends."""

    def __init__(self, limits: Limits, send: Send, closed: Callable[[Session], None]) -> None:
        self.limits = limits
        self.slots = SlotBook(0)
        self.sessions: dict[str, Session] = {}
        self.model_orders: deque[orders.Order] = deque()
        self.making: Session | None = None
        """Whose chunk is being made: one at a time, so that a cut never waits for a queue."""
        self.ready = False
        self._facts: orders.Facts | None = None
        self._send, self._closed = send, closed
        self._number = 0
        self._served: dict[str, int] = {}

    # --- the sessions' desk -----------------------------------------------------------------------------------------
    @property
    def facts(self) -> orders.Facts:
        """Facts of the loaded model; sessions exist only once there are some."""
        assert self._facts is not None
        return self._facts

    def say(self, session: Session, message: m.ServerMessage, payload: Payload | None) -> None:
        """Send to a session's client if it has one."""
        if session.owner is not None:
            self._send(session.owner, message, payload)

    def order(self, order: orders.Order) -> None:
        """Queue an order for the model. Without one there is nobody to do it: `model_ready` opens the films anew."""
        if self.ready or isinstance(order, orders.Quit):
            self.model_orders.append(order)

    def new_number(self) -> int:
        """A number that was never used."""
        self._number += 1
        return self._number

    # --- sessions ---------------------------------------------------------------------------------------------------
    def add(self, session: Session) -> None:
        """Take a new session in; its film is ordered."""
        self.sessions[session.name] = session
        session.open_film()

    def close(self, session: Session, reason: str, code: str = "closed") -> None:
        """End a session and free what it holds."""
        told = m.SessionClosed(
            session=session.name, reason=reason[:TEXT], code=code, frames=session.next_seq, shots=session.shots
        )
        self.say(session, told, None)
        session.close_film()
        self.sessions.pop(session.name, None)
        self._served.pop(session.name, None)
        self._closed(session)

    # --- the model --------------------------------------------------------------------------------------------------
    def slots_for(self, facts: orders.Facts) -> int:
        """How many slots the frame store needs."""
        return self.share(facts) * self.limits.sessions

    def share(self, facts: orders.Facts) -> int:
        """How many of them a session may use: its replay buffer, chunks on their way, and the options of a choice."""
        chunk = min(facts.chunk_frames, facts.first_chunk_frames)
        frames = max(self.limits.replay_frames, self.limits.window_max)
        return -(-frames // chunk) + 1 + CHUNKS_IN_FLIGHT + self.limits.choices

    def crowded(self) -> bool:
        """True if frames of sessions that have ended, still on their way to clients that do not fetch them, leave no
        share for another session."""
        kept = self.slots.share * (len(self.sessions) + 1)
        ghosts = self.slots.used - sum(self.slots.taken(name) for name in self.sessions)
        return kept + ghosts > self.slots.total

    def model_ready(self, facts: orders.Facts, slots: SlotBook) -> None:
        """The model can be used; sessions that lost theirs get their films back. ``slots``: the same book again after
        a restart."""
        self._facts, self.slots, self.ready = facts, slots, True
        for session in self.sessions.values():
            session.open_film()

    def model_died(self) -> None:
        """The model process is gone, and with it everything that was ordered."""
        self.making, self.ready = None, False
        self.model_orders.clear()
        for session in self.sessions.values():
            session.model_lost()

    def model_says(self, result: orders.Result, now: float) -> None:
        """A result of the model process, except for its loading and readiness."""
        match result:
            case orders.Made() | orders.NotMade():
                session, self.making = self.making, None
                assert session is not None, "one chunk is ordered at a time"
                with self._contained(session):
                    if isinstance(result, orders.Made):
                        session.made(result, now)
                    else:
                        session.not_made(result)
            case orders.FilmOpen():
                if (found := self._of_film(result.film)) is not None:
                    found.film_opened()
            case orders.FilmFailed():
                if (found := self._of_film(result.film)) is not None:
                    self._failed(found, result)
            case orders.Kept():
                if (found := self._of_film(result.film)) is not None:
                    found.kept(result)

    def _failed(self, session: Session, result: orders.FilmFailed) -> None:
        told = m.Error(
            code=result.code, message=result.message[:TEXT], re=session.opened.id, session=session.name,
            retryable=result.code in RETRYABLE,
        )  # fmt: skip
        self.say(session, told, None)
        self.close(session, result.message, result.code)

    @contextmanager
    def _contained(self, session: Session) -> Iterator[None]:
        """A defect met while working for one film ends that film, not the server."""
        try:
            yield
        except Exception as error:
            log.exception("session %s ends", session.name)
            text = f"the server could not go on with this film ({type(error).__name__}); its log says more"
            told = m.Error(code="internal", message=text, session=session.name, retryable=True)
            self.say(session, told, None)
            self.close(session, text, "internal")

    def _of_film(self, film: int) -> Session | None:
        return next((s for s in self.sessions.values() if s.film == film), None)

    # --- time -------------------------------------------------------------------------------------------------------
    def tick(self, now: float) -> None:
        """Sessions that waited or lasted too long, and choices that nobody made."""
        for session in tuple(self.sessions.values()):
            patience = min(session.opened.resume_ttl_s, self.limits.resume_ttl_s)
            if session.owner is None and now - session.detached_at > patience:
                self.close(session, "its client did not come back", "expired")
            elif now - session.begun > self.limits.session_s:
                self.close(session, "the session has reached its longest time", "time_limit")
            elif (branch := session.choosing.overdue(now)) is not None:
                with self._contained(session):
                    session.choosing.commit(branch, 0, now)

    def schedule(self, now: float) -> None:
        """Order the chunk whose client runs dry first; with nothing urgent, an option of a choice."""
        if self.making is not None or not self.ready:
            return
        open_to = {name: s for name, s in self.sessions.items() if self.slots.room(name)}
        dry = {name: d for name, s in open_to.items() if (d := s.deadline(now)) is not None}
        if dry:
            session = self.sessions[min(dry, key=lambda name: (dry[name], self._served.get(name, 0)))]
            session.make()
        else:
            found = next(((s, b) for s in open_to.values() if (b := s.spare()) is not None), None)
            if found is None:
                return
            session, branch = found
            session.prepare(branch)
        self.making = session
        self._served[session.name] = self.new_number()
