"""Starts the model process, talks to it, and starts it again when it dies."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import zmq

from shotstream.bridge.model import orders
from shotstream.bridge.model.options import WorkerOptions

log = logging.getLogger(__name__)

RESTARTS, WITHIN_S = 5, 120.0
"""A model process that dies more often than this is given up."""


class Supervisor:
    """The model process and the socket to it. Times are the caller's clock in seconds."""

    def __init__(self, context: zmq.Context, options: WorkerOptions) -> None:
        self._context, self._options = context, options
        self._folder = tempfile.TemporaryDirectory(prefix="shotstream-")  # 0700: nobody else can reach the socket
        self._starts: list[float] = []
        self._process: subprocess.Popen[bytes] | None = None
        self.socket: zmq.Socket | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the model process."""
        return self._process.pid if self._process else None

    def start(self, now: float) -> None:
        """Start the process; results come from `receive`."""
        if self.socket is not None:
            self.socket.close(0)
        self._starts.append(now)
        self.socket = self._context.socket(zmq.PAIR)
        self.socket.set_hwm(0)
        address = f"ipc://{Path(self._folder.name) / f'model-{len(self._starts)}'}"
        self.socket.bind(address)
        program = [sys.executable, "-m", "shotstream.bridge.model.worker"]
        command = [*program, address, str(os.getpid()), _text(self._options)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def died(self) -> str:
        """Why the process is gone, "" as long as it is there."""
        if self._process is None or (code := self._process.poll()) is None:
            return ""
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def may_restart(self, now: float) -> bool:
        """False if it died too often lately."""
        return sum(1 for t in self._starts if now - t < WITHIN_S) <= RESTARTS

    def send(self, order: orders.Order) -> None:
        """Send an order; lost if the process is gone."""
        if self.socket is not None:
            try:
                self.socket.send(orders.encode(order), zmq.DONTWAIT)
            except zmq.Again:
                log.warning("the model process takes no orders")

    def receive(self) -> orders.Result | None:
        """The next result, or None."""
        if self.socket is None:
            return None
        try:
            return orders.decode_result(self.socket.recv(zmq.DONTWAIT))
        except zmq.Again:
            return None

    def stop(self, patience_s: float = 3.0) -> None:
        """Wait for the process to leave (it was told to), then make it."""
        if self._process is not None:
            try:
                self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self.socket is not None:
            self.socket.close(0)
        self._folder.cleanup()


def _text(options: WorkerOptions) -> str:
    return msgspec.json.encode(options).decode()
