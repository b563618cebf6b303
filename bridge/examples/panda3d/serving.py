"""A server for those who have none running: `shotstream serve` as a child process, with the game's event map."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import TracebackType

from shotstream.bridge.examples.panda3d.cinema import FILM_MAP
from shotstream.runtime.errors import UserError

STOP_S = 5.0


class Server:
    """The child. ``endpoint`` is "" until it listens; nothing here waits for that."""

    def __init__(self, model: str, size: str = "", chunk_s: float = 0.0) -> None:
        """``size`` and ``chunk_s`` are for the model mock."""
        command = [
            sys.executable, "-c", "from shotstream.runtime.cli import main; main()",
            "serve", "--bind", "tcp://127.0.0.1:0", "--model", model, "--director", str(FILM_MAP),
        ]  # fmt: skip
        if model == "mock":
            command += [*(["--size", size] if size else []), *(["--chunk-s", str(chunk_s)] if chunk_s else [])]
        self.endpoint = ""
        self._last_words = ""
        self._child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace")
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _listen(self) -> None:
        """Read to the end, or the child would block on a full pipe."""
        assert self._child.stderr is not None
        for line in self._child.stderr:
            self._last_words = line.strip() or self._last_words
            if not self.endpoint and line.startswith("listening on "):
                self.endpoint = line.split()[2].rstrip(",")

    def check(self) -> None:
        """Raises `UserError` if it has ended by itself."""
        if self._child.poll() is not None:
            raise UserError(f"the server has stopped: {self._last_words or f'exit code {self._child.returncode}'}")

    def stop(self) -> None:
        """End it, kindly first."""
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
