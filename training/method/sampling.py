"""The teacher's sampler: Euler steps of the guided flow from noise to latents, keeping chosen states.

What is here: the deterministic sampler that makes ODE pairs (50 steps, guidance 6) and the teacher's own samples.
What is not here: the student's few-step loop (`runtime/model/rollout.py`) and any file format of the pairs.

Source: `Teacher_Ode_Sample.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.method.conditioning import Conditioning
from shotstream.training.method.objectives import target_flow


@dataclass(frozen=True)
class Trajectory:
    """`states[i]` is the sample before step i, for the steps asked for; `x0_BFCHW` is the end."""

    states: dict[int, Tensor]
    x0_BFCHW: Tensor


@torch.no_grad()
def sample_teacher(
    model: Transformer,
    schedule: NoiseSchedule,
    noise_BFCHW: Tensor,
    conditioning: Conditioning,
    negative_1LD: Tensor | None,
    *,
    steps: int = 50,
    guidance: float = 6.0,
    save: Collection[int] = (),
    sigmas: Tensor | None = None,
) -> Trajectory:
    """Integrates the flow over `steps` shifted noise levels, the last of which is 0, or over the `sigmas` given.

    The guided flow is `negative + guidance * (conditional - negative)`: here 1.0 means no guidance, unlike the
    distillation's scale. The negative branch keeps context frames and flags, only its text differs; it is skipped
    when `negative_1LD` is None or the guidance is 1.
    """
    sigmas = (schedule.euler_sigmas(steps) if sigmas is None else sigmas).to(noise_BFCHW.device)
    x = noise_BFCHW
    states: dict[int, Tensor] = {}
    for i in range(len(sigmas) - 1):
        if i in save:
            states[i] = x
        t_B = (sigmas[i] * 1000).expand(x.shape[0])
        flow = target_flow(model, x, t_B, conditioning)
        if negative_1LD is not None and guidance != 1.0:
            negative = target_flow(model, x, t_B, conditioning.with_captions(negative_1LD))
            flow = negative + guidance * (flow - negative)
        x = x + flow * (sigmas[i + 1] - sigmas[i])
    return Trajectory(states, x)
