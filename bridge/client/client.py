"""The client for game loops: call `poll` in every turn, draw `film.frame()`, tell what happens with `film.event(...)`.

No call waits for the network, whatever the server does. `Client.wait`, `Client.close` and `Film.frames` may take time
where they are told how much. Not for use from several threads.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from shotstream.bridge.client.core import ClientCore
from shotstream.bridge.client.film import EVENTS_KEPT, FilmCore, FilmEvent, StateChanged
from shotstream.bridge.client.link import Curve, Link
from shotstream.bridge.client.picture import Frame
from shotstream.bridge.client.receipts import Receipt
from shotstream.bridge.client.verbs import Callback, CastSheet, FilmStatistics, Verbs, cast_list
from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.limits import PROTO, Limits
from shotstream.runtime.errors import UserError

ENDPOINT = "tcp://127.0.0.1:5570"
_NAP_S = 0.01
"""`wait` looks so often at its condition and at the clock."""


@dataclass(frozen=True)
class ClientStatistics:
    """How the connection is."""

    state: str
    trouble: str
    """Why there is none, as a sentence; "" while there is one."""
    reconnects: int
    junk: int
    """Messages that were none."""
    unknown: int
    """Messages of a newer server, left out."""
    round_trip_ms: float | None
    clock_offset_us: float | None
    """Add it to `time.monotonic` in us to get the server's clock."""


