"""Measures a model on stories of the world: does it show what is asked, cut where asked, and keep what it showed.

The oracle reads the frames; its own limits are printed beside every score, as the same measurement on true renders
and on renders that went through the model's video codec. Nothing here trains anything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count as counting
from typing import TYPE_CHECKING

import numpy as np

from shotstream.runtime.config import TINY
from shotstream.runtime.errors import UserError
from shotstream.training.evaluation.axes import Axes, Pace
from shotstream.training.evaluation.cuts import CutFinder
from shotstream.training.evaluation.scores import (
    GROUPS,
    Change,
    Report,
    Row,
    StoryReading,
    Tallies,
    make_row,
    mean_estimate,
    paired_change,
    tally_ends,
    tally_story,
    with_changes,
)
from shotstream.training.evaluation.sources import (
    CodecPlayer,
    Frames,
    FramesOfStories,
    FramesOfStory,
    free_wording,
    one_by_one,
    renders_of,
    session_frames,
)
from shotstream.training.evaluation.story_axes import read_film, story_axes
from shotstream.training.oracle.cuts import find_cuts
from shotstream.training.oracle.reader import Reader, load_reader
from shotstream.training.oracle.slots import unseen
from shotstream.training.world import Story, is_held_out, sample_held_out_story, sample_story

if TYPE_CHECKING:
    from shotstream.runtime.runtime import Runtime

log = logging.getLogger(__name__)

FIRST_SEED = 90_000_000  # evaluation stories start here; no training uses these seeds
SHOTS = 5
DRIFT_SHOTS = 10
LAST_CHUNK = 4 * TINY.chunk_frames
"""Pixel frames of a shot's last chunk."""

MODEL, PARAPHRASED, RENDERS, CODEC = "model", "model, free wording", "renders", "codec"
DRIFT, DRIFT_OF_CHUNKS, WORDING = "drift", "drift of last chunks", "free wording"
Progress = Callable[[int, int], None]
"""Called with (stories done, stories in all) over all sources."""
Observer = Callable[[str, Story, list[Frames]], None]
"""Called with (source, story, shots) for every story that was played."""


@dataclass(frozen=True)
class Parts:
    """What is measured beside the plain scores; each costs about as much as they do."""

    paraphrase: bool = True
    drift: bool = True
    codec: bool = True


