"""One ZeroMQ socket to the server, with everything set so that no call on it can wait. Knows no messages.

A second socket, the monitor, tells what the first never would: that the connection broke, or that the server's keys
and ours do not fit.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import zmq
from zmq.utils.monitor import recv_monitor_message

from shotstream.bridge.protocol.limits import MAGIC
from shotstream.runtime.errors import UserError

Curve: TypeAlias = tuple[str | bytes, str | bytes, str | bytes]
"""The server's public key, our public key, our secret key; Z85 text of 40 characters each."""


_OPTIONS = (
    (zmq.LINGER, 0),
    (zmq.IMMEDIATE, 1),
    (zmq.SNDHWM, 1024),
    (zmq.RCVHWM, 1000),
    (zmq.HEARTBEAT_IVL, 1000),
    (zmq.HEARTBEAT_TIMEOUT, 3000),
    (zmq.HEARTBEAT_TTL, 3000),
    (zmq.RECONNECT_IVL, 100),
    (zmq.RECONNECT_IVL_MAX, 5000),
    (zmq.HANDSHAKE_IVL, 3000),
    (zmq.TCP_KEEPALIVE, 1),
)
"""IMMEDIATE: nothing is queued for a connection that is not there, where it would reach a server that knows nothing of
it. The receive queue is longer than all credit that can be granted. No timeouts are set: every call says NOBLOCK."""


@dataclass(frozen=True)
class Sign:
    """What the monitor saw. ``text`` of a refusal is for the user."""

    what: Literal["connected", "broken", "hindered", "refused"]
    text: str = ""


_NO_FIT = (
    "the server at {0} and this client do not agree on keys: only one of them uses CURVE, or the server's public key "
    "is another one"
)
_BROKEN_OFF = (
    "what listens at {0} broke off every handshake: the server's public key is another one, it does not use CURVE, or "
    "this is no ShotStream server"
)
_BROKEN_OFF_MOST = 10
"""A server with another key closes the connection without a word; so does a proxy whose server is not up yet, and any
server that is quicker than we are to see that only one side has keys."""
_KEYLESS = (
    "what listens at {0} broke off every handshake: it wants keys (curve=...), it is not up yet, or this is no "
    "ShotStream server"
)
_NOT_LISTED = "the server at {0} does not admit this client's key"


class Link:
    """Owns the context, the socket and its monitor. Not for use from several threads."""

    def __init__(self, endpoint: str, curve: Curve | None = None) -> None:
        """Raises `UserError` where the endpoint or a key cannot be right."""
        self.endpoint = endpoint
        self._curve = curve
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._broken_off = 0
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        try:
            self.connect()
        except UserError:
            self.close()
            raise
        self.drop()

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def connect(self) -> None:
        """A new socket in the place of the old one. Connecting itself goes on in the background."""
        self.drop()
        socket = self._socket = self._context.socket(zmq.DEALER)
        try:
            if self._curve is not None:
                server, public, secret = (key.encode() if isinstance(key, str) else key for key in self._curve)
                socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = server, public, secret
        except (zmq.ZMQError, ValueError, TypeError, UnicodeError) as error:
            raise UserError(f"curve is (server public, client public, client secret), in Z85: {error}") from None
        for option, value in _OPTIONS:
            socket.setsockopt(option, value)
        self._monitor = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        )  # fmt: skip
        try:
            socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            raise UserError(f"cannot connect to {self.endpoint!r}: {error}; try tcp://HOST:PORT") from None

    def drop(self, linger_ms: int = 0) -> None:
        """Away with the socket and everything in it; ``linger_ms`` for what is on its way out."""
        self.stop_watching()
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close(linger=linger_ms)

    def stop_watching(self) -> None:
        """Away with the monitor, before its socket goes."""
        if self._monitor is not None and self._socket is not None:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
        self._monitor = None

    def send(self, header: bytes) -> bool:
        """False where that is not possible at once; nothing was sent then."""
        if self._socket is None:
            return False
        try:
            self._socket.send_multipart([MAGIC, header], zmq.NOBLOCK)
        except zmq.ZMQError:  # full, not connected, or interrupted: all of that passes
            return False
        return True

    def receive(self) -> list[memoryview] | None:
        """The parts of the next message, without copying; None where there is none."""
        if self._socket is None:
            return None
        try:
            return [part.buffer for part in self._socket.recv_multipart(zmq.NOBLOCK, copy=False)]
        except zmq.ZMQError:
            return None

    def signs(self) -> Iterator[Sign]:
        """What has happened to the connection since the last call."""
        while self._monitor is not None:
            try:
                seen = recv_monitor_message(self._monitor, zmq.NOBLOCK)
            except zmq.ZMQError:
                return
            event = seen["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._broken_off = -1  # the keys have proved right
                yield Sign("connected")
            elif event == zmq.EVENT_DISCONNECTED:
                yield Sign("broken")
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                yield Sign("refused", _NOT_LISTED.format(self.endpoint))
            elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
                if self._broken_off >= 0 and seen["value"] in (errno.EPIPE, errno.ECONNRESET):
                    self._broken_off += 1
                hopeless = self._curve is not None and self._broken_off >= _BROKEN_OFF_MOST
                text = _KEYLESS if self._curve is None else _BROKEN_OFF
                yield Sign("refused" if hopeless else "hindered", text.format(self.endpoint))
            else:
                yield Sign("refused", _NO_FIT.format(self.endpoint))

    def wait(self, timeout_s: float) -> None:
        """Until something comes or ``timeout_s`` is over. The only call here that waits."""
        if self._socket is None:
            time.sleep(timeout_s)
        else:
            self._socket.poll(int(timeout_s * 1000))

    def close(self, linger_ms: int = 0) -> None:
        """The end; takes at most ``linger_ms`` and a tenth of a second."""
        self.drop(linger_ms)
        # in a thread, because it waits for everything in the background: a name that is being looked up, for one
        end = threading.Thread(target=self._context.term, name="shotstream-link-end", daemon=True)
        end.start()
        end.join(linger_ms / 1000 + 0.1)
