"""Self-forcing roll-out of one shot: the generator makes a shot from its own outputs, as it does when it plays.

What is here: the chunk loop of training, which differs from the runtime's in four ways. It stops each chunk at a
common exit step; it re-noises the result by sigma(0) before the clean pass; gradient flows through the exit step
only; and the cached keys and values are straight-through: later chunks read the clean pass's values while their
gradient reaches the exit step's. What is not here: losses and the choice of the exit step.

Source: `pipeline/self_forcing_frameconcat_training.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shotstream.runtime.model.cache import RecordingKeys
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import TextKV, Transformer
from shotstream.training.method.conditioning import Conditioning
from shotstream.training.method.draws import Draws

Keys = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class RolloutSettings:
    """Switches of the roll-out; the defaults are the reference's behaviour in float32.

    detach_cache: later chunks send no gradient into earlier ones (an ablation; the reference does not).
    renoise_clean: add noise of level sigma(0) before the clean pass; inference does not.
    local_cache: off, no chunk sees those before it in its shot (an ablation: the global cache alone).
    round_timesteps: hand the network bfloat16-rounded timesteps and convert to x0 with their nearest sigma, as
    the reference's FSDP mixed precision does; re-noising keeps the exact ones. Off by
    default, so that training and inference see the same timesteps.
    """

    detach_cache: bool = False
    renoise_clean: bool = True
    round_timesteps: bool = False
    local_cache: bool = True


DEFAULT = RolloutSettings()


def straight_through(clean: Tensor, exit_: Tensor) -> Tensor:
    """The value of `clean` with the gradient of `exit_`."""
    return clean.detach() + (exit_ - exit_.detach())


class ShotPasses:
    """One roll-out: the model, the conditions shared by its passes and the keys gathered so far."""

    def __init__(self, model: Transformer, conditioning: Conditioning, text_kv: TextKV) -> None:
        self.model = model
        self.conditioning = conditioning
        self.text_kv = text_kv
        self.past: Keys | None = None

    def run(self, z_BFCHW: Tensor, t: Tensor, first: int, *, kv_only: bool = False) -> tuple[Tensor, Keys]:
        """One pass over frames that start at `first` (context included); returns the flow and the own keys."""
        batch, frames = z_BFCHW.shape[:2]
        positions = torch.arange(first, first + frames, device=z_BFCHW.device).expand(batch, frames)
        flags, index = self.conditioning.frames(first, frames)
        keys = RecordingKeys(self.past)
        t_BF = t.to(z_BFCHW.device).expand(batch, frames)
        flow = self.model(z_BFCHW, t_BF, self.text_kv, index, positions, flags, keys=keys, kv_only=kv_only)
        return flow, list(keys.own)

    def remember(self, own: Keys) -> None:
        """Appends a chunk's (or the context's) keys to what later passes see."""
        if self.past is None:
            self.past = own
        else:
            self.past = [
                (torch.cat([k_past, k], dim=1), torch.cat([v_past, v], dim=1))
                for (k_past, v_past), (k, v) in zip(self.past, own, strict=True)
            ]


def self_forcing_rollout(
    model: Transformer,
    schedule: NoiseSchedule,
    steps: Tensor,
    conditioning: Conditioning,
    frames: int,
    exit_step: int,
    draws: Draws,
    *,
    with_gradient: bool = True,
    settings: RolloutSettings = DEFAULT,
) -> Tensor:
    """Latents of one shot, [B, frames, C, H, W]: every chunk's x0 prediction at `exit_step`.

    `steps` are warped timesteps, highest first; `exit_step` is in 0..len(steps)-1. With `with_gradient`, the
    result carries gradient of every chunk's exit pass (and of the text embedding); the context pass, the steps
    before the exit and the clean passes never do.

    Raises ValueError if `frames` is not a multiple of the model's chunk or `exit_step` is out of range.
    """
    chunk = model.config.chunk_frames
    if frames % chunk:
        raise ValueError(f"a roll-out of {frames} frames is not a whole number of chunks of {chunk}")
    if not 0 <= exit_step < len(steps):
        raise ValueError(f"exit step {exit_step} is not one of the {len(steps)} denoising steps")
    context = conditioning.context_BFCHW
    zero = torch.zeros((), device=context.device)
    remembered = torch.full((), model.config.context_noise, device=context.device)
    steps = steps.to(context.device)
    seen = steps.bfloat16().float() if settings.round_timesteps else steps

    with torch.set_grad_enabled(with_gradient):
        shot = ShotPasses(model, conditioning, model.embed_captions(conditioning.captions_NLD))
    with torch.no_grad():
        shot.remember(shot.run(context, zero, 0, kv_only=True)[1])

    noise_BFCHW = draws.shot_noise((context.shape[0], frames, *context.shape[2:]))
    output: list[Tensor] = []
    for number, start in enumerate(range(0, frames, chunk)):
        x = noise_BFCHW[:, start : start + chunk]
        shape = tuple(x.shape)
        first = conditioning.context_frames + start
        with torch.no_grad():
            for i in range(exit_step):
                x0 = schedule.to_x0(x, shot.run(x, seen[i], first)[0], seen[i])
                x = schedule.add_noise(x0, draws.renoise(shape, number, i), steps[i + 1])
        with torch.set_grad_enabled(with_gradient):
            flow, exit_keys = shot.run(x, seen[exit_step], first)
            x0 = schedule.to_x0(x, flow, seen[exit_step])
        output.append(x0)
        if start + chunk == frames or not settings.local_cache:
            continue  # nothing reads this chunk's keys
        with torch.no_grad():
            clean = x0.detach()
            if settings.renoise_clean or model.config.context_noise:
                clean = schedule.add_noise(clean, draws.clean_noise(shape, number), remembered)
            clean_keys = shot.run(clean, remembered, first, kv_only=True)[1]
        if with_gradient and not settings.detach_cache:
            with torch.enable_grad():
                clean_keys = [
                    (straight_through(k_clean, k_exit), straight_through(v_clean, v_exit))
                    for (k_clean, v_clean), (k_exit, v_exit) in zip(clean_keys, exit_keys, strict=True)
                ]
                shot.remember(clean_keys)
        else:
            shot.remember(clean_keys)
    return torch.cat(output, dim=1)
