"""A network between client and server that a test can break: a TCP proxy in a thread."""

from __future__ import annotations

import select
import socket
import threading
from types import TracebackType
from typing import Literal


class Proxy:
    """Passes bytes on, or cuts every connection and refuses new ones, or swallows everything without a word."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("tcp://").partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._state: Literal["well", "cut", "swallowing"] = "well"
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._ended = False
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended = True
        self._wake.send(b"x")
        self._thread.join(5)

    def cut(self) -> None:
        """Break every connection; new ones are broken at once."""
        self._become("cut")

    def swallow(self) -> None:
        """Keep the connections open and let nothing through."""
        self._become("swallowing")

    def mend(self) -> None:
        """Be a good network again, for new connections."""
        self._become("well")

    def _become(self, state: Literal["well", "cut", "swallowing"]) -> None:
        self._state = state
        self._wake.send(b"x")

    def _run(self) -> None:
        while not self._ended:
            ready, _, _ = select.select([self._listener, self._woken, *self._pairs], [], [], 1)
            if self._state == "cut":
                for end in tuple(self._pairs):
                    self._end(end)
            for end in ready:
                if end is self._woken:
                    end.recv(64)
                elif end is self._listener:
                    self._accept()
                elif end in self._pairs:
                    self._carry(end)
        for end in (*self._pairs, self._listener, self._wake, self._woken):
            end.close()

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        if self._state == "cut":
            near.close()
            return
        try:
            far = socket.create_connection(self._target, timeout=5)
        except OSError:
            near.close()
            return
        self._pairs[near], self._pairs[far] = far, near

    def _carry(self, end: socket.socket) -> None:
        try:
            data = end.recv(1 << 18)
            if data and self._state == "well":
                self._pairs[end].sendall(data)
        except OSError:
            data = b""
        if not data:
            self._end(end)

    def _end(self, end: socket.socket) -> None:
        other = self._pairs.pop(end, None)
        if other is not None:
            self._pairs.pop(other, None)
            other.close()
        end.close()
