"""A server that follows a script, on a real socket: for clients in other languages, which run as processes."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TypeVar

import zmq

from shotstream.bridge.protocol import messages as m
from shotstream.bridge.protocol.envelope import pack, unpack_client
from shotstream.bridge.protocol.limits import MAGIC, Limits

WIDTH, HEIGHT, FPS, CHUNK, WINDOW = 8, 4, 100, 12, 24
Kind = TypeVar("Kind", bound=m.ClientMessage)


class ScriptedServer:
    """Answers like a server and sends ``frames`` frames as credit allows. Subclasses change what they test."""

    def __init__(self, frames: int = 60, port: int = 0, curve: tuple[bytes, bytes] | None = None) -> None:
        self.frames, self.port, self.curve = frames, port, curve
        self.seen: list[m.FromClient] = []
        self.upto, self.next_seq, self.epoch, self.shot = 0, 0, 0, 0
        self.identity, self.attached = b"", False
        self.faults: list[str] = []
        self._context = zmq.Context()
        self._router = self._bind()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(10)
        self._context.destroy(0)
        assert not self.faults, self.faults

    @property
    def endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def got(self, kind: type[Kind]) -> list[Kind]:
        return [message for message in self.seen if isinstance(message, kind)]

    # --- what a subclass may change ----------------------------------------------------------------------------------
    def handle(self, message: m.FromClient) -> None:
        match message:
            case m.Hello():
                self.send(
                    m.Welcome(
                        proto=(1, 0),
                        server="scripted",
                        enc=["rgb24"],
                        models=[],
                        limits=Limits(),
                        features=[],
                        directors=[],
                        clock_us=0,
                    )
                )
            case m.OpenSession():
                self.upto, self.attached = message.window, True
                self.send(self.opened(message.id))
            case m.Resume():
                self.next_seq, self.attached = message.next_seq, True
                self.send(self.opened(message.id, resumed=True))
            case m.Credit():
                if message.upto < self.upto or message.played > self.next_seq:
                    self.faults.append(f"{message} after upto {self.upto} and frame {self.next_seq}")
                self.upto = message.upto
            case m.Ping():
                self.send(m.Pong(t0=message.t0, t1=5_000_000, t2=5_000_000))
            case m.SessionRequest():
                self.send(m.Ack(re=message.id, session=message.session))

    def between_frames(self) -> None:
        """Called before each frame."""

    # --- how it works ------------------------------------------------------------------------------------------------
    def send(self, message: m.FromServer, *payload: bytes) -> None:
        self.send_parts(MAGIC, pack(message), *payload)

    def send_parts(self, *parts: bytes) -> None:
        with contextlib.suppress(zmq.ZMQError):  # gone: mandatory routing says so
            self._router.send_multipart([self.identity, *parts], zmq.DONTWAIT)

    def opened(self, re: int, resumed: bool = False) -> m.SessionOpened:
        return m.SessionOpened(
            re=re, session="s1", token="t1", model="mock", width=WIDTH, height=HEIGHT, fps=(FPS, 1), tb=90_000,
            chunk_frames=CHUNK, first_chunk_frames=9, window=WINDOW, seed=1, enc="rgb24", resumed=resumed,
            next_seq=self.next_seq, epoch=self.epoch,
        )  # fmt: skip

    def frame(self, seq: int) -> tuple[m.Frame, bytes]:
        header = m.Frame(
            session="s1", shot=self.shot, chunk=0, index=0, seq=seq, epoch=self.epoch, pts=seq * 90_000 // FPS, w=WIDTH,
            h=HEIGHT,
        )  # fmt: skip
        return header, bytes([seq % 256, 128, 255]) * (WIDTH * HEIGHT)

    def drop_connection(self) -> None:
        """Closes the socket under the client and listens again on the same port."""
        self._router.close(0)
        self.identity, self.attached = b"", False
        self._router = self._bind()

    def _bind(self) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if self.curve:
            router.curve_server = True
            router.curve_publickey, router.curve_secretkey = self.curve
        if not self.port:
            self.port = router.bind_to_random_port("tcp://127.0.0.1")
            return router
        for _ in range(200):  # the port is free as soon as ZeroMQ's own thread has closed it
            with contextlib.suppress(zmq.ZMQError):
                router.bind(self.endpoint)
                return router
            time.sleep(0.01)
        raise RuntimeError(f"{self.endpoint} stays taken")

    def _run(self) -> None:
        try:
            while not self._done.is_set():
                self.step()
        except Exception as error:  # told by the test that owns this server
            self.faults.append(repr(error))

    def step(self) -> None:
        if self._router.poll(2):
            self.identity, *parts = self._router.recv_multipart()
            message = unpack_client(parts, 65536, 1 << 20)
            self.seen.append(message)
            self.handle(message)
        elif self.attached and self.next_seq < min(self.upto, self.frames):
            self.between_frames()
            if self.attached:
                seq, self.next_seq = self.next_seq, self.next_seq + 1
                header, payload = self.frame(seq)
                self.send(header, payload)


class SilentServer(ScriptedServer):
    """Accepts connections and never says a word."""

    def handle(self, message: m.FromClient) -> None:
        pass
