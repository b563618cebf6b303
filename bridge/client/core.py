"""The client's side of the protocol, without sockets and without a clock: every call is told the time.

Whoever owns a socket (`link.py`) hands over what came with `receive`, calls `tick`, and sends what `peek` gives. The
core says with `wants_socket` and `generation` when a new socket is needed: after a loss nothing of the old one is used
again, for messages waiting in it would reach a server that may not know them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from msgspec.structs import replace

from shotstream.bridge.client.checks import check, check_open
from shotstream.bridge.client.clock import ServerClock
from shotstream.bridge.client.film import FilmCore
from shotstream.bridge.client.receipts import Receipt
from shotstream.bridge.client.requests import Pace
from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.envelope import BadMessage, pack, unpack_server
from shotstream.bridge.protocol.limits import MAGIC, PROTO, Limits
from shotstream.runtime.errors import UserError

ConnectionState: TypeAlias = Literal["connecting", "welcomed", "reconnecting", "refused", "closed"]
"""``refused`` is final: wrong version, token or key. ``reconnecting``: waiting to try again."""

HELLO_S = 5.0
PING_S = 2.0
MEASURE_S = 10.0
"""The clock is measured so often even where other messages keep the connection alive."""
SILENCE_S = 6.0
"""A server that has left a ping (or a full socket) waiting for so long counts as lost."""
BACKOFF_S, BACKOFF_MOST_S = 0.1, 5.0
STEADY_S = 5.0
"""A connection that lasted so long was a good one: the next attempt need not wait."""

_REFUSING = ("version", "unauthorized", "forbidden")
_DRAFT = 1
"""Stands for a request's number until the film fills it in."""


