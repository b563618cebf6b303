"""Regression behind a clean history: each block sees the finished blocks before it, as it will when it plays.

The reference's regression (`objectives.ode_loss`) shows a block its predecessors at random noise levels; only one in
five is clean, while a playing student never sees any that is not. Here every sample holds its blocks twice: clean, as
what later blocks look back at, and noisy, as what is to be predicted.

Two losses: on the teacher's trajectories, for all blocks (stage `ode`), and on true clips, for those that have a past
(stage `continuation`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shotstream.runtime.model.attention import Spans
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.method import losses
from shotstream.training.method.conditioning import Conditioning
from shotstream.training.method.draws import Draws


def clean_history_spans(context: int, frames: int, chunk: int, tokens: int) -> Spans:
    """Who sees whom. Frames in order: context, clean copies of all blocks but the last, noisy blocks.

    Context sees itself; a clean block sees context, clean blocks before it and itself; a noisy block sees context,
    the clean blocks before it and itself.
    """
    ends = range(context, context + frames, chunk)  # of what is finished before each noisy block
    rows: list[tuple[int, int, tuple[tuple[int, int], ...]]] = [(0, context, ((0, context),))] if context else []
    rows += [(end - chunk, end, ((0, end),)) for end in ends[1:]]
    noisy = context + frames - chunk
    rows += [
        (begin, begin + chunk, ((0, end), (begin, begin + chunk)))
        for end, begin in zip(ends, range(noisy, noisy + frames, chunk), strict=True)
    ]
    return Spans(
        tuple(
            (begin * tokens, end * tokens, tuple((first * tokens, last * tokens) for first, last in seen))
            for begin, end, seen in rows
        )
    )


def behind_clean_history(
    model: Transformer,
    schedule: NoiseSchedule,
    noisy_BFCHW: Tensor,
    t_BF: Tensor,
    clean_BFCHW: Tensor,
    conditioning: Conditioning,
    draws: Draws,
) -> Tensor:
    """x0 predictions `[B, F, C, H, W]` of all blocks of a shot in one pass, each behind the clean blocks before it.

    noisy_BFCHW, t_BF: the blocks at noise levels of their own. clean_BFCHW: the same frames without noise, of which the
    last block is not looked at. A single frame is a block of its own. Raises ValueError if frames are not whole blocks.
    """
    batch, frames = noisy_BFCHW.shape[:2]
    chunk, context = min(model.config.chunk_frames, frames), conditioning.context_frames
    if frames % chunk or (frames > 1 and chunk < model.config.chunk_frames):
        raise ValueError(f"{frames} frames in blocks of {model.config.chunk_frames}")
    past, remembered = frames - chunk, model.config.context_noise
    first = conditioning.context_BFCHW.to(noisy_BFCHW.dtype)
    clean = clean_BFCHW[:, :past]
    clean = schedule.remembered(clean, remembered, lambda: draws.clean_noise(tuple(clean.shape), 0))
    z_BFCHW = torch.cat([first, clean, noisy_BFCHW], dim=1)
    t_all = torch.cat([t_BF.new_zeros(batch, context), t_BF.new_full((batch, past), remembered), t_BF], dim=1)
    places = torch.cat([torch.arange(context + past), context + torch.arange(frames)]).to(noisy_BFCHW.device)
    flags, index = conditioning.flags_BF, conditioning.caption_index_BF
    times = conditioning.positions_BF
    tokens = model.config.tokens_per_frame(*noisy_BFCHW.shape[-2:])
    flow = model(
        z_BFCHW,
        t_all,
        model.embed_captions(conditioning.captions_NLD),
        None if index is None else index[:, places],
        places.expand(batch, -1) if times is None else times[:, places],
        None if flags is None else flags[:, places],
        mask=clean_history_spans(context, frames, chunk, tokens),
    )
    return schedule.to_x0(z_BFCHW, flow, t_all)[:, context + past :]


def clean_history_ode_loss(
    model: Transformer,
    schedule: NoiseSchedule,
    states_BSFCHW: Tensor,
    steps: Tensor,
    conditioning: Conditioning,
    draws: Draws,
) -> losses.OdeLoss:
    """From every block at a noise level of its own, behind the clean blocks before it, predict the trajectory's end.

    states_BSFCHW: trajectory states, the last one is the clean end, which no block draws. steps: their timesteps, the
    last one 0. Raises ValueError if frames are not whole blocks or states and steps differ in number.
    """
    batch, count, frames = states_BSFCHW.shape[:3]
    chunk = model.config.chunk_frames
    if frames % chunk or count != len(steps):
        raise ValueError(f"{frames} frames in blocks of {chunk}, {count} states for {len(steps)} timesteps")
    device, clean = states_BSFCHW.device, states_BSFCHW[:, -1]
    index_BF = draws.block_index(batch, frames // chunk, count - 1).repeat_interleave(chunk, dim=1).to(device)
    picked = index_BF[:, None, :, None, None, None].expand(-1, 1, -1, *states_BSFCHW.shape[3:])
    noisy = torch.gather(states_BSFCHW, 1, picked)[:, 0]
    t_noisy = steps.to(device)[index_BF]
    x0 = behind_clean_history(model, schedule, noisy, t_noisy, clean, conditioning, draws)
    return losses.ode_regression_loss(x0, clean, t_noisy)


@dataclass(frozen=True)
class ContinuationLoss:
    """`loss` over all frames; its parts, unweighted: `opening`, the first blocks', and `continuation`, the others'."""

    loss: Tensor
    opening: Tensor
    continuation: Tensor


def continuation_loss(
    model: Transformer,
    before: Transformer,
    schedule: NoiseSchedule,
    clip_BFCHW: Tensor,
    steps: Tensor,
    conditioning: Conditioning,
    draws: Draws,
    *,
    kept_steps: int,
    kept_weight: float = 1.0,
) -> ContinuationLoss:
    """From every block of a true clip at one of the student's noise levels, behind the true blocks before it, predict
    that block. The first block of a shot has no past and so no one answer at high noise: at the first `kept_steps`
    levels its target is what the student `before` says, which is left as it was; that counts `kept_weight` times.

    clip_BFCHW: at least two blocks. steps: the student's timesteps, falling, without 0.
    Raises ValueError if frames are not whole blocks or fewer than two.
    """
    batch, frames = clip_BFCHW.shape[:2]
    chunk = model.config.chunk_frames
    if frames < 2 * chunk:
        raise ValueError(f"{frames} frames in blocks of {chunk} hold no continuation")
    index_BN = draws.block_index(batch, frames // chunk, len(steps)).to(clip_BFCHW.device)
    t_BF = steps[index_BN.repeat_interleave(chunk, dim=1)]
    noise = draws.target_noise(tuple(clip_BFCHW.shape))
    noisy = schedule.add_noise(clip_BFCHW, noise, t_BF)
    x0 = behind_clean_history(model, schedule, noisy, t_BF, clip_BFCHW, conditioning, draws)
    opening = slice(0, chunk)
    with torch.no_grad():
        given = conditioning.opening(chunk)
        said = behind_clean_history(before, schedule, noisy[:, opening], t_BF[:, opening], clip_BFCHW, given, draws)
    kept = (index_BN[:, 0] < kept_steps)[:, None, None, None, None]
    target = clip_BFCHW.clone()
    target[:, opening] = torch.where(kept, said.to(target.dtype), target[:, opening])
    error_BF = (x0.float() - target.float()).square().mean(dim=(2, 3, 4))
    weighted_BF = error_BF.clone()
    weighted_BF[:, opening] *= torch.where(kept[:, :, 0, 0, 0], kept_weight, 1.0)
    return ContinuationLoss(
        weighted_BF.mean(), error_BF[:, opening].detach().mean(), error_BF[:, chunk:].detach().mean()
    )
