"""One training step's loss for each stage: network calls, draws and the pure losses put together.

What is here: the teacher's flow matching, the ODE regression, and the generator's and critic's halves of
distribution matching, for batches of any size. A batch of one with recorded draws equals the reference. What is
not here: optimisers, data, precision (callers set autocast), checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.method import losses
from shotstream.training.method.conditioning import Conditioning
from shotstream.training.method.draws import Draws
from shotstream.training.method.rollout import DEFAULT, RolloutSettings, self_forcing_rollout

TRAJECTORY_STEPS = (0, 13, 25, 37)
"""Steps of the 50-step sampler whose states have exactly the student's noise levels."""


def whole_sequence_flow(
    model: Transformer,
    z_BFCHW: Tensor,
    t_BF: Tensor,
    conditioning: Conditioning,
    mask: Tensor | None = None,
) -> Tensor:
    """Flow of context and target frames in one pass without a cache (teacher, scores, ODE regression)."""
    batch, frames = z_BFCHW.shape[:2]
    positions = conditioning.positions_BF
    if positions is None:
        positions = torch.arange(frames, device=z_BFCHW.device).expand(batch, frames)
    text_kv = model.embed_captions(conditioning.captions_NLD)
    flags, index = conditioning.frames(0, frames)
    return model(z_BFCHW, t_BF, text_kv, index, positions, flags, mask=mask)


