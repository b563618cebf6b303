"""The paper's axes: what they are called, their figures with intervals over films, and their table.

Every axis is a ratio of sums over films, so that one bootstrap serves all. Where the sums come from is elsewhere:
`story_axes` reads films of the story world with the oracle, `video_axes` compares features of any film.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from shotstream.training.evaluation.scores import Estimate, ratio_estimate

PERCENT, RATE, MILLISECONDS = "%", "frames/s", "ms"
TOLERANCE = 1
"""Frames by which a cut may be early or late."""
NOT_TIMED = "nobody timed it"

FilmTallies = dict[str, tuple[float, float]]
"""Axis -> what one film adds to the ratio's upper and lower sum."""


@dataclass(frozen=True)
class Axis:
    """One axis: how it is printed, and what it means whoever measures it."""

    label: str
    unit: str
    meaning: str


AXES: Mapping[str, Axis] = {
    "intra_subject": Axis("intra-shot subject consistency", PERCENT, "inside a shot the heroes look the same"),
    "intra_background": Axis("intra-shot background consistency", PERCENT, "inside a shot the background is the same"),
    "inter_subject": Axis("inter-shot subject consistency", PERCENT, "heroes look the same in another shot"),
    "inter_background": Axis("inter-shot background consistency", PERCENT, "the background is the same in another"),
    "cut_precision": Axis("transition control: precision", PERCENT, "a cut that is there was asked for"),
    "cut_recall": Axis("transition control: recall", PERCENT, "a cut that was asked for is there"),
    "cut_f1": Axis("transition control: F1", PERCENT, "both together"),
    "cuts_exact": Axis("transition control: films all right", PERCENT, "every cut of a film asked for, none missing"),
    "prompt_following": Axis("prompt following", PERCENT, "the shot shows what its caption says"),
    "fps": Axis("frames per second", RATE, "frames made per second of making them"),
    "chunk_latency": Axis("chunk latency p50", MILLISECONDS, "a film's median wait for a chunk, mean over films"),
}
"""Shares, chance-corrected agreements and cosines are printed times 100; all tallies hold them as they are."""


@dataclass(frozen=True)
class Pace:
    """How fast one film was made: its frames, and the seconds from asking for a chunk to having its frames.

    `chunk_seconds` is empty where only the whole is known.
    """

    frames: int
    seconds: float
    chunk_seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Axes:
    """All axes of one source of films. An axis is in `scores` or, with a reason, in `missing`.

    `films` names them (stories: their seeds), `tallies` holds what each added, in that order. The `tries` of a score
    are the lower sum: frames, pairs, cuts or seconds; for chance-corrected agreement, the part that luck left open.
    """

    source: str
    method: str
    scores: Mapping[str, Estimate]
    missing: Mapping[str, str]
    films: tuple[str, ...]
    tallies: tuple[FilmTallies, ...]


def make_axes(source: str, method: str, films: Sequence[str], tallies: Sequence[FilmTallies],
              reasons: Mapping[str, str], seed: int = 0) -> Axes:  # fmt: skip
    """Figures with 95 % intervals over films; `reasons` says for an axis why nothing was counted. `seed`: bootstrap."""
    scores, missing = {}, {}
    for axis in AXES:
        table = np.array([t.get(axis, (0.0, 0.0)) for t in tallies], float).reshape(-1, 2)
        estimate = ratio_estimate(table, seed)
        if estimate is None:
            missing[axis] = reasons.get(axis, "there was nothing to count")
        else:
            scores[axis] = estimate
    return Axes(source, method, scores, missing, tuple(films), tuple(tallies))


def cut_tallies(asked: Sequence[int], found: Sequence[int], tolerance: int = TOLERANCE) -> FilmTallies:
    """The four axes of transition control (the paper's shot-cut accuracy) in one film. Frame numbers begin new shots.

    A found cut serves one asked cut at most. Films of one shot count for `cuts_exact` and for false alarms only.
    """
    left, right = sorted(found), 0
    for cut in sorted(asked):
        near = [f for f in left if abs(f - cut) <= tolerance]
        if near:
            # The earliest that will do: what is later may serve the next cut.
            left.remove(near[0])
            right += 1
    return {
        "cut_precision": (right, len(found)),
        "cut_recall": (right, len(asked)),
        "cut_f1": (2 * right, len(asked) + len(found)),
        "cuts_exact": (float(right == len(asked) == len(found)), 1.0),
    }


def pace_tallies(pace: Pace | None) -> FilmTallies:
    """FPS and chunk latency of one film."""
    if pace is None or pace.seconds <= 0:
        return {}
    tallies: FilmTallies = {"fps": (pace.frames, pace.seconds)}
    if pace.chunk_seconds:
        tallies["chunk_latency"] = (1000 * median(pace.chunk_seconds), 1.0)
    return tallies


def axes_lines(rows: Sequence[Axes]) -> list[str]:
    """The axes as aligned text, one column per source, four side by side; under it, why a figure is missing."""
    lines: list[str] = []
    for start in range(0, len(rows), 4):
        block = rows[start : start + 4]
        lines += [""] * bool(lines)
        lines.append(f"{'axis (95 % intervals)':44}" + "".join(f"{row.source:>25}" for row in block))
        for name, axis in AXES.items():
            cells = "".join(f"{_cell(row, name):>25}" for row in block)
            lines.append(f"{f'{axis.label}, {axis.unit}':44}{cells}")
    for row in rows:
        lines.append(f"{row.source}: {row.method}; films: {len(row.films)}")
        reasons = dict.fromkeys(row.missing.values())
        for reason in reasons:
            names = ", ".join(AXES[name].label for name, why in row.missing.items() if why == reason)
            lines.append(f"  missing: {names}: {reason}")
    return lines


def _cell(row: Axes, name: str) -> str:
    if name not in row.scores:
        return "-"
    estimate, scale = row.scores[name], 100 if AXES[name].unit == PERCENT else 1
    interval = f" [{scale * estimate.low:.1f}, {scale * estimate.high:.1f}]"
    return f"{scale * estimate.mean:.1f}" + interval * (len(row.films) > 1)  # one film knows no interval
