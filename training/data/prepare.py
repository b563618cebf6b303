"""Preparing videos: cut into shots, pick frames, encode pictures and captions, write one file per video.

One video is one unit of work: what is written is complete, what exists and still fits is kept, what cannot be used is
reported and left out. Reading sources, pixels and files is done elsewhere in this package.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor

from shotstream.runtime.decoders.common import TIME_FACTOR
from shotstream.runtime.errors import UserError
from shotstream.runtime.sinks.base import replace_file
from shotstream.runtime.storyline import full_caption
from shotstream.training.data.clips import to_pixels
from shotstream.training.data.prepared import (
    STORIES,
    DatasetInfo,
    PreparedShot,
    PreparedVideo,
    claim,
    read_header,
    write_video,
)
from shotstream.training.data.shot_plan import Pace, ShotPlan, plan_story
from shotstream.training.data.video_frames import find_shots, frame_rate, read_frames
from shotstream.training.data.video_model import VideoModel
from shotstream.training.data.video_sources import VideoSource
from shotstream.training.data.videos import BadVideo, MultiShotVideo, Refused

SHOTS, FITS = ("auto", "given", "detect"), ("stretch", "crop")


@dataclass(frozen=True)
class PrepareOptions:
    """``shots``: "given" takes the description's intervals, "detect" looks for cuts, "auto" detects where none are
    given. ``caption``: of videos and shots without one. ``frames``: the most of a clip, None for the model's.
    ``max_shots``: detected shots are told as stories of so many; given ones stay together. ``pace`` and ``fit``: see
    ``shot_plan.Pace`` and ``video_frames.read_frames``.
    """

    shots: str = "auto"
    caption: str = ""
    frames: int | None = None
    max_shots: int = 7
    pace: str = "model"
    fit: str = "stretch"

    def __post_init__(self) -> None:
        for value, allowed, what in ((self.shots, SHOTS, "shots are"), (self.fit, FITS, "the fit is")):
            if value not in allowed:
                raise UserError(f"{what} one of {', '.join(allowed)}, not {value!r}")
        if self.max_shots < 1:
            raise UserError(f"a story has at least one shot, not {self.max_shots}")


@dataclass
class Report:
    """What a run did; ``notes`` are (video, what was missing or done without)."""

    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    shots: int = 0
    frames: int = 0
    """Pixel frames that were encoded, single ones included."""
    seconds: float = 0.0

    @property
    def usable(self) -> int:
        """Videos of this run that can be trained on."""
        return len(self.made) + len(self.kept)

    def save(self, path: Path) -> None:
        """Write it as json."""
        replace_file(path, msgspec.json.format(msgspec.json.encode(asdict(self))))


@dataclass(frozen=True)
class _Told:
    """A shot with the words it is learnt with."""

    interval: tuple[int, int]
    caption: str


Tell = Callable[[str, str, bool], None]
"""(video, what happened, whether this video is done)."""


def prepare_videos(
    source: VideoSource, out: Path, model: VideoModel, options: PrepareOptions, tell: Tell, report: Report
) -> None:
    """Prepare every video of ``source`` into ``out``, filling ``report`` on the way, also when it is interrupted.

    Raises UserError where the whole run is at fault: another kind of folder, no space left.
    """
    pace = Pace(options.frames or model.frames, model.fps, options.pace)
    claim(out, _info(model, pace, options.fit))
    began = time.monotonic()
    for video in source.videos:
        try:
            if isinstance(video, Refused):
                raise BadVideo(video.reason)
            done = _prepare_one(video, out, model, pace, options, tell, report)
        except (BadVideo, OSError) as error:
            report.refused.append(Refused(video.name, str(error)))
            done = f"refused: {error}"
        report.seconds = time.monotonic() - began
        tell(video.name, done, True)


def _info(model: VideoModel, pace: Pace, fit: str) -> DatasetInfo:
    config = model.config
    return DatasetInfo(
        model=model.name,
        weights=model.weights,
        latent=(config.channels, *model.latent_size),
        text=(config.text_len, config.text_dim),
        fps=model.fps,
        frames=pace.frames,
        context=config.context_frames,
        pace=pace.kind,
        fit=fit,
    )


def _prepare_one(
    video: MultiShotVideo, out: Path, model: VideoModel, pace: Pace, options: PrepareOptions, tell: Tell, report: Report
) -> str:
    """Encode and write one video unless it is there; a few words on what was done. Raises BadVideo."""
    path = out / STORIES / _file_name(video.name)
    fingerprint = _fingerprint(video, options)
    notes = []
    if path.exists():
        if _fits(path, fingerprint):
            report.kept.append(video.name)
            return "kept"
        notes.append("made anew: the video, its description or the options changed, or the file was damaged")
    given = video.description.fps
    fps = Fraction(given).limit_denominator(1001) if given else frame_rate(video.video)
    told = _tell_shots(video, options, notes)
    plans = [plan_story([shot.interval for shot in story], fps, pace, model.config.context_frames) for story in told]
    flat = [plan for story in plans for plan in story]
    if max(len(plan.clip) for plan in flat) < model.shortest:
        raise BadVideo(f"it is too short: no shot has {model.shortest} frames at {model.fps} a second")
    captions = [shot.caption for story in told for shot in story]
    tensors = {f"text.{i}": rows for i, rows in enumerate(_embed(model, captions))}
    for i, (clip, singles) in enumerate(_encode(video, flat, told[-1][-1].interval[1], model, options, tell)):
        tensors |= {f"clip.{i}": clip, f"singles.{i}": singles}
    stories = tuple(
        tuple(_prepared(shot, plan) for shot, plan in zip(story, planned, strict=True))
        for story, planned in zip(told, plans, strict=True)
    )
    source = video.description.source or video.name
    write_video(path, tensors, PreparedVideo(video.name, fingerprint, source, float(fps), stories))
    frames = sum(len(plan.clip) + len(plan.singles) for plan in flat)
    report.made.append(video.name)
    report.notes += [(video.name, note) for note in notes]
    report.shots += len(flat)
    report.frames += frames
    return f"{len(flat)} shots, {frames} frames"


def _file_name(name: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9]+", "_", name)[-80:].strip("_")
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.safetensors"


def _fingerprint(video: MultiShotVideo, options: PrepareOptions) -> str:
    """Of all that decides a file's content and is not the same for the whole folder."""
    parts = [video.description, video.size, options.shots, options.caption, options.max_shots]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _fits(path: Path, fingerprint: str) -> bool:
    try:
        return read_header(path).fingerprint == fingerprint
    except UserError:
        return False


