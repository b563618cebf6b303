"""`shotstream serve` as processes, for tests: started, looked at, harmed, and always ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shotstream.bridge import Client
from shotstream.bridge.client import Film, Frame
from shotstream.bridge.model.mock import number_of

COMMAND = [sys.executable, "-c", "from shotstream.runtime.cli import main; main()", "serve"]
QUICK = ("--model", "mock", "--size", "160x96", "--chunk-s", "0.1", "--jitter-s", "0.02")
"""A server that is ready soon and makes film seven times as fast as it is shown."""
PATIENCE_S = 30.0
"""How long a loaded machine may take for anything."""


def until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for something to become true."""
    ends = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < ends, f"waited in vain for {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Server:
    """A server process with what it has said."""

    def __init__(self, *arguments: str, folder: Path, bind: str = "tcp://127.0.0.1:0") -> None:
        self.lines: list[str] = []
        self.folder = folder
        self.process = subprocess.Popen(
            [*COMMAND, "--bind", bind, *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "TMPDIR": str(folder), "COLUMNS": "300"},
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    @property
    def said(self) -> str:
        """Everything on its standard error so far."""
        return "\n".join(self.lines)

    @property
    def endpoint(self) -> str:
        """Where it listens, once it does."""
        until(lambda: "listening on" in self.said or self.process.poll() is not None, "an endpoint")
        found = re.search(r"listening on (tcp://[\d.]+:\d+)", self.said)
        assert found, self.said
        return found[1]

    @property
    def model_pid(self) -> int:
        """The model process, once there is one."""
        until(lambda: self._children(), "a model process")
        return self._children()[0]

    def _children(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    @property
    def memory_mb(self) -> float:
        """Memory of the server process that is nobody else's (RssAnon), in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def frame_files(self) -> list[Path]:
        """The frame store's files."""
        maps = Path(f"/proc/{self.process.pid}/maps").read_text()
        return sorted({Path(path) for path in re.findall(r"(/\S*shotstream-frames-\S+)", maps)})

    def ready(self) -> Server:
        """Wait until the model can be used."""
        until(lambda: "ready:" in self.said or self.process.poll() is not None, "the model")
        assert self.process.poll() is None, self.said
        return self

    def ended(self) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(PATIENCE_S)
        time.sleep(0.1)
        return code

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop; the exit code."""
        self.process.send_signal(number)
        return self.ended()


@contextmanager
def serving(folder: Path, *arguments: str, bind: str = "tcp://127.0.0.1:0") -> Iterator[Server]:
    """A server for as long as a test needs it; nothing of it is left afterwards."""
    server = Server(*arguments, folder=folder, bind=bind)
    files: list[Path] = []
    try:
        yield server
    finally:
        with suppress(OSError):
            files = server.frame_files()
        with suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGKILL)  # the model process is in the same group
        server.process.wait()
        for file in files:
            file.unlink(missing_ok=True)


class Watcher:
    """A player: shows a film as a game would, keeps the numbers of what it saw and of what came to it."""

    def __init__(self, client: Client, film: Film) -> None:
        self.client, self.film = client, film
        self.seen: list[Frame] = []

    def watch(self, condition: Callable[[], object], what: str = "the film", patience_s: float = PATIENCE_S) -> None:
        """Play until something is true."""
        ends = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < ends, f"waited in vain for {what}: {self.film.state} {self.film.error}"
            self.client.poll()
            self._look()
            time.sleep(0.004)

    def watch_for(self, seconds: float) -> None:
        """Play for so long."""
        ends = time.monotonic() + seconds
        self.watch(lambda: time.monotonic() >= ends, patience_s=seconds + PATIENCE_S)

    def _look(self) -> None:
        frame = self.film.frame()
        if frame is not None and (not self.seen or frame is not self.seen[-1]):
            self.seen.append(frame)

    @property
    def last(self) -> int:
        """Number of the frame that is shown; -1 before the first."""
        return self.seen[-1].seq if self.seen else -1

    def assert_no_hole(self) -> None:
        """Every frame came, none twice to the eye, and the pictures are those that the headers announce."""
        statistics = self.film.statistics
        assert statistics.received == self.film._core.player.next_seq, "frames are missing"
        assert not statistics.broken
        for before, after in zip(self.seen, self.seen[1:], strict=False):
            assert after.seq > before.seq


def says_what_it_is(frame: Frame, first_chunk: int = 9, chunk: int = 12) -> bool:
    """Whether the pixels say the number that the header has."""
    number = frame.index if frame.chunk == 0 else first_chunk + (frame.chunk - 1) * chunk + frame.index
    return number_of(frame.rgb) == number
