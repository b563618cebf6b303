"""The chunk loop's mathematics: four denoising steps and the clean pass, over any cache and any source of noise.

Source: reference ``pipeline/causal_inference_ar.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shotstream.runtime.model.cache import KeyStore
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import TextKV, Transformer


@dataclass(frozen=True)
class ShotConditions:
    """What every pass of a shot shares.

    text_kv: keys and values of N captions per layer. context_index_BF / target_index: caption numbers of the context
    frames
    and of the target, or None when one caption serves all. context_flags_BF / target_flag_B: shot flags, or None for
    plain rotary tables.
    """

    text_kv: TextKV
    context_index_BF: Tensor | None
    target_index_B: Tensor | None
    context_flags_BF: Tensor | None
    target_flag_B: Tensor | None


def context_pass(model: Transformer, z_BFCHW: Tensor, conditions: ShotConditions, keys: KeyStore) -> None:
    """Fill ``keys`` with the context frames' keys and values at timestep 0; they see one another only."""
    batch, frames = z_BFCHW.shape[:2]
    t = torch.zeros(batch, frames, device=z_BFCHW.device)
    positions = torch.arange(frames, device=z_BFCHW.device).expand(batch, frames)
    model(
        z_BFCHW, t, conditions.text_kv, conditions.context_index_BF, positions, conditions.context_flags_BF,
        keys=keys, kv_only=True,
    )  # fmt: skip


def chunk_pass(
    model: Transformer,
    x_BFCHW: Tensor,
    t: Tensor,
    start_frame: int,
    conditions: ShotConditions,
    keys: KeyStore,
    kv_only: bool = False,
) -> Tensor:
    """Flow of one chunk at timestep ``t`` (scalar tensor) starting at latent frame ``start_frame`` of its shot."""
    batch, frames = x_BFCHW.shape[:2]
    device = x_BFCHW.device
    first = model.config.context_frames + start_frame
    positions = torch.arange(first, first + frames, device=device).expand(batch, frames)
    flags = conditions.target_flag_B
    index = conditions.target_index_B
    return model(
        x_BFCHW,
        t.to(device).expand(batch, frames),
        conditions.text_kv,
        None if index is None else index[:, None].expand(batch, frames),
        positions,
        None if flags is None else flags[:, None].expand(batch, frames),
        keys=keys,
        kv_only=kv_only,
    )


def denoise_chunk(
    model: Transformer,
    schedule: NoiseSchedule,
    steps: Tensor,
    start_noise_BFCHW: Tensor,
    renoise: Callable[[int], Tensor] | Sequence[Tensor],
    start_frame: int,
    conditions: ShotConditions,
    keys: KeyStore,
) -> Tensor:
    """Clean latents of a chunk: predict x0 at each warped timestep and re-noise with fresh noise in between.

    ``renoise(i)`` (or ``renoise[i]``) is the fresh noise after step ``i``, shaped like the chunk.
    """
    draw = renoise if callable(renoise) else renoise.__getitem__
    x = start_noise_BFCHW
    x0 = x
    for i, t in enumerate(steps):
        flow = chunk_pass(model, x, t, start_frame, conditions, keys)
        x0 = schedule.to_x0(x, flow, t.to(x.device))
        if i + 1 < len(steps):
            x = schedule.add_noise(x0, draw(i), steps[i + 1].to(x.device))
    return x0


def clean_pass(
    model: Transformer, past_BFCHW: Tensor, start_frame: int, conditions: ShotConditions, keys: KeyStore
) -> None:
    """Rewrite the chunk's keys and values from its finished latents; later chunks see only these.

    past_BFCHW: the clean latents, with the noise of the model's `context_noise` mixed in if it has any
    (:meth:`NoiseSchedule.remembered`).
    """
    t = torch.full((), model.config.context_noise, device=past_BFCHW.device)
    chunk_pass(model, past_BFCHW, t, start_frame, conditions, keys, kv_only=True)
