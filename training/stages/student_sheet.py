"""Sample sheets of the causal student: next shots of held-out stories behind their true history."""

from __future__ import annotations

from pathlib import Path

import torch

from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.data.batches import Condition, encode
from shotstream.training.data.stories import TrainingStories
from shotstream.training.distributed.scale import Scale
from shotstream.training.method.conditioning import route_frames
from shotstream.training.method.draws import TorchDraws
from shotstream.training.method.rollout import RolloutSettings, self_forcing_rollout
from shotstream.training.stages.given import Codec, FrozenText
from shotstream.training.stages.sheets import shown, to_uint8, write_sheet
from shotstream.training.stages.trainer import step_generator


@torch.no_grad()
def write_student_sheet(
    model: Transformer,
    text: FrozenText,
    vae: Codec,
    stories: TrainingStories,
    path: Path | None,
    scale: Scale,
    frames: int = 9,
    rows: int = 6,
) -> None:
    """Row: last history frame, first, middle and last generated frame, the true last frame.

    ``path`` None generates and writes nothing: what other processes do while the first one draws the sheet.
    """
    config = model.config
    device = next(model.parameters()).device
    schedule = NoiseSchedule(config.shift, device)
    steps = schedule.warp(config.nominal_steps)
    generator = step_generator(5, 0, device)
    draws = TorchDraws(generator, device=device, noise_offset=config.noise_offset, patch=config.patch[1:])
    table = []
    for story, shot in shown(stories, rows):
        context, context_shots = stories.context(story, shot, config.context_frames)
        routing = route_frames(context_shots, frames, shot, shot + 1, context_frames=config.context_frames)
        condition = Condition(context, routing, stories.captions(story, list(range(shot + 1)), None))
        with scale.autocast(device):
            made = self_forcing_rollout(
                model, schedule, steps, encode([condition], text, device), frames, len(steps) - 1, draws,
                with_gradient=False, settings=RolloutSettings(renoise_clean=False),
            )  # fmt: skip
        if path is None:
            continue
        video = to_uint8(vae.decode(made.float()))[0]
        truth = to_uint8(vae.decode(stories.clip(story, shot, frames)[None].to(device)))[0]
        history = to_uint8(vae.decode(context[None, -1:].to(device)))[0, 0]
        last = len(video) - 1
        table.append((condition.captions[-1], [history, video[0], video[last // 2], video[last], truth[-1]]))
    if path is not None:
        write_sheet(table, path)
