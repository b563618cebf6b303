"""What the bridge adds to bare sockets: our server and client beside a ROUTER and a DEALER that do nothing else.

Both servers are processes of their own (``python -m shotstream.bridge.bench_transport KIND PERIOD_S``) and say their
endpoint on standard output; the client's side runs in the caller. There is no model: pictures lie ready in memory, so
that only the way of a frame is measured.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import zmq

from shotstream.bridge.client import Client
from shotstream.bridge.frame_store import FrameStore
from shotstream.bridge.model import orders
from shotstream.bridge.model.options import WorkerOptions
from shotstream.bridge.protocol.envelope import pack
from shotstream.bridge.protocol.limits import MAGIC, Limits
from shotstream.bridge.protocol.messages import Credit, Frame
from shotstream.bridge.server.gateway import Gateway
from shotstream.bridge.server.hub import Hub

WIDTH, HEIGHT, FPS, CHUNK, WINDOW = 832, 480, 16, 12, 24
TOUCHED = 32
"""Slots that are written before anything is measured: more than are ever in use here."""
FACTS = orders.Facts("none", WIDTH, HEIGHT, FPS, CHUNK, CHUNK, 100_000, 100_000)


class NoModel:
    """In the place of `Supervisor`: says that every chunk is made, ``period_s`` seconds after the one before."""

    pid = None

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], period_s: float) -> None:
        self._period_s = period_s
        self._say, self.socket = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        self._say.bind("inproc://no-model")
        self.socket.connect("inproc://no-model")
        self._due: deque[tuple[float, orders.Result]] = deque()
        self._last = 0.0

    def start(self, now: float) -> None:
        """Ready at once."""
        self._say.send(orders.encode(orders.Ready(FACTS)))

    def send(self, order: orders.Order) -> None:
        """Answer an order."""
        if isinstance(order, orders.UseStore):
            FrameStore(Path(order.path), order.slots, order.slot_bytes).view(0, 0, TOUCHED * order.slot_bytes)[:] = 1
        elif isinstance(order, orders.OpenFilm):
            self._say.send(orders.encode(orders.FilmOpen(order.film)))
        elif isinstance(order, orders.Make):
            sizes = [WIDTH * HEIGHT * 3] * CHUNK
            made = orders.Made(order.film, order.ticket, order.slot, 0, 0, "", sizes, False, 0.0)
            self._last = max(time.monotonic(), self._last + self._period_s)
            self._due.append((self._last, made))
            self._release()

    def receive(self) -> orders.Result | None:
        """The next result, or None."""
        self._release()
        try:
            return orders.decode_result(self.socket.recv(zmq.DONTWAIT))
        except zmq.Again:
            return None

    def died(self) -> str:
        """Never."""
        return ""

    def stop(self) -> None:
        """Nothing to end."""
        self._say.close(0)
        self.socket.close(0)

    def _release(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            self._say.send(orders.encode(self._due.popleft()[1]))


def _serve_ours(period_s: float) -> None:
    limits = Limits(replay_frames=36)
    hub = Hub(limits, {}, "", lambda: secrets.token_urlsafe(12), lambda: 1, model="none")
    gateway = Gateway(hub, WorkerOptions(), "tcp://127.0.0.1:*")
    gateway.supervisor._folder.cleanup()
    gateway.supervisor = NoModel(gateway._context, period_s)  # type: ignore[assignment]
    _tell(gateway.endpoint)
    gateway.run(lambda line: None)


def _serve_raw(period_s: float) -> None:
    """Send whatever credit allows, 12 frames every ``period_s`` seconds, from a ring of buffers."""
    router = zmq.Context().socket(zmq.ROUTER)
    router.setsockopt(zmq.SNDHWM, 1024)
    router.bind("tcp://127.0.0.1:*")
    _tell(router.getsockopt_string(zmq.LAST_ENDPOINT))
    ring = np.ones((4 * WINDOW, HEIGHT * WIDTH * 3), np.uint8)  # zeros would be one page that is always in the cache
    decode = msgspec.msgpack.Decoder(Credit).decode
    flights: deque[zmq.MessageTracker] = deque()
    peer, upto, seq, due = b"", 0, 0, 0.0
    while True:
        wait = 1000 if seq + CHUNK > upto else max(0, int(1000 * (due - time.monotonic())))
        if router.poll(wait):
            peer, header = router.recv_multipart()
            upto = decode(header).upto
        if seq + CHUNK > upto or time.monotonic() < due:
            continue
        now = time.monotonic()
        due = max(now, due + period_s) if period_s else 0.0
        for index in range(CHUNK):
            header = pack(Frame(
                session="s", shot=0, chunk=0, index=index, seq=seq, epoch=0, pts=seq * 5625, w=WIDTH, h=HEIGHT,
                ts=int(now * 1e6),
            ))  # fmt: skip
            parts = [peer, MAGIC, header, ring[seq % len(ring)].data]
            tracker = router.send_multipart(parts, copy=False, track=True)
            assert tracker is not None
            flights.append(tracker)
            if len(flights) >= len(ring):
                flights.popleft().wait()
            seq += 1


def _tell(endpoint: str) -> None:
    sys.stdout.write(endpoint + "\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Flow:
    """How frames flowed: rate, and time from the server's stamp on a chunk to its frames' arrival, in ms."""

    frames_per_s: float
    p50_ms: float
    p99_ms: float


@contextmanager
def server(kind: str, period_s: float) -> Iterator[tuple[str, int]]:
    """A server process; endpoint and process id."""
    command = [sys.executable, "-m", "shotstream.bridge.bench_transport", kind, str(period_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.terminate() if kind == "raw" else process.send_signal(2)
        process.wait(10)


def ours(frames: int, period_s: float = 0.0) -> Flow:
    """Our server and client; frames are taken as fast as they come."""
    delays: list[float] = []
    with server("ours", period_s) as (endpoint, _), Client(endpoint) as client:
        film = client.open(window=WINDOW)
        film.prompt("x", chunks=100_000)
        for frame in film.frames(20):
            if not delays:
                began = time.perf_counter()
            delays.append(1000 * frame.received_at - frame.header.ts / 1000)
            if len(delays) == frames:
                break
        return _flow(delays, time.perf_counter() - began)


def raw(frames: int, period_s: float = 0.0) -> Flow:
    """Bare sockets with the same window, frame size, header and steps of credit."""
    delays: list[float] = []
    decode = msgspec.msgpack.Decoder(Frame).decode
    with server("raw", period_s) as (endpoint, _):
        dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        dealer.connect(endpoint)
        dealer.send(pack(Credit(session="s", upto=WINDOW)))
        while len(delays) < frames:
            parts = dealer.recv_multipart(copy=False)
            if not delays:
                began = time.perf_counter()
            frame = decode(parts[1].buffer)
            delays.append(1000 * time.monotonic() - frame.ts / 1000)
            if (frame.seq + 1) % (CHUNK // 2) == 0:
                dealer.send(pack(Credit(session="s", upto=frame.seq + 1 + WINDOW)))
        took = time.perf_counter() - began
        dealer.close(0)
    return _flow(delays, took)


def _flow(delays: list[float], seconds: float) -> Flow:
    p50, p99 = np.percentile(delays[CHUNK:], [50, 99])
    return Flow(round((len(delays) - 1) / seconds, 1), round(float(p50), 2), round(float(p99), 2))


def cpu_share(sessions: int, seconds: float) -> float:
    """Share of one core that our server needs for so many sessions at their pace, without a model."""
    with server("ours", CHUNK / FPS / sessions) as (endpoint, pid), Client(endpoint) as client:
        films = [client.open(window=WINDOW) for _ in range(sessions)]
        for film in films:
            film.prompt("x", chunks=100_000)

        def play(until: float) -> None:
            while time.monotonic() < until:
                client.poll()
                for film in films:
                    film.frame()
                time.sleep(0.004)

        play(time.monotonic() + 3)
        shown = sum(film.statistics.presented for film in films)
        began, used = time.monotonic(), _cpu_s(pid)
        play(began + seconds)
        took = time.monotonic() - began
        rate = (sum(film.statistics.presented for film in films) - shown) / took
        assert rate > 0.8 * FPS * sessions, f"only {rate:.0f} frames a second were shown: this machine is too busy"
        return round((_cpu_s(pid) - used) / took, 4)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


if __name__ == "__main__":
    if sys.argv[1] == "raw":
        _serve_raw(float(sys.argv[2]))
    else:
        import signal

        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _serve_ours(float(sys.argv[2]))
        except KeyboardInterrupt:
            pass
