"""What a step on true clips is made of: phases, samples drawn from stories of latents, and their batches.

For the teacher, and for the student's stage ``coupled``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.training.data.stories import TRIES, TrainingStories, draw_shot
from shotstream.training.distributed.accumulate import Part
from shotstream.training.method.conditioning import Conditioning, Routing, route_frames


@dataclass(frozen=True)
class Phase:
    """``steps`` steps of ``batch`` samples whose target has ``frames`` latents, behind ``context`` frames of history.

    Fewer context frames than the model's six are a random choice among the six, each at its own place: most of
    remembering is learnt from two at a third of the price. 0 leaves history out. A target of one latent is any frame of
    a shot, encoded alone, or, where samples come with their choices, one of the first chunk's latents at its own time;
    longer ones are the beginning of a shot.
    """

    steps: int
    batch: int
    frames: int
    context: int


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn: shares of dropped text, dropped history, first shots and freely worded captions, whether
    samples come with their choices, the share of steered ones among those of several chunks, and how many of the shots
    whose camera stands still are taken, as a share.
    """

    text_drop: float
    context_drop: float
    first_shot: float
    paraphrase: float
    choices: bool = False
    steered: float = 0.0
    still: float = 1.0


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase that a step belongs to; the last one for steps beyond all."""
    for phase in phases:
        if step < phase.steps:
            return phase
        step -= phase.steps
    return phases[-1]


@dataclass(frozen=True)
class Sample:
    """One training sample: clean target ``[F, C, H, W]`` and context latents, rotary positions of all frames (context
    first), routing of the same frames, its list of captions, the parts seen in the target, uint8
    ``[F, H, W, parts]``, and its choices (`TrainingStories.choices`), if they were asked for. Of a steered one the
    latents before ``begins`` are those of another shot of the story: what was shown when the caption came.
    """

    target: Tensor
    context: Tensor
    positions: tuple[int, ...]
    routing: Routing
    captions: list[str]
    text_dropped: bool
    parts: Tensor
    choices: Tensor | None = None
    begins: int = 0


@dataclass(frozen=True)
class Batch:
    """Stacked samples: latents, captions of all samples as one list with a mask ``[N, 1, 1]`` of those kept, and per
    frame (context first) flags, caption rows and positions, ``[B, F]`` each. Choices ``[B, N]`` if samples have them.
    ``asked [B, F]`` is 0 for target latents that are not to be predicted, else 1.
    """

    target: Tensor
    context: Tensor
    captions: list[str]
    kept: Tensor
    flags: Tensor
    rows: Tensor
    positions: Tensor
    parts: Tensor
    choices: Tensor | None
    asked: Tensor

    def conditioning(self, rows_NLD: Tensor) -> Conditioning:
        """Where the embedded captions are, what the samples are generated from."""
        on = rows_NLD.device
        return Conditioning(
            self.context.to(on), rows_NLD, self.flags.to(on), self.rows.to(on), self.positions.to(on)
        )  # fmt: skip


def draw_samples(
    sources: Sequence[TrainingStories], unread: Sequence[TrainingStories], drawing: Drawing, phase: Phase,
    rng: np.random.Generator, config: DiTConfig, parts: Sequence[Part],
) -> list[Sample]:  # fmt: skip
    """A step's whole batch, of which only the rows of this process's ``parts`` are read."""
    own = range(parts[0].start, parts[-1].stop)
    return [draw_sample(sources if i in own else unread, drawing, phase, rng, config) for i in range(phase.batch)]


def draw_sample(
    sources: Sequence[TrainingStories], drawing: Drawing, phase: Phase, rng: np.random.Generator, config: DiTConfig
) -> Sample:
    """Draw a story (from any source for single frames, from the first for clips), a shot and its history.

    Shot 0, dropped history and phases without context route alike. Shots that are too short for the phase are passed
    over; UserError if there seem to be no others.
    """
    data, story, shot, wording, text_dropped = _draw_target(sources, drawing, phase, rng)
    slots = config.context_frames
    first = begins = 0
    if phase.frames == 1 and drawing.choices and data.latents(story, shot):
        first = int(rng.integers(min(config.chunk_frames, data.latents(story, shot))))
        target, parts = data.clip(story, shot, first + 1)[-1:], data.clip_parts(story, shot, first + 1)[-1:]
    elif phase.frames == 1:
        position = 0 if drawing.choices else int(rng.integers(data.singles(story, shot)))
        target, parts = data.single(story, shot, position)[None], data.single_parts(story, shot, position)[None]
    else:
        target, parts = data.clip(story, shot, phase.frames), data.clip_parts(story, shot, phase.frames)
        if phase.frames > config.chunk_frames and rng.random() < drawing.steered:
            target, begins = _steered(data, story, shot, target, config.chunk_frames, rng)
    chosen = sorted(rng.choice(slots, min(phase.context, slots), replace=False).tolist())
    frames = (*chosen, *range(slots, slots + phase.frames))
    positions = (*chosen, *range(slots + first, slots + first + phase.frames))
    bare = shot == 0 or not phase.context or rng.random() < drawing.context_drop
    shown = 0 if bare else shot
    choices = data.choices(story, shot, shown, int(rng.integers(1 << 62))) if drawing.choices else None
    if bare:
        routing = Routing((0,) * len(chosen) + (1,) * phase.frames, (0,) * len(frames))
        empty = target.new_zeros(len(chosen), *target.shape[1:])
        captions = data.captions(story, [shot], wording)
        return Sample(target, empty, positions, routing, captions, text_dropped, parts, choices, begins)
    context, context_shots = data.context(story, shot, slots)
    whole = route_frames(context_shots, phase.frames, shot, shot + 1, context_frames=slots)
    routing = Routing(tuple(whole.flags[f] for f in frames), tuple(whole.captions[f] for f in frames))
    # Only captions that a frame reads: text costs as much as pictures here.
    read = sorted(set(routing.captions))
    routing = Routing(routing.flags, tuple(read.index(row) for row in routing.captions))
    captions = data.captions(story, read, wording)
    return Sample(target, context[chosen], positions, routing, captions, text_dropped, parts, choices, begins)


def _steered(
    data: TrainingStories, story: int, shot: int, target: Tensor, chunk: int, rng: np.random.Generator
) -> tuple[Tensor, int]:
    """The clip behind another shot's beginning, as an event finds it, and the latent from which on it is its own."""
    others = [s for s in range(data.shots(story)) if s != shot and data.latents(story, s) >= len(target)]
    if not others:
        return target, 0
    before = data.clip(story, others[int(rng.integers(len(others)))], len(target))
    begins = chunk * int(rng.integers(1, len(target) // chunk))
    return torch.cat([before[:begins], target[begins:]]), begins


def _draw_target(
    sources: Sequence[TrainingStories], drawing: Drawing, phase: Phase, rng: np.random.Generator
) -> tuple[TrainingStories, int, int, int | None, bool]:
    """Stories, story, shot, wording, and whether text is dropped."""
    for _ in range(TRIES):
        data, story = _draw_story(sources if phase.frames == 1 else sources[:1], rng)
        wording = int(rng.integers(1 << 30)) if rng.random() < drawing.paraphrase else None
        text_dropped = bool(rng.random() < drawing.text_drop)
        shots = data.shots(story)
        shot = draw_shot(shots, drawing.first_shot, rng) if phase.context else int(rng.integers(shots))
        if drawing.still < 1 and not data.camera_moves(story, shot) and rng.random() >= drawing.still:
            continue
        if phase.frames == 1 or data.latents(story, shot) >= phase.frames:
            return data, story, shot, wording, text_dropped
    raise UserError(f"no shot of {phase.frames} latents was found in {TRIES} draws; train on shorter clips")


def _draw_story(sources: Sequence[TrainingStories], rng: np.random.Generator) -> tuple[TrainingStories, int]:
    number = int(rng.integers(sum(len(s) for s in sources)))
    for source in sources:
        if number < len(source):
            return source, number
        number -= len(source)
    raise AssertionError("unreachable")


def batch_of(samples: Sequence[Sample], multiple: int = 1) -> Batch:
    """Stack samples. The caption list is padded (with repetitions) to a ``multiple``, so that compiled steps meet few
    different shapes.
    """
    captions: list[str] = []
    kept: list[float] = []
    rows_of: list[list[int]] = []
    for s in samples:
        rows_of.append([len(captions) + r for r in s.routing.captions])
        captions += s.captions
        kept += [0.0 if s.text_dropped else 1.0] * len(s.captions)
    while len(captions) % multiple:
        captions.append(captions[0])
        kept.append(0.0)
    return Batch(
        torch.stack([s.target for s in samples]),
        torch.stack([s.context for s in samples]),
        captions,
        torch.tensor(kept)[:, None, None],
        torch.tensor([s.routing.flags for s in samples]),
        torch.tensor(rows_of),
        torch.tensor([s.positions for s in samples]),
        torch.stack([s.parts for s in samples]),
        None if samples[0].choices is None else torch.stack([s.choices for s in samples if s.choices is not None]),
        torch.stack([(torch.arange(len(s.target)) >= s.begins).float() for s in samples]),
    )