def target_flow(model: Transformer, x_BFCHW: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
    """Flow of the target frames behind the clean context, one timestep for every frame (context included)."""
    z = torch.cat([conditioning.context_BFCHW.to(x_BFCHW.dtype), x_BFCHW], dim=1)
    t_BF = t_B[:, None].expand(z.shape[:2])
    return whole_sequence_flow(model, z, t_BF, conditioning)[:, conditioning.context_frames :]


def teacher_loss(
    model: Transformer, schedule: NoiseSchedule, x0_BFCHW: Tensor, conditioning: Conditioning, draws: Draws
) -> Tensor:
    """Stage 1: flow matching on the target frames, a uniform table entry per sample."""
    index = draws.timestep_index(x0_BFCHW.shape[0], len(schedule.timesteps)).to(x0_BFCHW.device)
    t_B = schedule.timesteps.to(x0_BFCHW.device)[index]
    noise = draws.target_noise(tuple(x0_BFCHW.shape))
    flow = target_flow(model, schedule.add_noise(x0_BFCHW, noise, t_B), t_B, conditioning)
    return losses.flow_matching_loss(flow, x0_BFCHW, noise, schedule.loss_weights.to(x0_BFCHW.device)[index])


def block_causal_mask(context_frames: int, frames: int, chunk: int, tokens: int, device: torch.device) -> Tensor:
    """[L, L] bool, True = may attend: context sees itself, a block sees context, earlier blocks and itself."""
    target_block = torch.arange(frames, device=device) // chunk + 1
    block = torch.cat([torch.zeros(context_frames, dtype=target_block.dtype, device=device), target_block])
    block = block.repeat_interleave(tokens)
    return block[:, None] >= block[None, :]


@dataclass(frozen=True)
class OdeInputs:
    """The mixed-noise input of the ODE regression: context first, then blocks at their own noise levels."""

    z_BFCHW: Tensor
    t_BF: Tensor


def ode_inputs(
    states_BSFCHW: Tensor, steps: Tensor, block_index_BN: Tensor, context_BFCHW: Tensor, chunk: int
) -> OdeInputs:
    """Picks for every block one state of the trajectory; `steps[i]` is the timestep of state i (0 for the last)."""
    index_BF = block_index_BN.repeat_interleave(chunk, dim=1).to(states_BSFCHW.device)
    picked = index_BF[:, None, :, None, None, None].expand(-1, 1, -1, *states_BSFCHW.shape[3:])
    blocks = torch.gather(states_BSFCHW, 1, picked)[:, 0]
    t_BF = steps.to(states_BSFCHW.device)[index_BF]
    t_context = t_BF.new_zeros(context_BFCHW.shape[:2])
    return OdeInputs(torch.cat([context_BFCHW.to(blocks.dtype), blocks], dim=1), torch.cat([t_context, t_BF], dim=1))


def ode_loss(
    model: Transformer,
    schedule: NoiseSchedule,
    states_BSFCHW: Tensor,
    steps: Tensor,
    conditioning: Conditioning,
    draws: Draws,
    *,
    reference_nan: bool = False,
) -> losses.OdeLoss:
    """Stage 2.1: from blocks at mixed noise levels, predict the end of the teacher's trajectory.

    states_BSFCHW: trajectory states, the last one is the clean end. steps: their timesteps, the last one 0.
    Raises ValueError if frames are not whole blocks or states and steps differ in number.
    """
    batch, count, frames = states_BSFCHW.shape[:3]
    chunk = model.config.chunk_frames
    if frames % chunk or count != len(steps):
        raise ValueError(f"{frames} frames in blocks of {chunk}, {count} states for {len(steps)} timesteps")
    block_index = draws.block_index(batch, frames // chunk, count)
    context = conditioning.context_frames
    inputs = ode_inputs(states_BSFCHW, steps, block_index, conditioning.context_BFCHW, chunk)
    tokens = model.config.tokens_per_frame(*states_BSFCHW.shape[-2:])
    mask = block_causal_mask(context, frames, chunk, tokens, states_BSFCHW.device)
    flow = whole_sequence_flow(model, inputs.z_BFCHW, inputs.t_BF, conditioning, mask)
    x0 = schedule.to_x0(inputs.z_BFCHW, flow, inputs.t_BF)[:, context:]
    return losses.ode_regression_loss(x0, states_BSFCHW[:, -1], inputs.t_BF[:, context:], reference_nan=reference_nan)


@dataclass(frozen=True)
class DmdSettings:
    """guidance: reference scale of the real score (weight guidance + 1). t_range: clamp of the score timestep."""

    guidance: float = 3.0
    t_range: tuple[float, float] = (20.0, 980.0)
    rollout: RolloutSettings = DEFAULT


DMD_DEFAULT = DmdSettings()


@dataclass(frozen=True)
class DmdLoss:
    """`loss` to differentiate, the roll-out `x0_BFCHW` (detached) that becomes history, and the timestep drawn."""

    loss: Tensor
    x0_BFCHW: Tensor
    t_B: Tensor


def _score_timestep(
    schedule: NoiseSchedule, batch: int, draws: Draws, settings: DmdSettings, device: torch.device
) -> Tensor:
    # Uniform in the table index, hence strongly skewed to high noise; the reference does the same.
    index = draws.timestep_index(batch, len(schedule.timesteps)).to(device)
    return schedule.timesteps.to(device)[index].clamp(*settings.t_range)


def dmd_generator_loss(
    generator: Transformer,
    real: Transformer,
    fake: Transformer,
    schedule: NoiseSchedule,
    steps: Tensor,
    conditioning: Conditioning,
    negative_1LD: Tensor,
    frames: int,
    draws: Draws,
    *,
    settings: DmdSettings = DMD_DEFAULT,
) -> DmdLoss:
    """Stages 2.2, the generator's half: a roll-out, and :func:`score_generator` of it."""
    exit_step = draws.exit_step(len(steps))
    x = self_forcing_rollout(
        generator, schedule, steps, conditioning, frames, exit_step, draws, settings=settings.rollout
    )
    return score_generator(x, real, fake, schedule, conditioning, negative_1LD, draws, settings=settings)


def score_generator(
    x_BFCHW: Tensor,
    real: Transformer,
    fake: Transformer,
    schedule: NoiseSchedule,
    conditioning: Conditioning,
    negative_1LD: Tensor,
    draws: Draws,
    *,
    settings: DmdSettings = DMD_DEFAULT,
) -> DmdLoss:
    """Moves generated shots, which carry gradient, from where the critic sees them to where the teacher wants them."""
    x = x_BFCHW
    with torch.no_grad():
        t_B = _score_timestep(schedule, x.shape[0], draws, settings, x.device)
        x_t = schedule.add_noise(x.detach(), draws.target_noise(tuple(x.shape)), t_B)

        def score(model: Transformer, given: Conditioning) -> Tensor:
            return schedule.to_x0(x_t, target_flow(model, x_t, t_B, given), t_B)

        fake_x0 = score(fake, conditioning)
        real_x0 = losses.guided(
            score(real, conditioning),
            score(real, conditioning.with_captions(negative_1LD)),
            settings.guidance,
        )
        gradient = losses.dmd_gradient(x, fake_x0, real_x0)
    return DmdLoss(losses.dmd_generator_loss(x, gradient), x.detach(), t_B)


def dmd_critic_loss(
    generator: Transformer,
    fake: Transformer,
    schedule: NoiseSchedule,
    steps: Tensor,
    conditioning: Conditioning,
    frames: int,
    draws: Draws,
    *,
    settings: DmdSettings = DMD_DEFAULT,
) -> DmdLoss:
    """Stages 2.2, the critic's half: a roll-out without gradient, and :func:`score_critic` on it."""
    exit_step = draws.exit_step(len(steps))
    x = self_forcing_rollout(
        generator, schedule, steps, conditioning, frames, exit_step, draws,
        with_gradient=False, settings=settings.rollout,
    )  # fmt: skip
    return score_critic(x, fake, schedule, conditioning, draws, settings=settings)


def score_critic(
    x_BFCHW: Tensor,
    fake: Transformer,
    schedule: NoiseSchedule,
    conditioning: Conditioning,
    draws: Draws,
    *,
    settings: DmdSettings = DMD_DEFAULT,
) -> DmdLoss:
    """Keeps the critic a flow model of what the generator makes now; `x_BFCHW` has no gradient.

    The critic's flow goes through its x0 prediction and back, as in the reference; in bf16 that costs precision at
    small noise levels, in float32 nothing that matters.
    """
    x = x_BFCHW
    t_B = _score_timestep(schedule, x.shape[0], draws, settings, x.device)
    noise = draws.target_noise(tuple(x.shape))
    x_t = schedule.add_noise(x, noise, t_B)
    x0 = schedule.to_x0(x_t, target_flow(fake, x_t, t_B, conditioning), t_B)
    flow = schedule.to_flow(x_t, x0, t_B)
    return DmdLoss(losses.dmd_critic_loss(flow, x, noise), x, t_B)
