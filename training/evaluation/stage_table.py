"""What every training stage gained: the stages of one run play the same stories, and are compared pair by pair.

Students play through the real runtime, the teacher through its own sampler. Weights are read from a run's folder.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch

from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.errors import UserError
from shotstream.runtime.presets import TINY_LATENT
from shotstream.runtime.runtime import Runtime
from shotstream.training.evaluation.cuts import CutFinder
from shotstream.training.evaluation.evaluate import (
    CODEC,
    RENDERS,
    WORDING,
    Observer,
    Parts,
    Progress,
    compare,
    drift_stories,
    evaluation_stories,
    measure,
    with_psnr,
)
from shotstream.training.evaluation.scores import Report, with_changes
from shotstream.training.evaluation.sources import (
    Captions,
    CodecPlayer,
    Frames,
    FramesOfStories,
    canonical,
    free_wording,
    one_by_one,
    renders_of,
    session_frames,
)
from shotstream.training.evaluation.teacher import TeacherPlayer, TeacherSettings
from shotstream.training.oracle.cuts import find_cuts
from shotstream.training.oracle.reader import Reader
from shotstream.training.weights import load_dit_weights, load_text_weights, trained_codec
from shotstream.training.world import Story

TEACHER = "teacher"
STAGES = (TEACHER, "ode", "intra", "inter", "continuation", "coupled")
"""In the order in which they are trained."""
GAIN = "stage"


@dataclass(frozen=True)
class RunChoice:
    """Which weights of which run, and how they play. `stages` empty: all that the folder holds."""

    run: Path
    stages: Sequence[str] = ()
    device: str = "cpu"
    engine: str = "eager"
    chunks: int = 3
    teacher: TeacherSettings = field(default_factory=TeacherSettings)

    def found(self) -> list[str]:
        """The stages to evaluate, in training order; UserError for one that is unknown or not there."""
        if not self.run.is_dir():
            raise UserError(f"there is no run at {self.run}; 'shotstream train all' makes one")
        for stage in self.stages:
            if stage not in STAGES:
                raise UserError(f"there is no stage {stage!r} to evaluate; stages are {', '.join(STAGES)}")
            if not self.weights(stage).is_file():
                raise UserError(f"{self.run} holds no weights of {stage}; run 'shotstream train {stage}' first")
        found = [s for s in STAGES if (s in self.stages if self.stages else self.weights(s).is_file())]
        if not found:
            raise UserError(f"{self.run} holds no trained stage; run 'shotstream train teacher' first")
        for part in (self.text, self.codec):
            if not part.is_file():
                raise UserError(f"{part} does not exist; run 'shotstream train {part.stem}' first")
        return found

    def weights(self, stage: str) -> Path:
        """The transformer that a stage left."""
        return self.run / stage / "dit.safetensors"

    @property
    def text(self) -> Path:
        """The text encoder, which all stages share."""
        return self.run / "text" / "text.safetensors"

    @property
    def codec(self) -> Path:
        """The video codec, which all stages share."""
        return trained_codec(self.run)


def evaluate_run(choice: RunChoice, stories: int = 40, seed: int = 0, *, parts: Parts | None = None,
                 reader: Reader | None = None, progress: Progress | None = None, observer: Observer | None = None,
                 cuts: CutFinder = find_cuts) -> Report:  # fmt: skip
    """Scores every stage of the run on the same stories with the same seeds; the ceilings stand first.

    Changes called "stage" are each stage's gain over the one before, and the last one's over the first.
    """
    found, parts = choice.found(), parts or Parts(paraphrase=False, drift=False)
    vae = TinyVAE.load(choice.codec).to(choice.device)
    frame_size = (TINY_LATENT[0] * vae.config.cell, TINY_LATENT[1] * vae.config.cell)
    codec = CodecPlayer(vae, frame_size, torch.device(choice.device)) if parts.codec else None
    sources: dict[str, FramesOfStories] = {RENDERS: one_by_one(renders_of)}
    if codec is not None:
        sources[CODEC] = one_by_one(codec)
    for stage in found:
        sources[stage] = stage_frames(choice, stage, seed)
        if parts.paraphrase:
            sources[_reworded(stage)] = stage_frames(choice, stage, seed, free_wording(seed))
    report = measure(
        sources, evaluation_stories(stories, seed), seed=seed, reader=reader, progress=progress, observer=observer,
        drift=drift_stories(max(2, stories // 2), seed) if parts.drift else (), drift_sources=(*found, RENDERS),
        cuts=cuts,
    )  # fmt: skip
    pairs = list(pairwise(found)) + ([(found[0], found[-1])] if len(found) > 2 else [])
    report = with_changes(report, [compare(report, GAIN, before, after) for before, after in pairs])
    if parts.paraphrase:
        report = with_changes(report, [compare(report, WORDING, stage, _reworded(stage)) for stage in found])
    return report if codec is None else with_psnr(report, codec)


def stage_frames(choice: RunChoice, stage: str, seed: int, captions: Captions = canonical) -> FramesOfStories:
    """The stage as a source. Its weights are loaded when it begins to play and freed at its end."""

    def student(stories: Sequence[Story]) -> Iterator[list[Frames]]:
        with stage_runtime(choice, stage) as runtime:
            yield from one_by_one(session_frames(runtime, seed, choice.chunks, captions))(stories)

    def teacher(stories: Sequence[Story]) -> Iterator[list[Frames]]:
        model = load_dit_weights(choice.weights(stage), stage).to(choice.device)
        text = load_text_weights(choice.text).to(choice.device)
        vae = TinyVAE.load(choice.codec).to(choice.device)
        yield from TeacherPlayer(model, text, vae, choice.teacher, captions)(stories)

    return teacher if stage == TEACHER else student


@contextmanager
def stage_runtime(choice: RunChoice, stage: str) -> Iterator[Runtime]:
    """A runtime that plays a student's weights as they lie in the run's folder."""
    with tempfile.TemporaryDirectory() as folder:
        for part, path in (("dit", choice.weights(stage)), ("text", choice.text), ("vae", choice.codec)):
            shutil.copyfile(path, Path(folder) / f"{part}.safetensors")
        with Runtime("tiny", weights=folder, device=choice.device, engine=choice.engine) as runtime:
            yield runtime


def _reworded(stage: str) -> str:
    return f"{stage}, free wording"