def evaluation_stories(count: int, seed: int = 0, shots: int = SHOTS) -> list[Story]:
    """Half stories like those of training (unseen seeds), half with pairs that training never shows."""
    if count < 2:
        raise UserError(f"an evaluation needs at least 2 stories, not {count}: one seen kind, one held-out kind.")
    first = FIRST_SEED + seed * 1_000_000
    known = [sample_story(first + i, shots) for i in range((count + 1) // 2)]
    return known + [sample_held_out_story(first + i, shots) for i in range(count // 2)]


def drift_stories(count: int, seed: int = 0, shots: int = DRIFT_SHOTS) -> list[Story]:
    """Long stories whose last shot is planned as the first was, so that both are asked the same; both kinds by turns.

    Nothing else could be compared shot with shot: a close-up shows less than a wide shot does.
    """
    made: list[Story] = []
    for number in counting(FIRST_SEED + seed * 1_000_000 + 500_000):
        if len(made) == count:
            break
        story = (sample_held_out_story if len(made) % 2 else sample_story)(number, shots)
        first, before = story.shots[0], story.shots[-2]
        # A cut between two shots of one size and cast needs the camera on another side; it could not be seen otherwise.
        if first.size != before.size or first.cast != before.cast:
            made.append(replace(story, shots=(*story.shots[:-1], first)))
    return made


def evaluate(
    frames_of_story: FramesOfStory,
    stories: Sequence[Story],
    *,
    ceilings: Mapping[str, FramesOfStory] | None = None,
    reader: Reader | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Scores `frames_of_story` and, beside it, the `ceilings` (default: the renders) on the same stories."""
    if ceilings is None:
        ceilings = {RENDERS: renders_of}
    sources = {name: one_by_one(make) for name, make in {MODEL: frames_of_story, **ceilings}.items()}
    return measure(sources, stories, reader=reader, seed=seed, progress=progress)


def measure(sources: Mapping[str, FramesOfStories], stories: Sequence[Story], *, drift: Sequence[Story] = (),
            drift_sources: Collection[str] = (), reader: Reader | None = None, seed: int = 0,
            progress: Progress | None = None, observer: Observer | None = None, cuts: CutFinder = find_cuts,
            paces: Mapping[str, Sequence[Pace]] | None = None) -> Report:  # fmt: skip
    """Plays `stories` on every source, and the long `drift` stories on those named, and scores what the reader sees.

    The axes' cuts are found by `cuts`, all others by the oracle. `paces` holds lists, by source, that the sources fill
    while they play: how fast they were.
    """
    reader = reader or load_reader()
    ticks = counting(1)
    total = len(stories) * len(sources) + len(drift) * len(drift_sources)

    def played(source: str, wanted: Sequence[Story]) -> Iterator[tuple[Story, list[Frames]]]:
        for story, shots in zip(wanted, sources[source](wanted), strict=True):
            if observer is not None:
                observer(source, story, shots)
            yield story, shots
            if progress is not None:
                progress(next(ticks), total)

    rows: list[Row] = []
    axes: list[Axes] = []
    for source in sources:
        films = []
        for story, shots in played(source, stories):
            films.append(read_film(read_story(story, shots, reader), shots, reader, cuts))
        rows += _rows(source, [film.story for film in films], seed)
        axes.append(story_axes(source, films, (paces or {}).get(source, ()), seed))
    report = Report(tuple(rows), len(stories), seed, reader.note, axes=tuple(axes))
    for source in drift_sources if drift else ():
        ends = []
        for story, shots in played(source, drift):
            (whole, last), (chunk, _) = (tally_ends(read) for read in read_ends(story, shots, reader))
            ends.append((whole, chunk, last))
        report = _with_drift(report, source, drift, ends)
    return report


def evaluate_model(runtime: Runtime, stories: int = 40, seed: int = 0, *, chunks: int = 3, parts: Parts | None = None,
                   progress: Progress | None = None, cuts: CutFinder = find_cuts) -> Report:  # fmt: skip
    """Scores a runtime's model on fresh stories; ceilings: renders and its own codec. See `Parts` for the rest."""
    parts = parts or Parts()
    height, width = runtime.parts.frame_size
    if height % 20 or width % 32 or height * 16 != width * 10:
        raise UserError(
            f"only models of the story world can be evaluated: {runtime.parts.name} makes frames of {width}x{height}, "
            "the world has the aspect 16:10."
        )
    paces: dict[str, list[Pace]] = {MODEL: [], PARAPHRASED: []}
    sources = {MODEL: one_by_one(session_frames(runtime, seed, chunks, paces=paces[MODEL]))}
    if parts.paraphrase:
        free = session_frames(runtime, seed, chunks, free_wording(seed), paces[PARAPHRASED])
        sources[PARAPHRASED] = one_by_one(free)
    sources[RENDERS] = one_by_one(renders_of)
    codec = None
    if parts.codec and hasattr(runtime.parts.decoder, "encode"):
        codec = CodecPlayer(runtime.parts.decoder, runtime.parts.frame_size, runtime.device)
        sources[CODEC] = one_by_one(codec)
    report = measure(
        sources, evaluation_stories(stories, seed), seed=seed, progress=progress, cuts=cuts, paces=paces,
        drift=drift_stories(max(2, stories // 2), seed) if parts.drift else (), drift_sources=(MODEL, RENDERS),
    )  # fmt: skip
    if parts.paraphrase:
        report = with_changes(report, [compare(report, WORDING, MODEL, PARAPHRASED)])
    return report if codec is None else with_psnr(report, codec)


def compare(report: Report, name: str, before: str, after: str) -> Change:
    """What changes from one source to another, over all stories of the report."""
    return paired_change(name, report.pooled(before), report.pooled(after), report.seed)


def with_psnr(report: Report, codec: CodecPlayer) -> Report:
    """The report with the fidelity of the codec that played in it."""
    return replace(report, codec_psnr=mean_estimate(codec.psnr, report.seed))


def read_story(story: Story, shots: Sequence[Frames], reader: Reader) -> StoryReading:
    """Reads every shot, and looks for cuts in the whole film without knowing where they should be."""
    asked = tuple(int(v) for v in np.cumsum([len(s) for s in shots])[:-1])
    found = tuple(find_cuts(np.concatenate(shots)))
    hidden = tuple(unseen(story, k, range(len(shot))) for k, shot in enumerate(shots))
    return StoryReading(story, tuple(reader.read_shot(s) for s in shots), found, asked, hidden)


def read_ends(story: Story, shots: Sequence[Frames], reader: Reader) -> tuple[StoryReading, StoryReading]:
    """The last chunk of the last shot behind the first shot, as a story of these two; and behind that shot's own last
    chunk, of which as much is to be seen.
    """
    ends = replace(story, shots=(story.shots[0], story.shots[-1]))
    first, last = shots[0], shots[-1]
    start = max(0, len(last) - LAST_CHUNK)
    read, hidden = reader.read_shot(last[start:]), unseen(story, len(shots) - 1, range(start, len(last)))

    def behind(begin: int) -> StoryReading:
        before = unseen(story, 0, range(begin, len(first)))
        return StoryReading(ends, (reader.read_shot(first[begin:]), read), (), (), (before, hidden))

    return behind(0), behind(max(0, len(first) - LAST_CHUNK))


def _rows(source: str, readings: Sequence[StoryReading], seed: int) -> list[Row]:
    rows = []
    for group in GROUPS:
        members = [r for r in readings if is_held_out(r.story) == (group == GROUPS[1])]
        others: list[StoryReading | None] = [*members[1:], members[0]] if len(members) > 1 else [None] * len(members)
        tallies = [tally_story(r, other) for r, other in zip(members, others, strict=True)]
        if members:
            rows.append(make_row(source, group, [r.story.seed for r in members], tallies, seed))
    return rows


def _with_drift(
    report: Report, source: str, stories: Sequence[Story], ends: Sequence[tuple[Tallies, Tallies, Tallies]]
) -> Report:
    """ends: of every story its first shot, the last chunk of that, and the last chunk of its last shot."""
    seeds = [story.seed for story in stories]
    names = ("shot 1", "end of shot 1", f"end of shot {len(stories[0].shots)}")
    rows = [make_row(source, name, seeds, [all_of[i] for all_of in ends], report.seed) for i, name in enumerate(names)]
    changes = [
        paired_change(name, before, rows[2], report.seed)
        for name, before in zip((DRIFT, DRIFT_OF_CHUNKS), rows[:2], strict=True)
    ]
    return with_changes(replace(report, rows=(*report.rows, *rows)), changes)
