"""The paper's axes on films of any kind, by comparing features of frames, as VBench does; cuts by a cut finder.

A shot is what was asked for, from its first frame to its last: a cut at the wrong place lowers consistency too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shotstream.training.evaluation.axes import NOT_TIMED, Axes, FilmTallies, cut_tallies, make_axes, pace_tallies
from shotstream.training.evaluation.cuts import CutFinder
from shotstream.training.evaluation.features import Features, TextFeatures, Vectors, knows_text
from shotstream.training.evaluation.video import (
    Asked,
    asked_cuts,
    check_readable,
    read_asked,
    read_frames,
)


@dataclass(frozen=True)
class Extractors:
    """What compares subjects, backgrounds, and captions with frames; None: that axis is missing. `names` for people."""

    subject: Features | None = None
    background: Features | None = None
    text: TextFeatures | None = None
    names: str = "no features"


def extractors_of(named: Sequence[tuple[str, Features]]) -> Extractors:
    """The first is for subjects, the last for backgrounds, the last that knows text for captions, as in "dino,clip"."""
    if not named:
        return Extractors()
    (first, subject), (last, background) = named[0], named[-1]
    names = f"subjects by {first}, backgrounds by {last}"
    for name, features in reversed(named):
        if knows_text(features):
            return Extractors(subject, background, features, f"{names}, captions by {name}")
    return Extractors(subject, background, None, names)


def video_axes(source: str, films: Sequence[Path], extractors: Extractors, find: CutFinder, seed: int = 0,
               progress: Callable[[int, int], None] | None = None) -> Axes:  # fmt: skip
    """All axes over these mp4s. All records and files are opened first: a UserError comes before the work."""
    asked = [read_asked(film) for film in films]
    for film, wanted in zip(films, asked, strict=True):
        check_readable(film, wanted)
    tallies = []
    for film, wanted in zip(films, asked, strict=True):
        tallies.append(film_tallies(read_frames(film, wanted), wanted, extractors, find))
        if progress is not None:
            progress(len(tallies), len(films))
    none = "no feature extractor was named with --features"
    reasons = dict.fromkeys(("intra_subject", "inter_subject", "intra_background", "inter_background"), none)
    if extractors.subject is not None:
        reasons = dict.fromkeys(("inter_subject", "inter_background"), "no film has two shots")
    reasons["prompt_following"] = none if extractors.subject is None else "no extractor named knows text; clip does"
    reasons |= {"fps": NOT_TIMED, "chunk_latency": NOT_TIMED}
    return make_axes(source, extractors.names, [str(film) for film in films], tallies, reasons, seed)


def film_tallies(frames_FHWC: NDArray[np.uint8], asked: Asked, extractors: Extractors, find: CutFinder) -> FilmTallies:
    """What one film adds to every axis; frames from the first asked shot's first to the last one's last."""
    begin = asked.shots[0].start
    shots = [frames_FHWC[shot.start - begin : shot.end - begin] for shot in asked.shots]
    tallies = cut_tallies(asked_cuts(asked), find(frames_FHWC)) | pace_tallies(asked.pace)
    seen: dict[int, list[Vectors]] = {}  # one extractor may serve several axes; its vectors are made once

    def vectors(features: Features) -> list[Vectors]:
        if id(features) not in seen:
            seen[id(features)] = [features.frames(shot) for shot in shots]
        return seen[id(features)]

    for part, features in (("subject", extractors.subject), ("background", extractors.background)):
        if features is not None:
            tallies[f"intra_{part}"] = intra_shot(vectors(features))
            tallies[f"inter_{part}"] = inter_shot(vectors(features))
    if (text := extractors.text) is not None:
        captions = text.captions([shot.caption for shot in asked.shots])
        tallies["prompt_following"] = prompt_following(vectors(text), captions)
    return tallies


def intra_shot(shots: Sequence[Vectors]) -> tuple[float, float]:
    """Consistency inside shots: the mean cosine of every frame to the first and to the one before, in its shot.

    This is VBench's subject consistency (DINO features) and background consistency (CLIP features), for each shot of
    a film. (Sum, frames); a shot's first frame is compared with nothing.
    """
    sums = [((shot[1:] @ shot[0]) + (shot[1:] * shot[:-1]).sum(1)).sum() / 2 for shot in shots]
    return float(sum(sums)), float(sum(len(shot) - 1 for shot in shots))


def inter_shot(shots: Sequence[Vectors]) -> tuple[float, float]:
    """Consistency between shots: the cosine of two shots' mean features, over all pairs of shots. (Sum, pairs)."""
    means = [shot.mean(0) / max(float(np.linalg.norm(shot.mean(0))), 1e-12) for shot in shots]
    cosines = [float(one @ other) for one, other in combinations(means, 2)]
    return sum(cosines), float(len(cosines))


def prompt_following(shots: Sequence[Vectors], captions: Vectors) -> tuple[float, float]:
    """The cosine of every frame with its own shot's caption, in a space of both. (Sum, frames)."""
    sums = [float((shot @ caption).sum()) for shot, caption in zip(shots, captions, strict=True)]
    return sum(sums), float(sum(len(shot) for shot in shots))
