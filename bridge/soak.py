"""`shotstream bench bridge --soak`: players who do everything for a long time over a network that keeps breaking.

Every player checks what the protocol promises: no frame is missing, every request is answered. The server's memory is
looked at from outside.
"""

from __future__ import annotations

import math
import random
import re
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from shotstream.bridge.bench import served
from shotstream.bridge.client import Client, Film, Receipt

_ANSWER_S = 30.0
"""A request that has no answer after so long, connections broken in between or not, counts as lost."""


@dataclass
class Soaked:
    """What came of it. ``wrong`` are sentences; empty is good. Memory is the server's own (RssAnon), MiB, sampled."""

    minutes: float
    frames: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    reconnects: int = 0
    memory_mb: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def grown_mb(self) -> float:
        """Largest of the last quarter against the largest of the second one: the first is warming up."""
        quarter = len(self.memory_mb) // 4
        if not quarter:
            return 0.0
        return max(self.memory_mb[-quarter:]) - max(self.memory_mb[quarter : 2 * quarter])


class Wire(threading.Thread):
    """One player's network: passes bytes on, and can be broken with `drop`."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(daemon=True)
        host, _, port = endpoint.removeprefix("tcp://").partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._drop = self._end = False
        self.start()

    def drop(self) -> None:
        """Break every connection."""
        self._drop = True

    def close(self) -> None:
        """End it."""
        self._end = True
        self.join(5)

    def run(self) -> None:
        """Carry until closed."""
        pairs: dict[socket.socket, socket.socket] = {}
        while not self._end:
            ready = select.select([self._listener, *pairs], [], [], 0.05)[0]
            if self._drop:
                self._drop = False
                for end in pairs:
                    end.close()
                pairs.clear()
                continue
            for end in ready:
                if end is self._listener:
                    near, far = end.accept()[0], socket.create_connection(self._target)
                    pairs[near], pairs[far] = far, near
                elif end in pairs:
                    try:
                        data = end.recv(1 << 18)
                        pairs[end].sendall(data)
                    except OSError:
                        data = b""
                    if not data:
                        pairs.pop(pairs[end]).close()
                        pairs.pop(end).close()
        for end in (*pairs, self._listener):
            end.close()


class Restless:
    """One player: watches, and does something every second or so."""

    def __init__(self, endpoint: str, seed: int, soaked: Soaked) -> None:
        self.rng, self.soaked = random.Random(seed), soaked
        self.wire = Wire(endpoint)
        self.client = Client(self.wire.endpoint)
        self.film: Film = self.client.open(director="cinematic", cast={"mara": "an older woman in a beige shirt"})
        self.asked: list[Receipt] = []
        """Without an answer."""
        self.shots: list[Receipt] = []
        """Shots that were taken on and are neither shown nor superseded."""
        self.offer: Receipt | None = None
        self._due = 0.0
        self._steps: list[Callable[[], Receipt | None]] = [
            self._prompt, self._prompt, self._event, self._event, self._steer, self._choices, self._commit,
            self._snapshot, self._restore, self._cut, self._pause, self._break,
        ]  # fmt: skip
        self.film.prompt("a wide shot of a harbour", chunks=100)

    def turn(self, now: float) -> None:
        """One turn of the game loop."""
        self.client.poll()
        self.film.frame()
        self.shots = [receipt for receipt in self.shots if not receipt.done]
        for receipt in [receipt for receipt in self.asked if receipt.answered]:
            self.asked.remove(receipt)
            self.soaked.answers[receipt.code or receipt.status] += 1
        for receipt in self.asked:
            if now - receipt.asked_at > _ANSWER_S:
                self.soaked.wrong.append(f"a {receipt.kind} was not answered in {_ANSWER_S:.0f} s")
                self.asked.remove(receipt)
                break
        if self.film.state in ("lost", "closed"):
            self.soaked.wrong.append(f"a film was lost: {self.film.error}")
            self.film = self.client.open()
        if now >= self._due:
            self._due = now + self.rng.uniform(0.2, 1.5)
            asked = self.rng.choice(self._steps)()
            if asked is not None:
                self.soaked.requests[asked.kind] += 1
                self.asked.append(asked)
                self.shots += [asked] if asked.kind in ("prompt", "cut") else []

    def _prompt(self) -> Receipt:
        at = self.rng.choice(("now", "next_chunk", "next_shot", "auto"))
        return self.film.prompt(f"shot {self.rng.random():.6f}", at=at, chunks=self.rng.choice((0, 1, 3, 20)))  # type: ignore[arg-type]

    def _event(self) -> Receipt:
        kind = self.rng.choice(("Story.Greeting", "Story.Nobody.Knows", "Combat.Hit"))
        return self.film.event(kind, actor="mara", action="wave", coalesce=self.rng.choice(("", "a")))

    def _steer(self) -> Receipt:
        return self.film.steer("it begins to rain")

    def _choices(self) -> Receipt:
        self.offer = self.film.choices({"left": "the left way", "right": "the right way"}, deadline_ms=4000)
        return self.offer

    def _commit(self) -> Receipt | None:
        return self.film.commit(self.offer, self.rng.choice(("left", "right"))) if self.offer else None

    def _snapshot(self) -> Receipt:
        return self.film.snapshot(self.rng.choice(("a", "b", "c")))

    def _restore(self) -> Receipt:
        return self.film.restore(self.rng.choice(("a", "b", "c")))

    def _cut(self) -> Receipt:
        return self.film.cut("a close-up shot of a hand", flush=self.rng.random() < 0.5)

    def _pause(self) -> Receipt:
        self.film.pause()
        return self.film.play()

    def _break(self) -> None:
        self.wire.drop()

    def calm_down(self) -> None:
        """Nothing more is asked; what waits can be shown."""
        self._due = math.inf
        self.film.prompt("the end", at="now", chunks=1)

    def end(self) -> None:
        """Look at the books and leave."""
        self.soaked.wrong += [f"a {receipt.kind} was taken on and came to nothing" for receipt in self.shots]
        statistics, core = self.film.statistics, self.film._core
        if statistics.received + statistics.broken < core.player.next_seq or statistics.broken:
            self.soaked.wrong.append(f"{core.player.next_seq - statistics.received} frames are missing")
        self.soaked.frames += statistics.received
        self.soaked.reconnects += self.client.statistics.reconnects
        self.client.close()
        self.wire.close()


def soak(minutes: float, tell: Callable[[str], None], *, players: int = 4, seed: int = 0) -> Soaked:
    """Let players loose on a mock server at 320x192 for so long; ``tell`` is given a line now and then."""
    soaked = Soaked(minutes)
    with served("--size", "320x192", "--chunk-s", "0.12", "--jitter-s", "0.03") as (endpoint, process):
        crowd = [Restless(endpoint, seed + number, soaked) for number in range(players)]
        begun = sampled = time.monotonic()
        while (now := time.monotonic()) < begun + 60 * minutes:
            for player in crowd:
                player.turn(now)
            if process.poll() is not None:
                soaked.wrong.append(f"the server ended with exit code {process.returncode}")
                break
            if now > sampled + max(0.2, minutes):
                sampled = now
                soaked.memory_mb.append(_memory_mb(process.pid))
                left = 60 * minutes - (now - begun)
                tell(f"{left:.0f} s left, {sum(soaked.requests.values())} requests, {soaked.memory_mb[-1]:.0f} MiB")
            time.sleep(0.003)
        for player in crowd:
            player.calm_down()
        ends = time.monotonic() + _ANSWER_S
        while any(player.asked or player.shots for player in crowd) and time.monotonic() < ends:
            for player in crowd:
                player.turn(time.monotonic())
            time.sleep(0.003)
        for player in crowd:
            player.end()
    if soaked.grown_mb > 16:
        soaked.wrong.append(f"the server grew by {soaked.grown_mb:.0f} MiB")
    return soaked


def _memory_mb(pid: int) -> float:
    found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    return int(found[1]) / 1024 if found else 0.0
