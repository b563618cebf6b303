"""`shotstream bench bridge`: what the way between game and model costs, and how soon a player sees what he did.

The transport is compared with bare sockets in the same run (`bench_transport.py`); steering is measured with a mock
model behind `shotstream serve`, at three speeds at once. `soak.py` is the long test of `--soak`.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from shotstream.bridge import bench_transport as transport
from shotstream.bridge.client import Client, Film, Receipt
from shotstream.bridge.protocol.messages import Urgency
from shotstream.runtime.errors import UserError

CHUNK_TIMES_S = (0.3, 0.5, 0.7)
WINDOWS = (12, 24, 36)
URGENCIES: tuple[Urgency, ...] = ("now", "next_chunk", "next_shot")
_SHOT_CHUNKS = 10
"""Shots of 117 frames (7.3 s), of which about 2 s are shown before the next request, and 1.5 s more are made."""
_PATIENCE_S = 120.0


@dataclass
class Report:
    """All figures. Times in ms unless the name says otherwise; dictionaries of steering have the mock's
    seconds a chunk, or a model's name, as keys.

    ``added_p99_ms`` and ``of_raw`` compare medians of the runs; ``seen_ms`` is from the call to the first shown frame.
    """

    raw: list[transport.Flow] = field(default_factory=list)
    ours: list[transport.Flow] = field(default_factory=list)
    of_raw: float = 0.0
    raw_pace: list[transport.Flow] = field(default_factory=list)
    ours_pace: list[transport.Flow] = field(default_factory=list)
    added_p99_ms: float = 0.0
    cpu_share: float = 0.0
    seen_ms: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    frozen: dict[str, dict[str, float]] = field(default_factory=dict)
    commit_ms: list[float] = field(default_factory=list)


@contextmanager
def served(*arguments: str, model: str = "mock") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``shotstream serve`` on a free port: its endpoint and process. Raises UserError if it does not
    start."""
    entry = "from shotstream.runtime.cli import main; main()"
    command = [sys.executable, "-c", entry, "serve", "--model", model, "--bind", "tcp://127.0.0.1:0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = iter(process.stderr.readline, "")
        found = next((match for line in lines if (match := re.search(r"listening on (\S+\d)", line))), None)
        if found is None:
            raise UserError(f"the server for the measurement did not start; try: shotstream serve --model {model}")
        threading.Thread(target=lambda: list(lines), daemon=True).start()  # or it would wait for a reader
        yield found[1], process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


class Player:
    """Shows a film as a game loop of 250 turns a second does."""

    def __init__(self, client: Client, film: Film) -> None:
        self.client, self.film = client, film

    def turn(self) -> None:
        """One turn of the loop."""
        self.client.poll()
        self.film.frame()
        time.sleep(0.004)

    def play(self, seconds: float) -> None:
        """Play for so long."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self.turn()

    def until_seen(self, receipt: Receipt) -> float:
        """Play until a request is seen; ms from its call. Raises UserError if it is refused or nothing comes."""
        ends = time.monotonic() + _PATIENCE_S
        while not receipt.seen_ms:
            if receipt.code or time.monotonic() > ends:
                raise UserError(f"a {receipt.kind} came to nothing: {receipt.error or 'no frame in two minutes'}")
            self.turn()
        return receipt.seen_ms


def measure_mock_steering(chunk_s: float, times: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """`measure_steering` for one speed of the mock."""
    with served("--size", "320x192", "--chunk-s", str(chunk_s)) as (endpoint, _):
        return measure_steering(endpoint, times)


def measure_model(model: str, runs: int) -> Report:
    """Steering with a real model, at whatever speed it has on this machine."""
    report = Report()
    with served(model=model) as (endpoint, _):
        report.seen_ms[model], report.frozen[model] = measure_steering(endpoint, 2 * runs)
    return report


def measure_steering(endpoint: str, times: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Times to the first shown frame by urgency, in ms, and the frozen share of the time by window."""
    seen: dict[str, list[float]] = {}
    frozen: dict[str, float] = {}
    with Client(endpoint) as client:
        for window in WINDOWS:
            film = client.open(window=window)
            player = Player(client, film)
            player.until_seen(film.prompt("a film", chunks=100))
            player.play(1.5)
            before = film.statistics.frozen_s
            player.play(4.0 * times)
            frozen[str(window)] = round(max(0.0, film.statistics.frozen_s - before) / (4.0 * times), 4)
            film.close()
            player.play(0.2)
        film = client.open(window=24)
        player = Player(client, film)
        player.until_seen(film.prompt("a film", chunks=_SHOT_CHUNKS))
        for at in URGENCIES:
            seen[at] = []
            for number in range(times):
                player.play(1.5 + 0.13 * number)  # another place in the chunk each time
                asked = film.prompt(f"{at} {number}", at=at, chunks=_SHOT_CHUNKS)
                seen[at].append(round(player.until_seen(asked), 1))
    return seen, frozen


def measure_commits(times: int) -> list[float]:
    """Times from the commit of a prepared choice to its first shown frame, in ms, at 832x480 and 0.5 s a chunk."""
    found: list[float] = []
    with served("--chunk-s", "0.5") as (endpoint, _), Client(endpoint) as client:
        film = client.open()
        player = Player(client, film)
        player.until_seen(film.prompt("a film", chunks=100))
        for _ in range(times):
            ready: list[str] = []
            film.on_choice_ready = lambda told, ready=ready: ready.append(told.key)
            offer = film.choices({"left": "the left way", "right": "the right way"})
            ends = time.monotonic() + _PATIENCE_S
            while len(ready) < 2 and time.monotonic() < ends:
                player.turn()
            found.append(round(player.until_seen(film.commit(offer, "right")), 1))
            player.play(1.0)
    return found


def measure(runs: int, tell: Console) -> Report:
    """Everything, each measurement ``runs`` times (steering 2 times as often)."""
    report = Report()
    with tell.status("bare sockets and ours ...") as status:
        for run in range(runs):
            status.update(f"frames per second, run {run + 1} of {runs} ...")
            report.raw.append(transport.raw(1500))
            report.ours.append(transport.ours(1500))
        for run in range(runs):
            status.update(f"12 frames each 0.5 s, run {run + 1} of {runs} ...")
            report.raw_pace.append(transport.raw(360, 0.5))
            report.ours_pace.append(transport.ours(360, 0.5))
        status.update("four sessions at their pace ...")
        report.cpu_share = transport.cpu_share(4, 5.0 * runs)
        status.update("choices ...")
        report.commit_ms = measure_commits(4 * runs)
        status.update("steering, three speeds at once ...")
        with ThreadPoolExecutor(len(CHUNK_TIMES_S)) as pool:
            found = list(pool.map(lambda chunk_s: measure_mock_steering(chunk_s, 2 * runs), CHUNK_TIMES_S))
    for chunk_s, (seen, frozen) in zip(CHUNK_TIMES_S, found, strict=True):
        report.seen_ms[str(chunk_s)], report.frozen[str(chunk_s)] = seen, frozen
    rate = [statistics.median(flow.frames_per_s for flow in flows) for flows in (report.ours, report.raw)]
    late = [statistics.median(flow.p99_ms for flow in flows) for flows in (report.ours_pace, report.raw_pace)]
    report.of_raw, report.added_p99_ms = round(rate[0] / rate[1], 3), round(late[0] - late[1], 2)
    return report


def show(report: Report, console: Console) -> None:
    """The figures as tables."""
    flows = Table("way of a frame, 832x480 raw", "frames/s", "p50 ms", "p99 ms")
    for name, found in (
        ("bare sockets", report.raw), ("ours", report.ours), ("bare, 12 each 0.5 s", report.raw_pace),
        ("ours, 12 each 0.5 s", report.ours_pace),
    ):  # fmt: skip
        middle = [statistics.median(getattr(f, key) for f in found) for key in ("frames_per_s", "p50_ms", "p99_ms")]
        flows.add_row(name, *(f"{value:.1f}" for value in middle))
    console.print(flows)
    console.print(f"{report.of_raw:.2f} of the bare rate (goal 0.9); p99 {report.added_p99_ms:+.1f} ms (goal +3)")
    console.print(f"server with 4 sessions at 16 frames/s: {100 * report.cpu_share:.1f} % of a core (goal 15)")
    console.print(f"commit of a prepared choice: {statistics.median(report.commit_ms):.1f} ms (goal 20)")
    show_steering(report, console)


def show_steering(report: Report, console: Console) -> None:
    """From the call to the first shown frame, and how long the film stood still."""
    steering = Table("s a chunk", *(f"{at}, ms" for at in URGENCIES), *(f"frozen, {w}" for w in WINDOWS))
    for chunk_s, seen in report.seen_ms.items():
        times = (f"{statistics.median(seen[at]):.0f} (to {max(seen[at]):.0f})" for at in URGENCIES)
        steering.add_row(chunk_s, *times, *(f"{100 * report.frozen[chunk_s][str(w)]:.1f} %" for w in WINDOWS))
    console.print(steering)


def write_json(report: object, file: Path) -> None:
    """All figures of a dataclass as a file."""
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
