"""Sample sheets of the causal student: next shots of held-out stories behind their true history."""

from __future__ import annotations

from pathlib import Path

import torch

from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.text.tiny import TinyTextEncoder
from shotstream.training.data.batches import Condition, encode
from shotstream.training.data.latents import LatentStories
from shotstream.training.method.conditioning import route_frames
from shotstream.training.method.draws import TorchDraws
from shotstream.training.method.rollout import RolloutSettings, self_forcing_rollout
from shotstream.training.stages.sheets import to_uint8, write_sheet
from shotstream.training.stages.trainer import step_generator


@torch.no_grad()
def write_student_sheet(
    model: Transformer,
    text: TinyTextEncoder,
    vae: TinyVAE,
    stories: LatentStories,
    path: Path,
    frames: int = 9,
    rows: int = 6,
) -> None:
    """Row: last history frame, first, middle and last generated frame, the true last frame."""
    config = model.config
    device = next(model.parameters()).device
    conditions: list[Condition] = []
    shots = [1 + i % (stories.plan.shots - 1) for i in range(min(rows, len(stories)))]
    for story, shot in enumerate(shots):
        context, context_shots = stories.context(story, shot, config.context_frames)
        routing = route_frames(context_shots, frames, shot, shot + 1, context_frames=config.context_frames)
        conditions.append(Condition(context, routing, stories.captions(story, list(range(shot + 1)), None)))
    conditioning = encode(conditions, text, device)
    schedule = NoiseSchedule(config.shift, device)
    steps = schedule.warp(config.nominal_steps)
    made = self_forcing_rollout(
        model, schedule, steps, conditioning, frames, len(steps) - 1, TorchDraws(step_generator(5, 0, device),
        device=device, noise_share=config.noise_share),
        with_gradient=False, settings=RolloutSettings(renoise_clean=False),
    )  # fmt: skip
    table = []
    for i, (story, shot) in enumerate(enumerate(shots)):
        video = to_uint8(vae.decode(made[i : i + 1]))[0]
        truth = to_uint8(vae.decode(stories.clip(story, shot, frames)[None].to(device)))[0]
        history = to_uint8(vae.decode(conditions[i].context[None, -1:].to(device)))[0, 0]
        last = len(video) - 1
        table.append((conditions[i].captions[-1], [history, video[0], video[last // 2], video[last], truth[-1]]))
    write_sheet(table, path)
