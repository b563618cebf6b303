"""Batches of conditions for the distillation stages: context, captions and routing of drawn samples, text encoded.

The teacher stage draws its samples in ``teacher_stage`` because its text encoder is still learning; here it is frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.training.data.stories import TRIES, CaptionEncoder, TrainingStories, draw_shot
from shotstream.training.method.conditioning import Conditioning, Routing, route_frames


@dataclass(frozen=True)
class Condition:
    """One sample's conditions before encoding: context latents, routing and its list of captions."""

    context: Tensor
    routing: Routing
    captions: list[str]


def draw_condition(
    data: TrainingStories,
    config: DiTConfig,
    frames: int,
    rng: np.random.Generator,
    *,
    first_shot: float = 0.2,
    context_drop: float = 0.1,
    paraphrase: float = 0.7,
) -> Condition:
    """A story, one of its shots and its ground-truth history (none for first shots and dropped contexts)."""
    story = int(rng.integers(len(data)))
    wording = int(rng.integers(1 << 30)) if rng.random() < paraphrase else None
    shot = draw_shot(data.shots(story), first_shot, rng)
    bare = shot == 0 or rng.random() < context_drop
    return _condition(data, config, frames, story, shot, wording, bare)


def draw_clip(
    data: TrainingStories, config: DiTConfig, frames: int, rng: np.random.Generator, *, context_drop: float = 0.1
) -> tuple[Tensor, Condition]:
    """The first latents ``[frames, C, H, W]`` of a shot that has as many, and its conditions as above.

    UserError if there seems to be none.
    """
    for _ in range(TRIES):
        story = int(rng.integers(len(data)))
        wording = int(rng.integers(1 << 30)) if rng.random() < 0.7 else None
        shot = draw_shot(data.shots(story), 0.2, rng)
        bare = shot == 0 or rng.random() < context_drop
        if data.latents(story, shot) >= frames:
            return data.clip(story, shot, frames), _condition(data, config, frames, story, shot, wording, bare)
    raise UserError(f"no shot of {frames} latents was found in {TRIES} draws; train on shorter clips")


def _condition(
    data: TrainingStories, config: DiTConfig, frames: int, story: int, shot: int, wording: int | None, bare: bool
) -> Condition:
    if bare:
        like = data.single(story, 0, 0)
        routing = route_frames([], frames, 0, 1, context_frames=config.context_frames, context_dropped=True)
        return Condition(
            like.new_zeros(config.context_frames, *like.shape), routing, data.captions(story, [shot], wording)
        )
    context, shots = data.context(story, shot, config.context_frames)
    routing = route_frames(shots, frames, shot, shot + 1, context_frames=config.context_frames)
    return Condition(context, routing, data.captions(story, list(range(shot + 1)), wording))


def encode(conditions: Sequence[Condition], text: CaptionEncoder, device: torch.device) -> Conditioning:
    """Join samples and encode their captions."""
    rows = embed([caption for c in conditions for caption in c.captions], text).to(device)
    return Conditioning.batch(
        torch.stack([c.context for c in conditions]).to(device),
        list(rows.split([len(c.captions) for c in conditions])),
        [c.routing for c in conditions],
    )


def embed(captions: Sequence[str], text: CaptionEncoder) -> Tensor:
    """Embeddings ``[N, L, D]`` of captions, each distinct text encoded once."""
    distinct = list(dict.fromkeys(captions))
    places = {caption: i for i, caption in enumerate(distinct)}
    return text.encode(distinct)[[places[caption] for caption in captions]]
