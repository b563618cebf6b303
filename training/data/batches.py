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
from shotstream.training.data.stories import CaptionEncoder, TrainingStories, draw_shot
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
    if shot == 0 or rng.random() < context_drop:
        like = data.single(story, 0, 0)
        routing = route_frames([], frames, 0, 1, context_frames=config.context_frames, context_dropped=True)
        return Condition(
            like.new_zeros(config.context_frames, *like.shape), routing, data.captions(story, [shot], wording)
        )
    context, shots = data.context(story, shot, config.context_frames)
    routing = route_frames(shots, frames, shot, shot + 1, context_frames=config.context_frames)
    return Condition(context, routing, data.captions(story, list(range(shot + 1)), wording))


def encode(conditions: Sequence[Condition], text: CaptionEncoder, device: torch.device) -> Conditioning:
    """Join samples and encode their captions, each distinct text once."""
    distinct = list(dict.fromkeys(c for condition in conditions for c in condition.captions))
    rows = dict(zip(distinct, text.encode(distinct), strict=True))
    return Conditioning.batch(
        torch.stack([c.context for c in conditions]).to(device),
        [torch.stack([rows[caption] for caption in c.captions]).clone().to(device) for c in conditions],
        [c.routing for c in conditions],
    )