def _tell_shots(video: MultiShotVideo, options: PrepareOptions, notes: list[str]) -> list[list[_Told]]:
    """Stories of shots with whole captions; what was missing goes into ``notes``."""
    described = video.description
    whole = described.global_caption or options.caption
    captions = [shot.caption for shot in described.shots]
    if not whole and not any(captions):
        raise BadVideo("it has no caption; describe it in a json beside it, or give one for all with --caption")
    detect = options.shots == "detect" or (options.shots == "auto" and not described.intervals)
    if not detect and not described.intervals:
        raise BadVideo("no intervals of its shots are given; use --shots auto to look for cuts")
    intervals = find_shots(video.video) if detect else described.intervals
    described_each = len(captions) == len(intervals)
    if not described_each:
        if captions:
            notes.append(f"its {len(captions)} shot captions were left out: {len(intervals)} shots were found")
        captions = [""] * len(intervals)
    if not whole and not any(captions):
        raise BadVideo(
            f"its {len(described.shots)} shot captions do not fit the {len(intervals)} shots that were found"
        )
    if not whole:
        notes.append("it has no global caption")
    if "" in captions:
        instead = "--caption" if options.caption else "the global caption"
        notes.append(f"{captions.count('')} of {len(captions)} shots have no caption of their own; read: {instead}")
    # Shots that were told together stay together; what detection finds is only a sequence.
    length = len(intervals) if described_each else options.max_shots
    shots = list(zip(intervals, captions, strict=True))
    return [
        [
            _Told(i, full_caption(whole, k, c or options.caption or whole))
            for k, (i, c) in enumerate(shots[at : at + length])
        ]
        for at in range(0, len(shots), length)
    ]


def _embed(model: VideoModel, captions: list[str]) -> list[Tensor]:
    """The rows of every caption without the zero rows behind them; BadVideo for one that would be cut."""
    limit = model.config.text_len
    for caption in captions:
        if (count := model.text.tokens(caption)) > limit:
            raise BadVideo(f"a caption has {count} tokens, but the model reads {limit}: {caption[:60]!r}...")
    embedded = model.text.encode(captions).cpu()
    ends = [int(rows.any(-1).nonzero().max()) + 1 for rows in embedded]
    return [rows[:end].clone() for rows, end in zip(embedded, ends, strict=True)]


@torch.inference_mode()
def _encode(
    video: MultiShotVideo, plans: list[ShotPlan], end: int, model: VideoModel, options: PrepareOptions, tell: Tell
) -> Iterator[tuple[Tensor, Tensor]]:
    """Per shot the latents of its clip and of its single frames, float16; pictures of one shot at a time."""
    numbers = [sorted({*plan.clip, *plan.singles}) for plan in plans]
    frames = read_frames(video.video, [n for shot in numbers for n in shot], end, model.frame_size, options.fit)
    for i, (plan, of_shot) in enumerate(zip(plans, numbers, strict=True)):
        tell(video.name, f"shot {i + 1} of {len(plans)}", False)
        pictures = dict(zip(of_shot, frames, strict=False))  # takes as many frames as the shot needs
        clip, singles = (
            to_pixels(np.stack([pictures[n] for n in wanted])[None]).to(model.device)
            for wanted in (plan.clip, plan.singles)
        )
        latents = model.codec.encode(clip)[0], model.codec.encode_frames(singles[0])
        yield latents[0].half().cpu().contiguous(), latents[1].half().cpu().contiguous()
    next(frames, None)  # decodes to the end, which a described shot may not reach


def _prepared(shot: _Told, plan: ShotPlan) -> PreparedShot:
    latents = 1 + len(plan.clip) // TIME_FACTOR
    return PreparedShot(shot.caption, shot.interval, plan.length, plan.positions, latents)