class Client:
    """A connection to a server, and its films.

    ``curve``: the server's public key, our public and our secret key, for a server that uses CURVE. ``stats`` asks for
    `Stats` every second. Raises `UserError` for an endpoint, a key or a token that cannot be right.
    """

    def __init__(
        self, endpoint: str = ENDPOINT, token: str = "", name: str = "python",
        curve: Curve | None = None, *, role: m.Role = "player",
        stats: bool = False, clock: Callable[[], float] = time.monotonic, link: Link | None = None,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._core = ClientCore(clock(), m.Hello(proto=PROTO, client=name, token=token, role=role, stats=stats))
        self._link = link or Link(endpoint, curve)
        self._generation = 0
        self._films: list[Film] = []
        self._told_refusal = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --- the connection -----------------------------------------------------------------------------------------------
    @property
    def state(self) -> str:
        """``connecting``, ``welcomed``, ``reconnecting``, ``refused`` or ``closed``."""
        return self._core.state

    @property
    def welcome(self) -> m.Welcome | None:
        """What the server said of itself; None before."""
        return self._core.welcome

    @property
    def limits(self) -> Limits:
        return self._core.limits

    @property
    def models(self) -> list[m.Model]:
        """The server's models with their present state."""
        return list(self._core.models.values())

    @property
    def films(self) -> list[Film]:
        """Films that are neither closed nor lost, and those whose end was not told yet."""
        return list(self._films)

    @property
    def statistics(self) -> ClientStatistics:
        core = self._core
        return ClientStatistics(
            core.state, core.trouble, core.reconnects, core.junk, core.unknown, core.clock.round_trip_ms,
            core.clock.offset_us,
        )  # fmt: skip

    def poll(self, budget_ms: float = 2.0) -> int:
        """Take what has come, send what is to be sent, call callbacks. Never waits; stops receiving after ``budget_ms``
        (callbacks not counted) and goes on in the next call. Returns how many messages came.

        Raises `UserError` once, when it becomes clear that this server will never have us: another version, a wrong
        token or wrong keys. A server that is not there is no error: the client keeps trying.
        """
        count = self._turn(budget_ms)
        self._dispatch()
        if self._core.state == "refused" and not self._told_refusal:
            self._told_refusal = True
            raise UserError(self._core.refusal)
        return count

    def _turn(self, budget_ms: float) -> int:
        self._follow()
        # A server's last words come before the end of the connection, and are heard before that counts.
        signs = list(self._link.signs())
        broken = any(sign.what == "broken" for sign in signs)
        count, ends = 0, time.perf_counter() + budget_ms / 1000
        while self._core.wants_socket and (parts := self._link.receive()) is not None:
            count += 1
            self._core.receive(self._clock(), parts)
            if time.perf_counter() >= ends and not broken:
                break
        for sign in signs:
            if sign.what == "refused":
                self._core.refuse(self._clock(), sign.text)
            elif sign.what == "hindered":
                self._core.hindered(sign.text)
            elif sign.what == "broken":
                self._core.disconnected(self._clock())
        self._core.tick(self._clock())
        self._follow()
        self._flush()
        return count

    def _follow(self) -> None:
        """Give the core the socket that it wants: none, or one that has seen nothing of the last connection."""
        if not self._core.wants_socket:
            self._link.drop()
        elif self._generation != self._core.generation or not self._link.is_open:
            self._generation = self._core.generation
            self._link.connect()

    def _flush(self) -> None:
        while (header := self._core.peek(self._clock())) is not None:
            if not self._link.send(header):
                self._core.blocked(self._clock())
                return
            self._core.shift(self._clock())

    def _dispatch(self) -> None:
        for film in self._films:
            film._dispatch()
        self._films = [film for film in self._films if film.state not in ("closed", "lost")]

    def wait(self, condition: Callable[[], Any], timeout_s: float) -> bool:
        """For scripts: poll until ``condition()`` is true or ``timeout_s`` seconds are over; which of the two. Raises
        `UserError` as `poll` does."""
        ends = time.perf_counter() + timeout_s
        while True:
            self.poll()
            if condition():
                return True
            left = ends - time.perf_counter()
            if left <= 0:
                return False
            self._link.wait(min(left, _NAP_S))

    def close(self, linger_ms: int = 200) -> None:
        """Say goodbye, which closes the films at the server, and let go of everything. Takes at most ``linger_ms``."""
        if self._core.state == "closed":
            return
        connected = self._core.state == "welcomed"
        goodbye = self._core.close(self._clock())
        self._link.close(linger_ms if connected and self._link.send(goodbye) else 0)
        self._dispatch()

    # --- films --------------------------------------------------------------------------------------------------------
    def open(
        self, global_caption: str = "", *, model: str = "", width: int = 0, height: int = 0, fps: int = 0,
        seed: int | None = None, style: str = "", cast: CastSheet = (), enc: m.Encoding = "rgb24", quality: int = 85,
        window: int = 24, policy: m.Policy = "pace", resume_ttl_s: float = 60.0, director: str = "",
        reopen: bool = False,
    ) -> Film:  # fmt: skip
        """A new film, opened as soon as there is a connection; see `Film.state`. 0 and "" mean the server's own.

        ``window``: frames that may be sent ahead of what is shown: the latency of steering against the risk of a
        freeze. ``reopen``: where the server has lost the film (it was started again), begin a new one with the same
        arguments instead of giving up. Raises `UserError` for arguments that this server does not take.
        """
        arguments = m.OpenSession(
            id=1, model=model, width=width, height=height, fps=fps, seed=seed, style=style,
            global_caption=global_caption, cast=cast_list(cast), enc=enc, quality=quality, window=window,
            policy=policy, resume_ttl_s=resume_ttl_s, director=director, nonce=secrets.token_hex(16),
        )  # fmt: skip
        return self._adopt(self._core.open(self._clock(), arguments, reopen))

    def _adopt(self, core: FilmCore) -> Film:
        film = Film(self, core)
        self._films.append(film)
        self._flush()
        return film


class Film(Verbs[Receipt]):
    """One film. Made by `Client.open` and `Film.fork`.

    Callbacks (``on_shot_begin`` and so on) are called from `Client.poll`; what has none can be fetched with `events`.
    """

    def __init__(self, client: Client, core: FilmCore) -> None:
        self._client, self._core = client, core
        self._events: deque[FilmEvent] = deque(maxlen=EVENTS_KEPT)
        self.on_shot_begin: Callable[[m.ShotBegin], None] | None = None
        """When its message comes, which is before its frames are shown; see `showing`."""
        self.on_shot_end: Callable[[m.ShotEnd], None] | None = None
        self.on_choice_ready: Callable[[m.ChoiceReady], None] | None = None
        self.on_stats: Callable[[m.Stats], None] | None = None
        self.on_starved: Callable[[m.Starved], None] | None = None
        self.on_model_status: Callable[[m.ModelStatus], None] | None = None
        self.on_error: Callable[[m.Error], None] | None = None
        self.on_state: Callable[[StateChanged], None] | None = None

    def _ask(self, message: m.SessionRequest, on_change: Callback) -> Receipt:
        receipt = self._client._core.ask(self._client._clock(), self._core, message, on_change)
        self._client._flush()
        if self not in self._client._films:  # it has ended, but this receipt's callback is still to be called
            self._client._films.append(self)
        return receipt

    def fork(self, snap: str = "", *, name: str = "") -> Film:
        """A second film that goes on from a snapshot of this one, or from its last shot boundary. Raises `UserError`
        as `Client.open` does; a refusal by the server makes the new film ``lost``."""
        core, _ = self._client._core.fork(self._client._clock(), self._core, snap, name)
        return self._client._adopt(core)

    def frame(self, now: float | None = None) -> Frame | None:
        """The picture to show now (``now``: seconds of the client's clock), the same object while it is to be held;
        None before the first. Looking is what grants the server room for more."""
        return self._core.frame(self._client._clock() if now is None else now)

    def frames(self, timeout_s: float = 0.0) -> Iterator[Frame]:
        """Every frame in order and without pacing, for tools: all that have come, then each new one for which no more
        than ``timeout_s`` seconds must be waited; 0 never waits. Ends with the film."""
        while True:
            frame = self._core.take(self._client._clock())
            if frame is None:
                if timeout_s <= 0 or self.state in ("closed", "lost"):
                    return
                if not self._client.wait(lambda: self.queued or self.state in ("closed", "lost"), timeout_s):
                    return
                continue
            self._client._flush()
            yield frame

    def events(self) -> Iterator[FilmEvent]:
        """What has happened since the last call, oldest first; at most 1024 events are kept."""
        while self._events:
            yield self._events.popleft()

    @property
    def receipts(self) -> list[Receipt]:
        """The receipts of the last 256 requests, oldest first."""
        return list(self._core.receipts)

    @property
    def statistics(self) -> FilmStatistics:
        return self._statistics(self._client._core.clock.offset_us)

    def _dispatch(self) -> None:
        while self._core.changed:
            receipt = self._core.changed.popleft()
            if receipt.on_change is not None:
                receipt.on_change(receipt)
        while self._core.happened:
            event = self._core.happened.popleft()
            self._events.append(event)
            callback = self._callback(event)
            if callback is not None:
                callback(event)

    def _callback(self, event: FilmEvent) -> Callable[[Any], None] | None:
        match event:
            case m.ShotBegin():
                return self.on_shot_begin
            case m.ShotEnd():
                return self.on_shot_end
            case m.ChoiceReady():
                return self.on_choice_ready
            case m.Stats():
                return self.on_stats
            case m.Starved():
                return self.on_starved
            case m.ModelStatus():
                return self.on_model_status
            case m.Error():
                return self.on_error
            case StateChanged():
                return self.on_state
        return None
