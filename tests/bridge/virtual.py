"""A server without sockets and without time: the hub, a model that needs virtual seconds, clients that are lists."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shotstream.bridge.frame_store import SlotBook
from shotstream.bridge.model import orders
from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.envelope import pack
from shotstream.bridge.protocol.limits import MAGIC, PROTO, Limits
from shotstream.bridge.server.hub import Hub
from shotstream.bridge.server.words import Words
from shotstream.runtime.errors import UserError

FACTS = orders.Facts("pretend", 64, 32, 16, 12, 9, 100, 3)


@dataclass
class Shot:
    """What a film of the pretended model is at."""

    shots: int = 0
    caption: str = ""
    chunks: int = 0
    made: int = 0


@dataclass
class VirtualModel:
    """Does orders as the worker does; a chunk takes ``chunk_s`` virtual seconds and is stopped only by `Stop`."""

    chunk_s: float = 0.5
    films: dict[int, Shot] = field(default_factory=dict)
    busy: tuple[float, orders.Make] | None = None
    queue: list[orders.Order] = field(default_factory=list)
    said: list[orders.Result] = field(default_factory=list)
    stopped: set[int] = field(default_factory=set)
    opened: list[orders.OpenFilm] = field(default_factory=list)

    def put(self, order: orders.Order, now: float) -> None:
        """An order arrives."""
        if isinstance(order, orders.Stop):
            self.stopped.add(order.ticket)
        else:
            self.queue.append(order)
        self.work(now)

    def work(self, now: float) -> None:
        """Go on as far as time allows."""
        while True:
            if self.busy is not None:
                ready, make = self.busy
                if make.ticket in self.stopped:
                    self.busy = None
                    self._undo(make)
                    self.said.append(orders.NotMade(make.film, make.ticket, "stopped"))
                elif now >= ready:
                    self.busy = None
                    self._made(make)
                else:
                    return
            if not self.queue:
                return
            order = self.queue.pop(0)
            match order:
                case orders.OpenFilm():
                    self.opened.append(order)
                    self.films[order.film] = Shot(int(order.saved or b"0"))
                    self.said.append(orders.FilmOpen(order.film))
                case orders.BranchFilm():
                    self.films[order.film] = Shot(self.films[order.of].shots)
                case orders.CloseFilm():
                    self.films.pop(order.film, None)
                case orders.Make():
                    self._begin(order, now)

    def _begin(self, make: orders.Make, now: float) -> None:
        film = self.films.get(make.film)
        if film is None:
            self.said.append(orders.NotMade(make.film, make.ticket, "idle"))
            return
        self._before = Shot(film.shots, film.caption, film.chunks, film.made)
        if make.shot is not None:
            if "unreadable" in make.shot.caption:
                self.said.append(orders.NotMade(make.film, make.ticket, "text_too_long", "too many tokens"))
                return
            self.said.append(orders.Kept(make.film, film.shots, str(film.shots).encode()))
            film.caption, film.chunks, film.made = make.shot.caption, make.shot.chunks or FACTS.usual_shot_chunks, 0
            film.shots += 1
        elif make.steer:
            film.caption = make.steer
        if film.made >= film.chunks:
            self.said.append(orders.NotMade(make.film, make.ticket, "idle"))
            return
        self.busy = (now + self.chunk_s, make)

    def _undo(self, make: orders.Make) -> None:
        if make.film in self.films and make.shot is None:
            self.films[make.film] = self._before

    def _made(self, make: orders.Make) -> None:
        film = self.films.get(make.film) or Shot(1, "closed", 1, 0)
        count = FACTS.first_chunk_frames if film.made == 0 else FACTS.chunk_frames
        film.made += 1
        last = film.made >= film.chunks
        self.said.append(orders.Made(
            make.film, make.ticket, make.slot, film.shots - 1, film.made - 1, film.caption, [100] * count, last,
            1000 * self.chunk_s,
        ))  # fmt: skip
        if last:
            self.said.append(orders.Kept(make.film, film.shots, str(film.shots).encode()))


class VirtualServer:
    """Hub and model with one clock. `run` lets time pass; what clients were told lies in ``told``."""

    def __init__(
        self, chunk_s: float = 0.5, limits: Limits | None = None, words: dict[str, Words] | None = None,
        default_words: str = "",
    ) -> None:  # fmt: skip
        names = itertools.count(1)
        self.now = 100.0
        self.limits = limits or Limits(requests_per_s=10_000)
        self.hub = Hub(
            self.limits, words or {}, default_words, lambda: f"name-{next(names)}", lambda: 7, model="pretend"
        )
        self.model = VirtualModel(chunk_s)
        self.told: dict[bytes, list[Any]] = {}
        self.on_tell: Callable[[bytes, Any], None] = lambda peer, message: None
        self.hub.model_ready(FACTS, SlotBook(self.hub.films.slots_for(FACTS), self.hub.films.share(FACTS)))

    def say(self, peer: bytes, message: m.ClientMessage) -> None:
        """A client speaks."""
        self.hub.receive(peer, [MAGIC, pack(message)], self.now)
        self.settle()

    def settle(self) -> None:
        """Let everything happen that needs no time."""
        for _ in range(100):
            self.hub.films.schedule(self.now)
            while self.hub.model_orders:
                self.model.put(self.hub.model_orders.popleft(), self.now)
            self.model.work(self.now)
            said, self.model.said = self.model.said, []
            for result in said:
                self.hub.films.model_says(result, self.now)
            self._deliver()
            if not said and not self.hub.model_orders:
                return
        raise AssertionError("the server does not come to rest")

    def _deliver(self) -> None:
        while self.hub.outgoing:
            out = self.hub.outgoing.popleft()
            if out.payload is not None:
                self.hub.films.slots.drop(out.payload.slot)
            self.told.setdefault(out.peer, []).append(out.message)
            self.on_tell(out.peer, out.message)

    def run(self, seconds: float, step: float = 1 / 64) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self.now < end:
            self.now += step
            self.hub.tick(self.now)
            self.settle()

    def crash(self) -> None:
        """The model process dies and comes back at once, with nothing in memory."""
        self.hub.model_died("crash")
        self.model = VirtualModel(self.model.chunk_s)
        self.hub.model_ready(FACTS, self.hub.films.slots)
        self.settle()


class VirtualClient:
    """A client that shows frames at their rate and grants credit for them, or does not."""

    def __init__(self, server: VirtualServer, peer: bytes = b"a", **opened: Any) -> None:
        self.server, self.peer = server, peer
        self._ids = itertools.count(1)
        self.say(m.Hello(proto=PROTO))
        self.say(m.OpenSession(id=next(self._ids), seed=3, **opened))
        self.opened = self.last(m.SessionOpened)
        self.session = self.opened.session

    def say(self, message: m.ClientMessage) -> None:
        """Send anything."""
        self.server.say(self.peer, message)

    def ask(self, kind: type, /, **fields: Any) -> int:
        """Send a request about the session; returns its id."""
        request = next(self._ids)
        self.say(kind(id=request, session=self.session, **fields))
        return request

    def grant(self, played: int, window: int = 24) -> None:
        """Credit for what was shown."""
        self.say(m.Credit(session=self.session, upto=played + window, played=played))

    def watch(self, seconds: float, window: int = 24) -> None:
        """Show whatever has come at 16 frames a second, for so long."""
        end = self.server.now + seconds
        self.say(m.Ping(t0=0))
        while self.server.now < end:
            self.server.run(1 / 16)
            self.shown = min(getattr(self, "shown", 0) + 1, len(self.frames))
            if self.shown % 6 == 0:
                self.grant(self.shown, window)
        self.say(m.Ping(t0=0))

    @property
    def told(self) -> list[Any]:
        """All that this client was told."""
        return self.server.told.get(self.peer, [])

    def all(self, kind: type) -> list[Any]:
        """All messages of a kind."""
        return [message for message in self.told if isinstance(message, kind)]

    def last(self, kind: type) -> Any:
        """The newest message of a kind."""
        found = self.all(kind)
        assert found, f"no {kind.__name__} among {self.told}"
        return found[-1]

    @property
    def frames(self) -> list[Any]:
        """All frames."""
        return self.all(m.Frame)

    def answers(self, request: int) -> list[Any]:
        """Everything that was said about a request."""
        return [message for message in self.told if getattr(message, "re", 0) == request]


class Scribe:
    """Words that say what they were asked, so that tests can read them in captions. State: how often."""

    name = "scribe"

    def begin(self, opened: m.OpenSession) -> tuple[Any, str]:
        return 0, "a film"

    def _word(self, state: int, text: str, at: Any) -> tuple[Any, int]:
        from shotstream.bridge.server.words import Worded

        return Worded(f"{state}:{text}", at), state + 1

    def event(self, state: int, event: m.Event) -> tuple[Any, int]:
        if event.kind == "Unheard":
            raise UserError("no rule for Unheard; there is Door")
        return self._word(state, event.kind, "next_chunk" if event.at == "auto" else event.at)

    def option(self, state: int, option: m.Option) -> tuple[Any, int]:
        return self._word(state, option.caption or option.kind, "now")

    def prompt(self, state: int, prompt: m.Prompt) -> tuple[Any, int]:
        return self._word(state, prompt.text, "next_chunk" if prompt.at == "auto" else prompt.at)

    def cut(self, state: int, cut: m.Cut) -> tuple[Any, int]:
        return self._word(state, cut.caption or cut.size, "now" if cut.flush else "next_chunk")

    def scene(self, state: int, scene: m.Scene) -> tuple[str | None, int]:
        return scene.global_caption or "elsewhere", state
