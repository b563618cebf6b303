"""Plays a story on a loaded runtime and records what every chunk took. No files, no screen.

What a figure means. A chunk's time is what its caller waits: from asking to frames on the host, with the work that the
chunk before left behind (see `Timings`). First frame: from a shot's caption to its first frames. Chunks are made one
after the other as fast as they come; nothing is shown or written. Warm-up shots in a session of their own are not
counted. Cost of history: the time of a chunk behind many shots against the same chunk behind one, taken in turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict

import torch

from shotstream.runtime.bench.machine import machine_facts, read_gpu
from shotstream.runtime.bench.plans import CACHES
from shotstream.runtime.bench.report import BenchReport, HistoryCost, Setting
from shotstream.runtime.bench.samples import ChunkSample, summarise
from shotstream.runtime.memory import MemoryWatch, Plan, available_bytes
from shotstream.runtime.runtime import Runtime
from shotstream.runtime.session import Session
from shotstream.runtime.storyline import Story, StoryShot

DEFAULT_CHUNKS = 7
DEFAULT_WARM_UP = 2
"""Shots: the second is the first one with real context."""
PAIRED_ROUNDS = 5
EARLY_SHOT, LATE_SHOT = 2, 20  # counted from 1, as people do: shot 1 has no history yet
BENCH_STORY = Story(
    name="benchmark",
    global_caption="A story about a red cat with a blue scarf and a white rabbit. Setting: meadow by day.",
    entries=tuple(
        StoryShot(caption)
        for caption in (
            "Wide shot: the red cat stands still and the white rabbit waves.",
            "Medium shot: the red cat waves.",
            "Close-up: the white rabbit stands still.",
            "Wide shot: the red cat walks right.",
            "Medium shot: the red cat jumps and the white rabbit dances.",
        )
    ),
)


def measure(
    runtime: Runtime,
    *,
    shots: int = 5,
    chunks: int | None = None,
    warm_up: int = DEFAULT_WARM_UP,
    story: Story = BENCH_STORY,
    memory: MemoryWatch | None = None,
    history: bool = True,
    on_shot: Callable[[int], None] = lambda shot: None,
) -> BenchReport:
    """Play `shots` shots of `chunks` chunks (default 7) behind `warm_up` shots, and measure. The captions go round.

    memory: a watch from before the runtime was loaded; without one, memory counts from now. history: whether its cost
    is measured, which takes snapshots. `on_shot` is told each shot before it begins, warm-up shots as negative
    numbers."""
    chunks = chunks or DEFAULT_CHUNKS
    watch = memory or MemoryWatch(runtime.device)
    watch.loaded()
    with runtime.open(story.global_caption, seed=1) as session:  # allocations, kernels, libraries' caches
        for number in range(warm_up):
            on_shot(number - warm_up)
            session.begin_shot(_caption(story, number), chunks)
            for _ in session.chunks():
                pass
    gpu_before = read_gpu(runtime.device)
    with runtime.open(story.global_caption, seed=0) as session:
        telling = _Telling(session, story, chunks, shots if history else 0)
        for number in range(shots):
            on_shot(number)
            telling.shot(number)
            watch.shot_made()
    gpu_after = read_gpu(runtime.device)
    used = watch.finish()  # before the cost of history is measured, which takes a second session
    return BenchReport(
        setting=setting_of(runtime, shots, chunks, warm_up),
        machine=machine_facts(runtime.device, gpu_before, gpu_after),
        summary=summarise(telling.samples, runtime.parts.frames_per_second),
        memory=used,
        samples=telling.samples,
        history=_history_cost(runtime, telling.boundaries, story, chunks, watch.plan),
    )


class _Telling:
    """The counted session: its samples, and snapshots from before an early and a late shot."""

    def __init__(self, session: Session, story: Story, chunks: int, shots: int) -> None:
        self.samples: list[ChunkSample] = []
        late = min(LATE_SHOT, shots)
        self.boundaries: dict[int, bytes] = dict.fromkeys((EARLY_SHOT, late) if late > EARLY_SHOT else (), b"")
        self._session, self._story, self._chunks = session, story, chunks
        self._begin = time.perf_counter()
        self._paused = 0.0

    def shot(self, number: int) -> None:
        """Make one shot; `number` counts from 0."""
        asked = self._now()
        if number + 1 in self.boundaries:
            self._session.settle()  # its time counts, the snapshot's does not
            settled = self._now()
            self.boundaries[number + 1] = self._session.snapshot()
            self._paused += self._now() - settled
        self._session.begin_shot(_caption(self._story, number), self._chunks)
        for _ in range(self._chunks):  # and not until None: asking for that would settle the shot, outside of all times
            chunk = self._session.next_chunk()
            assert chunk is not None
            arrived = self._now()
            parts = {name: round(seconds, 7) for name, seconds in asdict(chunk.timings).items()}
            self.samples.append(
                ChunkSample(number, chunk.chunk, len(chunk.frames), round(asked, 7), round(arrived, 7), parts)
            )
            asked = self._now()

    def _now(self) -> float:
        return time.perf_counter() - self._begin - self._paused


def late_over_early(runtime: Runtime, early: bytes, late: bytes, caption: str, chunks: int, rounds: int) -> list[float]:
    """What history costs: chunk time behind many shots over chunk time behind one, both restored from snapshots.

    The two take turns chunk by chunk, since a machine's speed drifts by far more than the 1 % looked for; the median of
    the pairs is the answer. The first chunk is left out: it carries the cut's work, which depends on how many earlier
    captions the context shows. Growth with the age of the process shows in the memory figures instead.
    """
    ratios: list[float] = []
    for round_ in range(rounds):
        with runtime.restore(early) as young, runtime.restore(late) as old:
            pair = [young, old] if round_ % 2 == 0 else [old, young]
            for session in pair:
                session.begin_shot(caption, chunks)
            for chunk in range(chunks):
                times = {session: _timed(session.next_chunk) for session in pair}
                if chunk or chunks == 1:
                    ratios.append(round(times[old] / times[young], 5))
    return ratios


def setting_of(runtime: Runtime, shots: int, chunks: int, warm_up: int) -> Setting:
    """What runs."""
    options, parts, choice = runtime.options, runtime.parts, runtime.engine_choice
    height, width = parts.frame_size
    steps = parts.config.nominal_steps
    engine_options = {} if choice.instead_of else options.engine_options or {}
    return Setting(
        model=parts.name,
        device=runtime.device.type,
        dtype=str(runtime.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        engine=choice.sentence,
        engine_options=", ".join(f"{name}={value}" for name, value in sorted(engine_options.items())),
        attention=runtime.attention.name,
        ops=options.ops or _default_name(getattr(runtime.engine, "ops", None)),
        run_ahead=runtime.run_ahead,
        decoder=options.decoder or _default_name(parts.decoder),
        weights=str(options.weights),
        weights_sha256=parts.weights_hash,
        frame_size=f"{width}x{height}",
        frames_per_second=parts.frames_per_second,
        steps=f"{len(steps)} ({' '.join(map(str, steps))})",
        chunks=chunks,
        shots=shots,
        warm_up=warm_up,
    )


def _history_cost(
    runtime: Runtime, boundaries: dict[int, bytes], story: Story, chunks: int, plan: Plan | None
) -> HistoryCost | None:
    """None for a short story, and where the second session's caches might not fit any more."""
    if not boundaries:
        return None
    free = available_bytes(runtime.device)
    if plan is not None and free is not None and 2 * plan.item(CACHES) > free:
        return None
    early, late = sorted(boundaries)
    try:
        ratios = late_over_early(
            runtime, boundaries[early], boundaries[late], _caption(story, 0), chunks, PAIRED_ROUNDS
        )
    except torch.OutOfMemoryError:  # the story itself is measured, and that is worth keeping
        return None
    return HistoryCost(early, late, round(statistics.median(ratios), 4), ratios)


def _default_name(part: object | None) -> str:
    return "default" if part is None else f"default ({type(part).__name__})"


def _caption(story: Story, number: int) -> str:
    return story.shots[number % len(story.shots)].caption


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