class ClientCore:
    """State of one connection and its films. ``hello`` is sent first on every connection."""

    def __init__(self, now: float, hello: m.Hello) -> None:
        self.state: ConnectionState = "connecting"
        self.generation = 1
        """Grows with every new connection."""
        self.welcome: m.Welcome | None = None
        self.limits = Limits()
        """Those of `welcome`, once it has come."""
        self.models: dict[str, m.Model] = {}
        self.films: list[FilmCore] = []
        self.clock = ServerClock()
        self.refusal = ""
        """Why the server will not have us, as a sentence for the user."""
        self.trouble = ""
        """The last reason why a connection was lost; "" while there is one."""
        self.junk = self.unknown = self.reconnects = 0
        self._hello = check(hello, self.limits)
        self._pace = Pace(self.limits.requests_per_s)
        self._outbox: deque[bytes] = deque([self._hello])
        self._last_id = 0
        self._turn = 0
        self._losses = 0
        self._again_at = now
        self._hello_sent: float | None = None
        self._welcomed_at = self._sent_at = self._measured_at = now
        self._waiting_since: float | None = None
        self._blocked_since: float | None = None

    # --- the connection -----------------------------------------------------------------------------------------------
    @property
    def wants_socket(self) -> bool:
        return self.state in ("connecting", "welcomed")

    def tick(self, now: float) -> None:
        """Whatever time alone brings about. Call it after everything that has come was handed over."""
        for film in self.films:
            film.tick(now)
        self.films = [film for film in self.films if film.state not in ("closed", "lost")]
        if self.state == "reconnecting" and now >= self._again_at:
            self.state = "connecting"
            self.generation += 1
            self.reconnects += 1
            self._outbox.append(self._hello)
        elif self.state == "connecting":
            if self._hello_sent is not None and now - self._hello_sent > HELLO_S:
                self.lost(now, f"the server has not answered for {HELLO_S:.0f} s")
        elif self.state == "welcomed":
            waiting = [since for since in (self._waiting_since, self._blocked_since) if since is not None]
            if waiting and now - min(waiting) > SILENCE_S:
                self.lost(now, f"the server has been silent for {SILENCE_S:.0f} s")

    def lost(self, now: float, why: str, wait_s: float = 0.0) -> None:
        """The connection is gone; another is tried after 0.1 s, doubled with every failure up to 5 s, or ``wait_s``."""
        if not self.wants_socket:
            return
        if self.state == "welcomed" and now - self._welcomed_at > STEADY_S:
            self._losses = 0
        self._again_at = now + max(wait_s, min(BACKOFF_S * 2.0**self._losses, BACKOFF_MOST_S))
        self._losses = min(self._losses + 1, 10)
        self.state, self.trouble = "reconnecting", why
        self._forget_connection()
        for film in self.films:
            film.detach(now)

    def disconnected(self, now: float) -> None:
        """The transport says so. Before our hello has left it is left to the transport to try again."""
        if self.state == "welcomed" or self._hello_sent is not None:
            self.lost(now, "the connection to the server broke")

    def hindered(self, why: str) -> None:
        """There is no connection yet, and this may be why; it is tried further."""
        if self.state == "connecting":
            self.trouble = why

    def refuse(self, now: float, why: str) -> None:
        """There is no use in trying again."""
        if self.wants_socket or self.state == "reconnecting":
            self.state, self.refusal, self.trouble = "refused", why, why
            self._forget_connection()
            for film in self.films:
                film.reopen = False
                film.fail(now, "unauthorized", why)

    def close(self, now: float) -> bytes:
        """End it; the returned goodbye is to be sent if that is possible at once."""
        self.state = "closed"
        self._forget_connection()
        for film in self.films:
            film.end("the client was closed")
        return pack(m.Goodbye())

    def _forget_connection(self) -> None:
        self._outbox.clear()
        self.clock.forget()
        self._hello_sent = self._waiting_since = self._blocked_since = None

    # --- films --------------------------------------------------------------------------------------------------------
    def next_id(self) -> int:
        """One counter for everything: numbers then grow in every film and tell on their own what is answered."""
        self._last_id += 1
        return self._last_id

    def open(self, now: float, arguments: m.OpenSession, reopen: bool = False) -> FilmCore:
        """Begin a film. ``arguments.id`` is filled in; ``nonce`` should be unique. Raises `UserError` for arguments
        that no server or not this one takes, and where there is no connection to be had any more."""
        self.ensure_alive()
        check(arguments, self.limits)
        if self.welcome is not None:
            check_open(arguments, self.welcome)
        if len(self.films) >= self.limits.sessions_per_connection:
            raise UserError(f"a connection has at most {self.limits.sessions_per_connection} films at a time")
        film = FilmCore(replace(arguments, id=self.next_id()), self.next_id, reopen)
        self.films.append(film)
        return film

    def ask(
        self,
        now: float,
        film: FilmCore,
        message: m.SessionRequest,
        on_change: Callable[[Receipt], None] | None = None,
    ) -> Receipt:
        """A request about ``film``. Raises `UserError` where it breaks the protocol or the server's limits; anything
        else that may happen to it is told by the receipt."""
        check(message, self.limits)
        return film.ask(now, message, on_change)

    def fork(self, now: float, film: FilmCore, snap: str, name: str) -> tuple[FilmCore, Receipt]:
        """A second film that goes on from a snapshot of ``film``. Raises `UserError` as `open` does."""
        self.ensure_alive()
        receipt = self.ask(now, film, m.Fork(id=_DRAFT, session="", snap=snap, name=name))
        branch = FilmCore(None, self.next_id)
        branch.await_fork(receipt)
        self.films.append(branch)
        return branch, receipt

    def ensure_alive(self) -> None:
        """Raises `UserError` where the client was refused or closed."""
        if self.state == "refused":
            raise UserError(self.refusal)
        if self.state == "closed":
            raise UserError("the client is closed")

    # --- what is to be sent -------------------------------------------------------------------------------------------
    def peek(self, now: float) -> bytes | None:
        """The next header to send, the same one until `shift`; None where there is nothing to say now."""
        if not self._outbox and self.state == "welcomed":
            message = self._next(now)
            if message is not None:
                self._outbox.append(pack(message))
        return self._outbox[0] if self._outbox else None

    def shift(self, now: float) -> None:
        """What `peek` gave has been sent."""
        self._outbox.popleft()
        self._sent_at, self._blocked_since = now, None
        if self.state == "connecting":
            self._hello_sent = now

    def blocked(self, now: float) -> None:
        """What `peek` gave cannot be sent for now; it is kept."""
        if self._blocked_since is None:
            self._blocked_since = now

    def _next(self, now: float) -> m.ClientMessage | None:
        self._turn += 1
        films = [self.films[(self._turn + i) % len(self.films)] for i in range(len(self.films))]
        for film in films:
            credit = film.credit()
            if credit is not None:
                return credit
        for film in films:
            entry = film.entry(now)
            if entry is not None:
                self._pace.spend()
                return entry
        if self._pace.ready(now):
            for film in films:
                request = film.request(now)
                if request is not None:
                    self._pace.spend()
                    return request
        if now - self._sent_at >= PING_S or now - self._measured_at >= MEASURE_S:
            self._measured_at = now
            if self._waiting_since is None:
                self._waiting_since = now
            return m.Ping(t0=max(0, int(now * 1e6)))
        return None

    # --- what the server says -----------------------------------------------------------------------------------------
    def receive(self, now: float, parts: Sequence[bytes | memoryview]) -> None:
        """One message as it came. Never raises for anything that a peer can send: what is no message is counted."""
        if not self.wants_socket:
            return
        try:
            message = unpack_server(parts)
        except BadMessage as error:
            self._bad(now, parts, error)
            return
        self._waiting_since = None
        match message:
            case m.Welcome():
                self._welcome(now, message)
            case m.Error() if self.state == "connecting" or message.fatal or message.code == "hello_required":
                self._connection_error(now, message)
            case m.ServerGoodbye():
                self.lost(now, f"the server said goodbye: {message.reason or 'no reason given'}")
            case m.Pong():
                self.clock.add(message.t0, message.t1, message.t2, int(now * 1e6))
            case m.ModelStatus():
                self.models[message.model.name] = message.model
                for film in self.films:
                    film.handle(now, message, None)
            case _ if self.state == "welcomed":
                self._film_message(now, message, parts[2] if len(parts) > 2 else None)

    def _bad(self, now: float, parts: Sequence[bytes | memoryview], error: BadMessage) -> None:
        magic = bytes(parts[0][:16]) if parts else b""
        if self.state == "connecting" and magic != MAGIC and magic.startswith(b"SST/") and len(magic) <= 8:
            other = magic.decode(errors="replace")
            self.refuse(now, f"the server speaks {other}, this client {MAGIC.decode()}: update the older of the two")
        elif error.code == "unknown_type":
            self.unknown += 1
        else:
            self.junk += 1

    def _welcome(self, now: float, message: m.Welcome) -> None:
        if self.state != "connecting":
            return
        if message.proto[0] != PROTO[0]:
            self.refuse(
                now,
                f"the server speaks protocol {message.proto[0]}.{message.proto[1]}, this client {PROTO[0]}.{PROTO[1]}: "
                "update the older of the two",
            )
            return
        self.state, self.trouble = "welcomed", ""
        self.welcome, self.limits, self._welcomed_at = message, message.limits, now
        self.models = {model.name: model for model in message.models}
        self._pace = Pace(message.limits.requests_per_s)
        self._measured_at = now - MEASURE_S  # the first ping leaves at once
        for film in self.films:
            film.detach(now)  # what was asked for on an older connection is due at once

    def _connection_error(self, now: float, message: m.Error) -> None:
        text = message.message or message.code
        if self.state == "connecting" and (message.code in _REFUSING or not message.retryable) and (
            message.code != "hello_required"
        ):  # fmt: skip
            self.refuse(now, f"the server refuses the connection: {text} ({message.code})")
        elif message.fatal and message.code in _REFUSING:
            self.refuse(now, f"the server ended the connection: {text} ({message.code})")
        else:
            self.lost(now, f"{text} ({message.code})", message.retry_after_ms / 1000)

    def _film_message(self, now: float, message: m.FromServer, payload: memoryview | bytes | None) -> None:
        if isinstance(message, m.SessionOpened):
            film = next((film for film in self.films if film.opens(message)), None)
            if film is not None:
                film.open(now, message)
            return
        session, re = getattr(message, "session", ""), getattr(message, "re", 0)
        for film in self.films:
            if (session and film.session == session) or film.owns(re):
                film.handle(now, message, payload)
                return
