"""Several engines side by side in one run: the same film by each, chunk by chunk in turns, with what they cost and how
far their frames are from the first one's.

A machine's speed drifts by more than engines differ; whoever takes turns meets the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shotstream.runtime.bench.measure import BENCH_STORY
from shotstream.runtime.bench.noise import FEWEST, Ratio, median_ratio
from shotstream.runtime.bench.samples import quantile
from shotstream.runtime.bench.text import columns
from shotstream.runtime.runtime import Runtime
from shotstream.runtime.session import Session
from shotstream.runtime.storyline import Story

STEPS = ("context", "denoise", "clean")
"""Parts of a chunk that an engine executes; the rest is the same for all."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class EngineRow:
    """What one engine took. Times in milliseconds, medians over all places of a shot."""

    engine: str
    chunk_ms: float
    steps_ms: float
    """Of a chunk, what the engine executes."""
    fps: float
    ratio: Ratio | None
    """Of whole chunks, over the first engine's; None for the first, and where there are fewer than five."""
    psnr_db: float | None
    """Of all frames against the first engine's, in decibels; None where there is no difference."""


@dataclass
class _Player:
    """One engine's session and what was measured of it. Seconds of whole chunks, and of the engine's part of them."""

    session: Session
    chunks_s: list[float] = field(default_factory=list)
    steps_s: list[float] = field(default_factory=list)
    frames: int = 0
    squares: float = 0.0
    """Sum of squared differences to the first engine's frames; `values` of them."""
    values: int = 0

    def play(self, caption: str, chunk: int, chunks: int) -> Pixels:
        """The next chunk, measured; a shot's first one begins the shot."""
        begin = time.perf_counter()
        if chunk == 0:
            self.session.begin_shot(caption, chunks)
        made = self.session.next_chunk()
        took = time.perf_counter() - begin
        assert made is not None
        self.chunks_s.append(took)
        self.steps_s.append(sum(getattr(made.timings, part) for part in STEPS))
        self.frames += len(made.frames)
        return made.frames

    def compare(self, ours: Pixels, reference: Pixels) -> None:
        """Note how far frames are from the first engine's."""
        self.squares += float(np.square(ours.astype(np.float64) - reference).sum())
        self.values += reference.size

    def forget_times(self) -> None:
        """What was measured until now was a warm-up."""
        self.chunks_s, self.steps_s, self.frames = [], [], 0


def side_by_side(
    runtimes: Mapping[str, Runtime],
    *,
    shots: int = 3,
    chunks: int = 3,
    warm_up: int = 1,
    story: Story = BENCH_STORY,
    on_shot: Callable[[int], None] = lambda shot: None,
) -> list[EngineRow]:
    """Play `shots` shots behind `warm_up` ones on every runtime, by its label; the first is what others are held to.

    on_shot: told each shot before it begins, warm-up shots as negative numbers.
    """
    players = {label: _Player(runtime.open(story.global_caption, seed=0)) for label, runtime in runtimes.items()}
    first, *_ = labels = list(players)
    for number in range(-warm_up, shots):
        on_shot(number)
        if number == 0:
            for player in players.values():
                player.forget_times()
        caption = story.shots[(number + warm_up) % len(story.shots)].caption
        for chunk in range(chunks):
            begin = (number * chunks + chunk) % len(labels)  # nobody always comes behind the same one
            turn = labels[begin:] + labels[:begin]
            made = {label: players[label].play(caption, chunk, chunks) for label in turn}
            for label, player in players.items():
                player.compare(made[label], made[first])
    for player in players.values():
        player.session.close()
    return [_row(label, player, players[first]) for label, player in players.items()]


def lines(rows: Sequence[EngineRow]) -> list[str]:
    """The table for people."""
    table = [["ms a chunk, medians", "chunk", "steps", "fps", "over the first", "95 % interval", "PSNR, dB"]]
    for row in rows:
        r = row.ratio
        ratio = ("-", "-") if r is None else (f"{r.value:.3f}", f"{r.low:.3f} .. {r.high:.3f}")
        psnr = "-" if row is rows[0] else "equal" if row.psnr_db is None else f"{row.psnr_db:.1f}"
        table.append([f"  {row.engine}", f"{row.chunk_ms:.1f}", f"{row.steps_ms:.1f}", f"{row.fps:.1f}", *ratio, psnr])
    return columns(table, indent="")


def _row(label: str, player: _Player, first: _Player) -> EngineRow:
    enough = player is not first and len(player.chunks_s) >= FEWEST
    return EngineRow(
        engine=label,
        chunk_ms=round(1000 * quantile(player.chunks_s, 0.5), 2),
        steps_ms=round(1000 * quantile(player.steps_s, 0.5), 2),
        fps=round(player.frames / sum(player.chunks_s), 2),
        ratio=median_ratio(first.chunks_s, player.chunks_s) if enough else None,
        psnr_db=_psnr(player.squares / player.values),
    )


def _psnr(mean_square: float) -> float | None:
    return None if mean_square == 0 else float(10 * np.log10(255**2 / mean_square))
