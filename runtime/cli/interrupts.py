"""Ctrl-C and SIGTERM: they end the film at the next safe point, and never while a file is being written."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """While entered, SIGINT and SIGTERM raise KeyboardInterrupt in the main thread, held back inside `shield`.

    The handler is set even where a shell started us with SIGINT ignored (a background job in a script): whoever sends
    it means it."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.farewell = "stopped"
        """The sentence that is said when an interruption has ended the command; it may put in what was saved."""
        self._shields = 0
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """The shell's convention: 128 and the signal's number; 130 when nothing was received."""
        return 128 + (self.received or signal.SIGINT)

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: the caller keeps its own handlers
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if not self._shields:
            raise KeyboardInterrupt

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Hold signals back; one that came meanwhile is raised at the end, unless an exception is on its way."""
        self._shields += 1
        before = self.received
        try:
            yield
        finally:
            self._shields -= 1
        if self.received is not None and before is None and not self._shields:
            raise KeyboardInterrupt
