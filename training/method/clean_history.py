"""ODE regression behind a clean history: each block sees the finished blocks before it, as it will when it plays.

The reference's regression (`objectives.ode_loss`) shows a block its predecessors at random noise levels; only one in
five is clean, while a playing student never sees any that is not. Here every sample holds its blocks twice: clean, as
what later blocks look back at, and noisy, as what is to be predicted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.method import losses
from shotstream.training.method.conditioning import Conditioning
from shotstream.training.method.draws import Draws


def clean_history_mask(context: int, frames: int, chunk: int, tokens: int, device: torch.device | str) -> Tensor:
    """[L, L] bool, True = may attend. Frames in order: context, clean copies of all blocks but the last, noisy blocks.

    Context sees itself; a clean block sees context, clean blocks before it and itself; a noisy block sees context,
    the clean blocks before it and itself.
    """
    blocks = frames // chunk
    block = [0] * context + [b + 1 for b in range(blocks - 1) for _ in range(chunk)]
    clean = torch.tensor(block, device=device)
    noisy = torch.arange(frames, device=device) // chunk + 1
    among_clean = clean[:, None] >= clean[None, :]
    to_clean = noisy[:, None] > clean[None, :]
    among_noisy = noisy[:, None] == noisy[None, :]
    nothing = torch.zeros(len(clean), frames, dtype=torch.bool, device=device)
    mask = torch.cat([torch.cat([among_clean, nothing], 1), torch.cat([to_clean, among_noisy], 1)], 0)
    return mask.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)


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
    if conditioning.positions_BF is not None:
        raise ValueError("a clean history goes with all context frames, at the time indices 0, 1, 2 and so on")
    device, context = states_BSFCHW.device, conditioning.context_frames
    index_BF = draws.block_index(batch, frames // chunk, count - 1).repeat_interleave(chunk, dim=1).to(device)
    picked = index_BF[:, None, :, None, None, None].expand(-1, 1, -1, *states_BSFCHW.shape[3:])
    noisy = torch.gather(states_BSFCHW, 1, picked)[:, 0]
    t_noisy = steps.to(device)[index_BF]

    past, remembered = frames - chunk, model.config.context_noise
    first = conditioning.context_BFCHW.to(noisy.dtype)
    clean = states_BSFCHW[:, -1, :past]
    clean = schedule.remembered(clean, remembered, lambda: draws.clean_noise(tuple(clean.shape), 0))
    z_BFCHW = torch.cat([first, clean, noisy], dim=1)
    t_past = t_noisy.new_full((batch, past), remembered)
    t_BF = torch.cat([t_noisy.new_zeros(batch, context), t_past, t_noisy], dim=1)
    places = torch.cat([torch.arange(context + past), context + torch.arange(frames)]).to(device)
    flags, index = conditioning.flags_BF, conditioning.caption_index_BF
    flow = model(
        z_BFCHW,
        t_BF,
        model.embed_captions(conditioning.captions_NLD),
        None if index is None else index[:, places],
        places.expand(batch, -1),
        None if flags is None else flags[:, places],
        mask=clean_history_mask(context, frames, chunk, model.config.tokens_per_frame(*noisy.shape[-2:]), device),
    )
    x0 = schedule.to_x0(z_BFCHW, flow, t_BF)[:, context + past :]
    return losses.ode_regression_loss(x0, states_BSFCHW[:, -1], t_noisy)
