"""A server that follows the protocol by the book and does what a test tells it: pure, or behind a real socket."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import zmq
from msgspec.structs import replace

from shotstream.bridge.client import ClientCore
from shotstream.bridge.client.film import FilmCore
from shotstream.bridge.client.receipts import Receipt
from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.envelope import BadMessage, pack, unpack_client
from shotstream.bridge.protocol.limits import MAGIC, PROTO, Limits

WIDTH, HEIGHT = 4, 2


@dataclass
class ScriptedSession:
    opened: m.OpenSession
    name: str
    token: str = "t"
    next_seq: int = 0
    upto: int = 24
    epoch: int = 0
    shot: int = -1
    chunk: int = 0
    prompt: int = 0
    attached: bool = True
    said: list[tuple[int, list[bytes]]] = field(default_factory=list)
    answers: dict[int, list[list[bytes]]] = field(default_factory=dict)
    done: Counter[int] = field(default_factory=Counter)
    credits: list[m.Credit] = field(default_factory=list)


class ScriptedServer:
    """One client at a time. What it says lies in ``out`` as lists of parts, identity left out."""

    def __init__(self) -> None:
        self.out: deque[list[bytes]] = deque()
        self.sessions: dict[str, ScriptedSession] = {}
        self.heard: list[m.FromClient] = []
        self.welcomed = False
        self.mute = False
        """Hears, but does and says nothing."""
        self.limits = Limits()
        self.proto = PROTO
        self.clock_us = 0
        self.refusal: m.Error | None = None
        self.pictures: Callable[[int], bytes] = lambda seq: bytes([seq % 256]) * (WIDTH * HEIGHT * 3)
        self._names = 0

    # --- what a test does ---------------------------------------------------------------------------------------------
    @property
    def session(self) -> ScriptedSession:
        return next(reversed(self.sessions.values()))

    def disconnect(self) -> None:
        self.welcomed = False
        self.out.clear()
        for session in self.sessions.values():
            session.attached = False

    def restart(self) -> None:
        """As a new process: nothing is known any more."""
        self.disconnect()
        self.sessions.clear()

    def say(self, session: ScriptedSession, message: m.ServerMessage, *payload: bytes) -> None:
        parts = [MAGIC, pack(message), *payload]
        session.said.append((session.next_seq, parts))
        if session.attached and not self.mute:
            self.out.append(parts)

    def begin_shot(self, session: ScriptedSession, cause: int = 0, flush: bool = False) -> None:
        session.shot, session.chunk = session.shot + 1, 0
        if flush:
            session.epoch += 1
            session.upto = max(session.upto, session.next_seq + session.opened.window)
        self.say(session, m.ShotBegin(
            session=session.name, shot=session.shot, epoch=session.epoch, seq=session.next_seq, global_caption="",
            caption=f"shot {session.shot}", cause=cause, flush=flush,
        ))  # fmt: skip
        if cause:
            session.prompt = cause
            self.say(session, m.Applied(
                re=cause, session=session.name, seq=session.next_seq, shot=session.shot, chunk=0, epoch=session.epoch,
                caption=f"shot {session.shot}", latency_ms=1.0,
            ))  # fmt: skip

    def make(self, session: ScriptedSession) -> int:
        """A chunk, if there is credit for all of it; how many frames."""
        if session.shot < 0:
            self.begin_shot(session)
        frames = 12 if session.chunk else 9
        if not session.attached or session.upto - session.next_seq < frames or self.mute:
            return 0
        for index in range(frames):
            seq, enc = session.next_seq, session.opened.enc
            frame = m.Frame(
                session=session.name, shot=session.shot, chunk=session.chunk, index=index, seq=seq, epoch=session.epoch,
                pts=seq * 5625, prompt=session.prompt, enc=enc, w=WIDTH, h=HEIGHT, end=index == frames - 1,
            )  # fmt: skip
            self.say(session, frame, self.pictures(seq))
            session.next_seq += 1
        session.chunk += 1
        return frames

    # --- what a client says -------------------------------------------------------------------------------------------
    def hear(self, parts: list[bytes]) -> None:
        try:
            message = unpack_client(parts, 65536, 2**20)
        except BadMessage:
            return
        self.heard.append(message)
        if not self.mute:
            self._do(message)

    def _reply(self, message: m.ServerMessage) -> None:
        self.out.append([MAGIC, pack(message)])

    def _do(self, message: Any) -> None:
        match message:
            case m.Hello() if self.refusal is not None:
                self._reply(self.refusal)
            case m.Hello():
                self.welcomed = True
                self._reply(m.Welcome(
                    proto=self.proto, server="scripted", enc=["rgb24", "rgba32", "jpeg", "none"],
                    models=[m.Model(name="mock", state="ready")], limits=self.limits, features=[], directors=[],
                    clock_us=self.clock_us,
                ))  # fmt: skip
            case _ if not self.welcomed:
                self._reply(m.Error(code="hello_required", message="say hello first"))
            case m.Ping():
                self._reply(m.Pong(t0=message.t0, t1=self.clock_us, t2=self.clock_us))
            case m.Goodbye():
                self.restart()
            case m.Credit():
                session = self.sessions.get(message.session)
                if session is not None:
                    session.credits.append(message)
                    session.upto = max(session.upto, message.upto)
            case m.OpenSession():
                self._open(message)
            case m.Resume():
                self._resume(message)
            case _:
                self._request(message)

    def _open(self, message: m.OpenSession) -> None:
        known = next((s for s in self.sessions.values() if s.opened.nonce == message.nonce), None)
        if known is None:
            self._names += 1
            known = ScriptedSession(message, f"s{self._names}", upto=message.window)
            self.sessions[known.name] = known
        known.attached = True
        self._opened(known, message.id)

    def _opened(self, session: ScriptedSession, re: int, resumed: bool = False) -> None:
        self._reply(m.SessionOpened(
            re=re, session=session.name, token=session.token, model="mock", width=WIDTH, height=HEIGHT, fps=(16, 1),
            tb=90000, chunk_frames=12, first_chunk_frames=9, window=session.opened.window, seed=1,
            enc=session.opened.enc, resumed=resumed, next_seq=session.next_seq,
        ))  # fmt: skip

    def _resume(self, message: m.Resume) -> None:
        session = self.sessions.get(message.session)
        if session is None or session.token != message.token:
            code = "no_session" if session is None else "bad_token"
            self._reply(m.Error(code=code, message="gone", re=message.id, session=message.session))
            return
        session.attached = True
        self._opened(session, message.id, resumed=True)
        self.out.extend(parts for seq, parts in session.said if seq >= message.next_seq)

    def _request(self, message: Any) -> None:
        session = self.sessions.get(message.session)
        if session is None:
            self._reply(m.Error(code="no_session", message="gone", re=message.id))
            return
        if message.id in session.answers:
            self.out.extend(session.answers[message.id] or [])
            return
        session.done[message.id] += 1
        answer: m.ServerMessage = m.Ack(re=message.id, session=session.name)
        if isinstance(message, m.Prompt) and message.text == "refuse me":
            answer = m.Rejected(re=message.id, session=session.name, code="rejected_content", message="no words for it")
        session.answers[message.id] = [[MAGIC, pack(answer)]]
        self.say(session, answer)
        match message:
            case m.Prompt() if not isinstance(answer, m.Rejected):
                self.begin_shot(session, message.id, flush=message.at == "now")
            case m.CloseSession():
                self.say(session, m.SessionClosed(session=session.name, reason="closed by the client"))
                del self.sessions[session.name]
            case m.Snapshot():
                name = message.name or "shot-0"
                self.say(session, m.SnapshotMade(re=message.id, session=session.name, snap=name, bytes=1, shot=0))
            case m.Fork():
                self._names += 1
                twin = ScriptedSession(replace(session.opened, nonce=""), f"s{self._names}", upto=session.opened.window)
                self.sessions[twin.name] = twin
                self._opened(twin, message.id)
                self.say(session, m.Forked(re=message.id, session=session.name, fork=twin.name))


class SocketServer:
    """A `ScriptedServer` behind a ROUTER on TCP, in a thread. It makes chunks as long as there is credit."""

    def __init__(self, port: int = 0, curve: tuple[bytes, bytes] | None = None) -> None:
        self.script = ScriptedServer()
        self.making = True
        self.reading = True
        self.port = port
        self._curve = curve
        self._peer = b""
        self._raw: deque[list[bytes]] = deque()
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def start(self) -> SocketServer:
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def send_raw(self, *parts: bytes) -> None:
        self._raw.append(list(parts))

    def _run(self) -> None:
        context = zmq.Context()
        socket = context.socket(zmq.ROUTER)
        socket.linger = 0
        if self._curve is not None:
            socket.curve_server, (socket.curve_publickey, socket.curve_secretkey) = True, self._curve
        if self.port:
            socket.bind(self.endpoint)
        else:
            self.port = socket.bind_to_random_port("tcp://127.0.0.1")
        self._ready.set()
        while not self._stop.is_set():
            if self.reading and socket.poll(2):
                peer, *parts = socket.recv_multipart()
                if peer != self._peer:
                    self._peer = peer
                    self.script.disconnect()
                self.script.hear(parts)
            elif not self.reading:
                self._stop.wait(0.002)
            self._speak(socket)
        socket.close()
        context.term()

    def _speak(self, socket: zmq.Socket[bytes]) -> None:
        for session in tuple(self.script.sessions.values()):
            if self.making and session.shot >= 0:
                self.script.make(session)
        for queue in (self.script.out, self._raw):
            while queue and self._peer:
                socket.send_multipart([self._peer, *queue.popleft()])


STEP = 0.02


class World:
    """A client, a server and the wire between them."""

    def __init__(self, script: ScriptedServer) -> None:
        self.script, self.now = script, 100.0
        self.core = ClientCore(self.now, m.Hello(proto=PROTO, client="test"))
        self.generation = self.core.generation
        self.film: FilmCore | None = None
        self.seen: list[int] = []
        self.reachable = True

    def open(self, reopen: bool = False, **arguments: Any) -> FilmCore:
        asked = m.OpenSession(id=1, nonce="n", **arguments)
        self.film = self.core.open(self.now, asked, reopen)
        return self.film

    def playing(self, **arguments: Any) -> FilmCore:
        """A film that is open."""
        film = self.open(**arguments)
        self.step(0.1)
        assert film.state == "open"
        return film

    def prompt(self, text: str = "a shot", at: m.Urgency = "auto", **more: Any) -> Receipt:
        assert self.film is not None
        return self.core.ask(self.now, self.film, m.Prompt(id=1, session="", text=text, at=at), **more)

    def step(self, seconds: float = STEP) -> None:
        """Time goes on; what is on its way arrives, and the picture is looked at."""
        ends = self.now + seconds
        while self.now < ends - 1e-9:
            self.now += STEP
            self.script.clock_us = int(self.now * 1e6) + 5_000_000
            while self.reachable and self.core.wants_socket and self.script.out:
                self.core.receive(self.now, self.script.out.popleft())
            self.core.tick(self.now)
            if self.core.generation != self.generation:
                self.generation = self.core.generation
                self.script.disconnect()
            self.send()
            frame = self.film.frame(self.now) if self.film else None
            if frame is not None and (not self.seen or self.seen[-1] != frame.seq):
                self.seen.append(frame.seq)

    def send(self) -> None:
        while self.core.wants_socket and (header := self.core.peek(self.now)) is not None:
            if not self.reachable:
                self.core.blocked(self.now)
                return
            self.core.shift(self.now)
            self.script.hear([MAGIC, header])

    def cut_wire(self) -> None:
        """Everything on its way is lost."""
        self.script.disconnect()
        self.core.disconnected(self.now)


@pytest.fixture
def script() -> ScriptedServer:
    return ScriptedServer()


@pytest.fixture
def server() -> Iterator[SocketServer]:
    running = SocketServer().start()
    yield running
    running.stop()


@pytest.fixture
def serve() -> Callable[..., Any]:
    """For tests that start servers themselves: ``with serve(port=..., curve=...) as server``."""

    @contextmanager
    def run(**settings: Any) -> Iterator[SocketServer]:
        running = SocketServer(**settings).start()
        try:
            yield running
        finally:
            running.stop()

    return run


@pytest.fixture
def world(script: ScriptedServer) -> World:
    return World(script)


@pytest.fixture(scope="session")
def new_world() -> Callable[[], World]:
    """For tests that need a fresh one for every example."""
    return lambda: World(ScriptedServer())
