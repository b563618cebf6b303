"""The server without its sockets: connections, sessions, whose turn it is on the model. Pure: no socket, no clock.

Everything comes in through `receive`, `lost`, `model_says`, `model_died` and `tick`, each with the time in seconds;
everything goes out through the two queues `outgoing` (to clients) and `model_orders` (to the model process).
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from shotstream.bridge.frame_store import SlotBook
from shotstream.bridge.model import orders
from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.codes import RETRYABLE
from shotstream.bridge.protocol.envelope import BadMessage, Part, unpack_client
from shotstream.bridge.protocol.limits import PROTO, TEXT, Limits
from shotstream.bridge.protocol.messages import FromClient
from shotstream.bridge.server.films import Films
from shotstream.bridge.server.handlers import Refused, fork_boundary, handle
from shotstream.bridge.server.replay_buffer import Payload
from shotstream.bridge.server.requests import Rate
from shotstream.bridge.server.session import Session
from shotstream.bridge.server.vitals import starving, statistics
from shotstream.bridge.server.words import OwnWords, Words
from shotstream.runtime.errors import UserError

log = logging.getLogger(__name__)

_BANNED_MOST = 4096
FEATURES = ["steer", "fork", "choices", "snapshot"]
ENCODINGS: list[str] = ["rgb24", "rgba32", "bgra32", "jpeg", "none"]


class Outgoing(NamedTuple):
    """A message for a connection."""

    peer: bytes
    message: m.ServerMessage
    payload: Payload | None


@dataclass
class Peer:
    """A connection. ``sessions`` are the names of those it owns."""

    heard: float
    rate: Rate
    welcomed: bool = False
    stats: bool = False
    sessions: set[str] = field(default_factory=set)
    bad: deque[float] = field(default_factory=deque)


class Hub:
    """All clients and all films of one server. ``token`` "" admits everybody; ``new_name`` makes unguessable names."""

    def __init__(
        self, limits: Limits, words: Mapping[str, Words], default_words: str, new_name: Callable[[], str],
        new_seed: Callable[[], int], *, server: str = "shotstream", token: str = "", model: str = "",
    ) -> None:  # fmt: skip
        self.limits, self.words, self.default_words = limits, dict(words), default_words
        self.words.setdefault("", OwnWords())
        self.new_name, self.new_seed, self.server, self.token = new_name, new_seed, server, token
        self.model = m.Model(name=model)
        self.films = Films(limits, self._send, self._session_ended)
        self.outgoing: deque[Outgoing] = deque()
        self.peers: dict[bytes, Peer] = {}
        self.banned: dict[bytes, float] = {}
        self._stats_at = 0.0
        self.closing = False

    @property
    def model_orders(self) -> deque[orders.Order]:
        """Orders for the model process, to be taken from the left."""
        return self.films.model_orders

    # --- clients ----------------------------------------------------------------------------------------------------
    def receive(self, peer_id: bytes, parts: Sequence[Part], now: float) -> None:
        """A message of a connection, identity taken off."""
        if self.banned.get(peer_id, 0.0) > now:
            return
        try:
            message = unpack_client(parts, self.limits.header_bytes, self.limits.part_bytes, self.limits.parts)
        except BadMessage as bad:
            self._bad(peer_id, bad, now)
            return
        try:
            self._message(peer_id, message, now)
        except Exception as error:  # one client's message never ends the others' films
            log.exception("a %s could not be handled", type(message).__name__)
            text = f"the server could not handle this ({type(error).__name__}); its log says more"
            request, session = getattr(message, "id", 0), getattr(message, "session", "")
            self._bad(peer_id, BadMessage("internal", text, request, session), now)

    def _message(self, peer_id: bytes, message: FromClient, now: float) -> None:
        peer = self.peers.get(peer_id)
        if peer is not None:
            peer.heard = now
        if isinstance(message, m.Hello):
            self._hello(peer_id, message, now)
        elif peer is None or not peer.welcomed:
            self._error(peer_id, "hello_required", "say hello first", fatal=False)
        elif isinstance(message, m.Ping):
            clock = int(now * 1e6)
            self._send(peer_id, m.Pong(t0=message.t0, t1=clock, t2=clock))
        elif isinstance(message, m.Goodbye):
            self._leave(peer_id, peer, now)
        elif isinstance(message, m.Credit):
            self._credit(peer_id, message, now)
        elif not peer.rate.allows(now):
            self._error(
                peer_id, "rate_limited", f"more than {self.limits.requests_per_s} requests a second",
                re=message.id, retry_after_ms=1000,
            )  # fmt: skip
        elif isinstance(message, m.OpenSession):
            self._open(peer_id, peer, message, now)
        elif isinstance(message, m.Resume):
            self._resume(peer_id, peer, message, now)
        else:
            self._session_request(peer_id, peer, message, now)

    def lost(self, peer_id: bytes, now: float) -> None:
        """A connection is gone; its sessions wait for it."""
        peer = self.peers.pop(peer_id, None)
        for name in peer.sessions if peer else ():
            session = self.films.sessions.get(name)
            if session is not None and session.owner == peer_id:
                session.owner, session.detached_at = None, now

    def _hello(self, peer_id: bytes, hello: m.Hello, now: float) -> None:
        if hello.proto[0] != PROTO[0]:
            text = f"this server speaks version {PROTO[0]}.{PROTO[1]}, the client {hello.proto[0]}.{hello.proto[1]}"
            self._error(peer_id, "version", text, fatal=True)
            return
        if self.token and not secrets.compare_digest(hello.token.encode(), self.token.encode()):
            self._error(peer_id, "unauthorized", "the token is missing or wrong", fatal=True)
            return
        if peer_id not in self.peers and len(self.peers) >= self.limits.connections:
            self._error(peer_id, "busy", "too many connections", fatal=True, retry_after_ms=5000)
            return
        peer = self.peers.setdefault(peer_id, Peer(now, Rate(self.limits.requests_per_s, now)))
        peer.welcomed, peer.stats = True, hello.stats
        self._send(peer_id, m.Welcome(
            proto=PROTO, server=self.server, enc=list(ENCODINGS), models=[self.model], limits=self.limits,
            features=list(FEATURES), directors=[n for n in self.words if n], clock_us=int(now * 1e6),
        ))  # fmt: skip

    def _open(self, peer_id: bytes, peer: Peer, message: m.OpenSession, now: float) -> None:
        for name in peer.sessions:  # the same request again
            known = self.films.sessions.get(name)
            if known is not None and message.id == known.opened.id and message.nonce == known.opened.nonce:
                for answer in known.memory.answers(message.id):
                    self._send(peer_id, answer)
                return
        again = next(
            (s for s in self.films.sessions.values() if message.nonce and s.opened.nonce == message.nonce), None
        )
        if again is not None:
            self._adopt(peer_id, peer, again)
            self._send(peer_id, again.opened_message(message.id))
            return
        refusal = self._why_not(peer, message)
        if refusal is not None:
            code, text = refusal
            self._error(peer_id, code, text, re=message.id, retry_after_ms=1000 if code in RETRYABLE else 0)
            return
        seed = self.new_seed() if message.seed is None else message.seed
        words = self.words[message.director or self.default_words]
        try:
            session = Session(self.films, self.new_name(), self.new_name(), peer_id, message, words, seed, now)
        except UserError as error:
            self._error(peer_id, "rejected_content", str(error), re=message.id)
            return
        self._start(peer, session, message.id)

    def _start(self, peer: Peer, session: Session, request: int) -> None:
        session.memory.begin(request)
        peer.sessions.add(session.name)
        self.films.add(session)

    def _why_not(self, peer: Peer, message: m.OpenSession) -> tuple[str, str] | None:
        """Why a session cannot be opened; checked before anything is made for it."""
        if self.closing:
            return "shutting_down", "the server is about to stop"
        if self.model.state != "ready":
            failed = self.model.state == "failed"
            return "model_failed" if failed else "model_loading", self.model.state_text or "the model is not ready yet"
        facts = self.films.facts
        if len(self.films.sessions) >= self.limits.sessions:
            return "busy", f"all {self.limits.sessions} sessions are taken"
        if self.films.crowded():
            return "busy", "frames of closed sessions still wait for clients that do not fetch them"
        if len(peer.sessions) >= self.limits.sessions_per_connection:
            return "busy", f"a connection has at most {self.limits.sessions_per_connection} sessions"
        if message.model not in ("", facts.name):
            return "not_supported", f"there is no model {message.model!r} here; there is {facts.name}"
        if (message.width, message.height) not in ((0, 0), (facts.width, facts.height)):
            return "not_supported", f"{facts.name} makes {facts.width}x{facts.height}"
        if message.fps not in (0, facts.fps):
            return "not_supported", f"{facts.name} makes {facts.fps} frames a second"
        if message.policy != "pace":
            return "not_supported", "this server sends every frame (policy pace)"
        if message.director and message.director not in self.words:
            known = ", ".join(n for n in self.words if n) or "none"
            return "not_supported", f"there is no director {message.director!r}; there is {known}"
        return None

    def _session_request(self, peer_id: bytes, peer: Peer, message: Any, now: float) -> None:
        session = self.films.sessions.get(message.session)
        if session is None:
            text = f"there is no session {message.session!r}"
            self._error(peer_id, "no_session", text, re=message.id, session=message.session)
            return
        if session.owner != peer_id:
            self._error(
                peer_id, "not_owner", "another connection holds this session; resume it with its token",
                re=message.id, session=session.name,
            )  # fmt: skip
            return
        if session.memory.knows(message.id):
            answers = session.memory.answers(message.id) or [
                m.Ack(re=message.id, session=session.name, status="duplicate")
            ]
            for answer in answers:
                self._send(peer_id, answer)
            return
        session.memory.begin(message.id)
        if isinstance(message, m.CloseSession):
            session.ack(message.id)
            self.films.close(session, "closed by the client")
        elif isinstance(message, m.Fork):
            self._fork(peer, session, message, now)
        else:
            handle(session, message, now)

    def _fork(self, peer: Peer, session: Session, message: m.Fork, now: float) -> None:
        refusal = self._why_not(peer, m.OpenSession(id=message.id))
        if refusal is not None:
            session.reject(message.id, *refusal)
            return
        try:
            boundary = fork_boundary(session, message)
        except Refused as refused:
            session.reject(message.id, refused.code, str(refused))
            return
        assert session.owner is not None
        name = message.name if message.name and message.name not in self.films.sessions else self.new_name()
        opened = msgspec.structs.replace(session.opened, id=message.id, nonce="")
        twin = Session(self.films, name, self.new_name(), session.owner, opened, session.words, session.seed, now)
        twin.boundary, twin.shown_words, twin.global_caption = boundary, boundary.words, boundary.global_caption
        session.ack(message.id)
        twin.parent = session
        self._start(peer, twin, message.id)

    def _resume(self, peer_id: bytes, peer: Peer, message: m.Resume, now: float) -> None:
        session = self.films.sessions.get(message.session)
        if session is None:
            text = f"there is no session {message.session!r}; it was closed or has waited too long"
            self._error(peer_id, "no_session", text, re=message.id, session=message.session)
            return
        if not secrets.compare_digest(message.token.encode(), session.token.encode()):
            self._error(peer_id, "bad_token", "the token is not this session's", re=message.id, session=session.name)
            return
        self._adopt(peer_id, peer, session)
        self._send(peer_id, session.opened_message(message.id, resumed=True))
        first = session.buffer.first_seq()
        start = message.next_seq
        oldest = session.next_seq if first is None else first
        if start < oldest:
            self._send(peer_id, m.Gap(session=session.name, first=start, until=oldest, reason="resume"))
            start = oldest
        for said in session.buffer.since(start):
            told = said.message
            if isinstance(told, m.Frame):
                told = msgspec.structs.replace(told, replay=True)
            self._send(peer_id, told, said.payload)
        session.pacing.attached(now)

    def _adopt(self, peer_id: bytes, peer: Peer, session: Session) -> None:
        """Give a session to a connection; the one that had it before is told."""
        before = session.owner
        if before is not None and before != peer_id:
            text = "another connection has taken the session over"
            self._error(before, "not_owner", text, session=session.name)
            if before in self.peers:
                self.peers[before].sessions.discard(session.name)
        session.owner = peer_id
        peer.sessions.add(session.name)

    def _credit(self, peer_id: bytes, message: m.Credit, now: float) -> None:
        session = self.films.sessions.get(message.session)
        if session is None or session.owner != peer_id:
            return
        session.pacing.credit(message.upto, message.played, message.late, now)

    def _leave(self, peer_id: bytes, peer: Peer, now: float) -> None:
        for name in tuple(peer.sessions):
            if name in self.films.sessions:
                self.films.close(self.films.sessions[name], "the client left")
        self.lost(peer_id, now)

    def _session_ended(self, session: Session) -> None:
        if session.owner in self.peers:
            self.peers[session.owner].sessions.discard(session.name)

    def _bad(self, peer_id: bytes, bad: BadMessage, now: float) -> None:
        peer = self.peers.get(peer_id)
        if peer is None:  # nobody we know: one answer each, no memory
            if bad.code != "bad_envelope":
                self._error(peer_id, bad.code, str(bad), re=bad.re)
            return
        peer.bad.append(now)
        while peer.bad and peer.bad[0] < now - 10:
            peer.bad.popleft()
        if len(peer.bad) > self.limits.bad_messages:
            self._send(peer_id, m.ServerGoodbye(reason="abuse"))
            self.banned[peer_id] = now + self.limits.ban_s
            while len(self.banned) > _BANNED_MOST:
                del self.banned[next(iter(self.banned))]
            self.lost(peer_id, now)
            return
        self._error(peer_id, bad.code, str(bad), re=bad.re, session=bad.session)

    def _error(self, peer_id: bytes, code: str, text: str, **details: Any) -> None:
        self._send(peer_id, m.Error(code=code, message=text[:TEXT], retryable=code in RETRYABLE, **details))

    def _send(self, peer_id: bytes, message: m.ServerMessage, payload: Payload | None = None) -> None:
        if payload is not None:
            self.films.slots.hold(payload.slot)  # until the adapter has sent it
        self.outgoing.append(Outgoing(peer_id, message, payload))

    # --- the model --------------------------------------------------------------------------------------------------
    def model_ready(self, facts: orders.Facts, slots: SlotBook) -> None:
        """The model can be used. ``slots``: the same book again after a restart."""
        self._set_model(m.Model(
            name=facts.name, width=facts.width, height=facts.height, fps=facts.fps, chunk_frames=facts.chunk_frames,
            first_chunk_frames=facts.first_chunk_frames, max_shot_chunks=facts.max_shot_chunks,
            usual_shot_chunks=facts.usual_shot_chunks, state="ready", state_text=facts.description,
        ))  # fmt: skip
        self.films.model_ready(facts, slots)

    def model_state(self, state: m.ModelState, text: str) -> None:
        """Tell everybody what the model is doing."""
        self._set_model(msgspec.structs.replace(self.model, state=state, state_text=text))

    def model_died(self, text: str) -> None:
        """The model process is gone and is being started again."""
        self.films.model_died()
        self.model_state("restarting", text)

    def _set_model(self, model: m.Model) -> None:
        self.model = model
        for peer_id, peer in self.peers.items():
            if peer.welcomed:
                self._send(peer_id, m.ModelStatus(model=model))

    # --- time -------------------------------------------------------------------------------------------------------
    def tick(self, now: float) -> None:
        """Whatever time brings: leases, deadlines, statistics; then a chunk to make if the model is free."""
        for peer_id, peer in tuple(self.peers.items()):
            if now - peer.heard > self.limits.lease_s:
                self.lost(peer_id, now)
        self.films.tick(now)
        self.banned = {peer: until for peer, until in self.banned.items() if until > now}
        if now - self._stats_at >= 1:
            self._stats_at = now
            self._tell_statistics(now)
        self.films.schedule(now)

    def _tell_statistics(self, now: float) -> None:
        for session in self.films.sessions.values():
            if session.owner is None or session.owner not in self.peers:
                continue
            if (dry := starving(session, now)) is not None:
                self._send(session.owner, dry)
            if self.peers[session.owner].stats:
                self._send(session.owner, statistics(session, now))

    def shut_down(self) -> None:
        """Tell everybody; nothing is accepted any more."""
        self.closing = True
        for session in tuple(self.films.sessions.values()):
            self.films.close(session, "the server stops", "shutting_down")
        for peer_id in tuple(self.peers):
            self._send(peer_id, m.ServerGoodbye(reason="the server stops"))
        self.films.order(orders.Quit())
