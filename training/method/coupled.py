"""Regression from noise that knows its answer.

Behind a caption there are many true pictures, and a student that is asked for the mean of them draws a smudge; so its
first chunk is a matter for distribution matching. Where it is known what was chosen (which side, which house), the
choice can be made a part of the noise: then caption, history and noise together have one answer, and regression finds
it, sharp, from pure noise on. When it plays, noise is drawn as ever, and with it a choice.

The choice takes the place of the first signs of the noise's offset (`runtime.noise.with_offset`), which every patch
shows; independent numbers would hide it. Both are fair coins' tosses, so that training and playing see the same noise.
Sources: couplings of noise and data that depend on each other, Albergo et al., "Stochastic interpolants with
data-dependent couplings", 2023; offset noise, Guttenberg, "Diffusion with offset noise", 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.noise import with_offset
from shotstream.training.method.clean_history import behind, block_frames, read_history
from shotstream.training.method.conditioning import Conditioning
from shotstream.training.method.draws import Draws


def chosen_offset(free_BCPQ: Tensor, choices_BN: Tensor) -> Tensor:
    """Offsets `[B, C, P, Q]` whose first signs are the choices; where these are NaN or end, `free_BCPQ` stays.

    Signs are counted channel by channel, one place of the patch after the other.
    Raises ValueError if there are more choices than signs.
    """
    batch, _, rows, columns = free_BCPQ.shape
    signs = free_BCPQ.permute(0, 2, 3, 1).flatten(1)
    count = choices_BN.shape[1]
    if count > signs.shape[1]:
        raise ValueError(f"{count} choices do not fit into an offset of {signs.shape[1]} signs")
    head = torch.where(choices_BN.isnan(), signs[:, :count], choices_BN.to(signs))
    return torch.cat([head, signs[:, count:]], dim=1).view(batch, rows, columns, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class CoupledLoss:
    """`loss`, and unweighted but for cells of weight 0: `picture`, the squared error of latents, and `motion`, that of
    each block's change; the `exit_step` of a played input; what was `also` counted."""

    loss: Tensor
    picture: Tensor
    motion: Tensor
    exit_step: int | None = None
    also: Tensor | None = None


def coupled_loss(
    model: Transformer,
    schedule: NoiseSchedule,
    clip_BFCHW: Tensor,
    steps: Tensor,
    conditioning: Conditioning,
    choices_BN: Tensor,
    weight_BF1HW: Tensor,
    draws: Draws,
    *,
    motion_weight: float,
    played: bool,
    huber: float = 0.0,
    also: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> CoupledLoss:
    """From every block of a true clip at one of the student's noise levels, behind the true blocks before it, predict
    that block; the noise knows the choices. Pure noise is drawn twice as often as any other level.

    steps: the student's timesteps, falling, without 0. weight_BF1HW: how much a cell's error counts. motion_weight: how
    much the error of each block's deviation from its mean over time counts. played: instead of noised truth, the
    input is what the student itself has made of pure noise, up to a step that is the same for all. huber: above 0 a
    cell's error, but for its change, counts as its length, rounded off below this, and not as its square: where several
    pictures are likely the answer is then one of them rather than their mean (pseudo-Huber metric; Song and Dhariwal,
    "Improved techniques for training consistency models", 2023). also: another error of what was found, given the truth
    and the cells' weights, added to the loss.
    Raises ValueError if frames are not whole blocks.
    """
    config = model.config
    batch, frames, channels = clip_BFCHW.shape[:3]
    chunk = block_frames(config, clip_BFCHW)
    offset = chosen_offset(draws.offset((batch, channels, *config.patch[1:])).to(clip_BFCHW), choices_BN)

    def noise(own_BFCHW: Tensor) -> Tensor:
        return with_offset(own_BFCHW, offset, config.noise_offset)

    def predicted(noisy_BFCHW: Tensor, t_BF: Tensor) -> Tensor:
        return behind(model, schedule, noisy_BFCHW, t_BF, history).float()

    history = read_history(model, schedule, clip_BFCHW[:, : frames - chunk], conditioning, draws)
    start = noise(draws.target_noise(tuple(clip_BFCHW.shape)))
    last = None
    if played:
        last, noisy = draws.exit_step(len(steps)), start
        with torch.no_grad():
            for step in range(last):
                x0 = predicted(noisy, steps[step].expand(batch, frames))
                fresh = noise(draws.renoise(tuple(clip_BFCHW.shape), 0, step))
                noisy = schedule.add_noise(x0, fresh, steps[step + 1].expand(batch, frames))
        t_BF = steps[last].expand(batch, frames)
    else:
        index_BN = (draws.block_index(batch, frames // chunk, len(steps) + 1) - 1).clamp(min=0)
        t_BF = steps[index_BN.to(steps.device).repeat_interleave(chunk, dim=1)]
        noisy = schedule.add_noise(clip_BFCHW, start, t_BF)
    found, true = predicted(noisy, t_BF), clip_BFCHW.float()
    picture = (found - true).square()
    motion = (_change(found, chunk) - _change(true, chunk)).square()
    loss = (_counted(picture, huber) * weight_BF1HW).mean() + motion_weight * (motion * weight_BF1HW).mean()
    more = also(found, true, weight_BF1HW) if also is not None else None
    if more is not None:
        loss = loss + more
    asked = (weight_BF1HW > 0).expand_as(picture)
    return CoupledLoss(
        loss,
        picture.detach()[asked].mean(),
        motion.detach()[asked].mean(),
        last,
        None if more is None else more.detach(),
    )


def _counted(square_BFCHW: Tensor, huber: float) -> Tensor:
    """What a cell's squared errors count: themselves, or with `huber` their root over all channels."""
    if not huber:
        return square_BFCHW
    return (square_BFCHW.mean(dim=2, keepdim=True) + huber**2).sqrt() - huber


def _change(x0_BFCHW: Tensor, chunk: int) -> Tensor:
    """Every block's deviation from its mean over time."""
    blocks = x0_BFCHW.unflatten(1, (-1, chunk))
    return (blocks - blocks.mean(dim=2, keepdim=True)).flatten(1, 2)
