"""Regression behind a clean history: each block sees the finished blocks before it, as it will when it plays.

The reference's regression (`objectives.ode_loss`) shows a block its predecessors at random noise levels; only one in
five is clean, while a playing student never sees any that is not. Here every sample holds its blocks twice: clean, as
what later blocks look back at (`read_history`), and noisy, as what is to be predicted (`behind`).

Two losses: on the teacher's trajectories, for all blocks (stage `ode`), and on true clips, for those that have a past
(stage `continuation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.model.attention import Spans
from shotstream.runtime.model.cache import RecordingKeys
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import TextKV, Transformer
from shotstream.training.method import losses
from shotstream.training.method.conditioning import Conditioning
from shotstream.training.method.draws import Draws


def history_spans(context: int, past: int, chunk: int, tokens: int) -> Spans:
    """Who sees whom in a history of `context` frames and `past` clean ones: context sees itself; a clean block sees
    context, clean blocks before it and itself.
    """
    rows = [(0, context, (0, context))] if context else []
    rows += [(end - chunk, end, (0, end)) for end in range(context + chunk, context + past + 1, chunk)]
    return _in_tokens(rows, tokens)


def noisy_spans(history: int, frames: int, chunk: int, tokens: int) -> Spans:
    """What noisy blocks see of a history that ends where their last one begins, and of themselves behind it: what is
    finished before them, and themselves.
    """
    first = history - frames + chunk  # of the history, what the first block sees
    rows = [
        (begin, begin + chunk, (0, first + begin), (history + begin, history + begin + chunk))
        for begin in range(0, frames, chunk)
    ]
    return _in_tokens(rows, tokens)


def _in_tokens(rows: Sequence[tuple[int, int, *tuple[tuple[int, int], ...]]], tokens: int) -> Spans:
    return Spans(
        tuple(
            (begin * tokens, end * tokens, tuple((a * tokens, b * tokens) for a, b in seen if a < b))
            for begin, end, *seen in rows
        )
    )


@dataclass(frozen=True)
class History:
    """What the blocks of a shot look back at, read once for any number of passes over them. ``finished``: keys and
    values of context and of clean blocks, by layer; none where there are neither.
    """

    conditioning: Conditioning
    text_kv: TextKV
    frames: int
    finished: list[tuple[Tensor, Tensor]] | None


def read_history(
    model: Transformer, schedule: NoiseSchedule, past_BFCHW: Tensor, conditioning: Conditioning, draws: Draws
) -> History:
    """One pass over context and clean blocks; blocks of a single frame have none before them.

    past_BFCHW: all of a shot but its last block, without noise.
    """
    config, text_kv = model.config, model.embed_captions(conditioning.captions_NLD)
    batch, past = past_BFCHW.shape[:2]
    context = conditioning.context_frames
    clean = schedule.remembered(past_BFCHW, config.context_noise, lambda: draws.clean_noise(tuple(past_BFCHW.shape), 0))
    z_BFCHW = torch.cat([conditioning.context_BFCHW.to(clean.dtype), clean], dim=1)
    if not context + past:
        return History(conditioning, text_kv, 0, None)
    t_BF = z_BFCHW.new_zeros(batch, context + past)
    t_BF[:, context:] = config.context_noise
    keys = RecordingKeys()
    spans = history_spans(context, past, config.chunk_frames, config.tokens_per_frame(*z_BFCHW.shape[-2:]))
    flags, index, positions = _places(conditioning, 0, context + past, z_BFCHW)
    model(z_BFCHW, t_BF, text_kv, index, positions, flags, keys=keys, mask=spans, kv_only=True)
    return History(conditioning, text_kv, context + past, keys.own)


def behind(
    model: Transformer, schedule: NoiseSchedule, noisy_BFCHW: Tensor, t_BF: Tensor, history: History
) -> Tensor:
    """x0 predictions `[B, F, C, H, W]` of all blocks of a shot in one pass, each behind the clean blocks before it.

    noisy_BFCHW, t_BF: the blocks at noise levels of their own. A single frame is a block of its own.
    Raises ValueError if frames are not whole blocks.
    """
    chunk = block_frames(model.config, noisy_BFCHW)
    frames = noisy_BFCHW.shape[1]
    tokens = model.config.tokens_per_frame(*noisy_BFCHW.shape[-2:])
    flags, index, positions = _places(history.conditioning, history.conditioning.context_frames, frames, noisy_BFCHW)
    flow = model(
        noisy_BFCHW, t_BF, history.text_kv, index, positions, flags, keys=RecordingKeys(history.finished),
        mask=noisy_spans(history.frames, frames, chunk, tokens),
    )  # fmt: skip
    return schedule.to_x0(noisy_BFCHW, flow, t_BF)


def behind_clean_history(
    model: Transformer,
    schedule: NoiseSchedule,
    noisy_BFCHW: Tensor,
    t_BF: Tensor,
    clean_BFCHW: Tensor,
    conditioning: Conditioning,
    draws: Draws,
) -> Tensor:
    """`behind` of noisy blocks whose history is read for this once. clean_BFCHW: the same frames without noise, of
    which the last block is not looked at.
    """
    past = noisy_BFCHW.shape[1] - block_frames(model.config, noisy_BFCHW)
    history = read_history(model, schedule, clean_BFCHW[:, :past], conditioning, draws)
    return behind(model, schedule, noisy_BFCHW, t_BF, history)


def block_frames(config: DiTConfig, clip_BFCHW: Tensor) -> int:
    """Frames of a block: the student's chunk, or 1 of a single frame. ValueError if a clip is not whole blocks."""
    frames = clip_BFCHW.shape[1]
    chunk = min(config.chunk_frames, frames)
    if frames % chunk or (frames > 1 and chunk < config.chunk_frames):
        raise ValueError(f"{frames} frames in blocks of {config.chunk_frames}")
    return chunk


def _places(
    conditioning: Conditioning, first: int, count: int, like_BFCHW: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Flags, caption rows and time indices of `count` frames from `first` on, context counted."""
    flags, index = conditioning.frames(first, count)
    if conditioning.positions_BF is not None:
        return flags, index, conditioning.positions_BF[:, first : first + count]
    positions = torch.arange(first, first + count, device=like_BFCHW.device)
    return flags, index, positions.expand(len(like_BFCHW), -1)


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
