"""Flow-matching noise table: sigmas, timesteps, look-ups and conversions. It draws no noise and owns no model.

Source: reference ``utils/scheduler.py`` and ``utils/wan_wrapper.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TABLE_LENGTH = 1000


def shift_sigma(u: Tensor, shift: float) -> Tensor:
    """Warp uniform noise levels ``u`` in [0, 1] by the flow-matching shift."""
    return shift * u / (1 + (shift - 1) * u)


class NoiseSchedule:
    """Table of 1000 noise levels, highest first, with ``t = 1000 sigma``; every look-up takes the nearest entry.

    ``sigma_of(0)`` is therefore the last entry (0.0079 at shift 8), not zero.
    """

    def __init__(self, shift: float, device: torch.device | str = "cpu") -> None:
        u = torch.linspace(1.0, 0.0, TABLE_LENGTH + 1)[:-1]
        self.shift = shift
        self.sigmas = shift_sigma(u, shift).to(device)
        self.timesteps = self.sigmas * TABLE_LENGTH
        y = torch.exp(-2 * ((self.timesteps - TABLE_LENGTH / 2) / TABLE_LENGTH) ** 2)
        y = y - y.min()
        self.loss_weights = y * (TABLE_LENGTH / y.sum())

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same table on another device."""
        return NoiseSchedule(self.shift, device)

    def index_of(self, t: Tensor) -> Tensor:
        """Index of the table entry nearest to each timestep (any shape, 0..1000)."""
        table = self.timesteps.to(t.device)
        return (table.double() - t.double().unsqueeze(-1)).abs().argmin(-1)

    def sigma_of(self, t: Tensor) -> Tensor:
        """Noise level of each timestep, float32, nearest entry."""
        return self.sigmas.to(t.device)[self.index_of(t)]

    def warp(self, nominal: Sequence[int]) -> Tensor:
        """Student timesteps from nominal ones (1000, 740, ...): entry ``1000 - nominal`` of the table with a 0
        appended.

        1001 wraps to the appended 0 (used by the ODE regression only).
        """
        table = torch.cat([self.timesteps, self.timesteps.new_zeros(1)])
        return table[[TABLE_LENGTH - n for n in nominal]]

    def to_x0(self, x_t: Tensor, flow: Tensor, t: Tensor) -> Tensor:
        """Clean prediction ``x_t - sigma(t) flow`` in float64, returned in the flow's dtype.

        ``t`` must broadcast from the left: ``[B]`` or ``[B, F]`` against ``[B, F, C, H, W]``.
        """
        sigma = _expand(self.sigma_of(t), x_t).double()
        return (x_t.double() - sigma * flow.double()).to(flow.dtype)

    def to_flow(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Inverse of :meth:`to_x0`, used by the critic."""
        sigma = _expand(self.sigma_of(t), x_t).double()
        return ((x_t.double() - x0.double()) / sigma).to(x0.dtype)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """``(1 - sigma) x0 + sigma noise`` in float32, returned in the noise's dtype."""
        sigma = _expand(self.sigma_of(t), x0)
        return ((1 - sigma) * x0 + sigma * noise).to(noise.dtype)

    def remembered(self, x0: Tensor, context_noise: float, draw: Callable[[], Tensor]) -> Tensor:
        """What the clean pass is given of finished latents: themselves, or with the noise of timestep `context_noise`.

        `draw` is called only if there is to be noise.
        """
        if not context_noise:
            return x0
        return self.add_noise(x0, draw(), torch.full((), context_noise, device=x0.device))

    def euler_sigmas(self, steps: int) -> Tensor:
        """Noise levels of a ``steps``-step sampler, ``steps + 1`` values ending in 0."""
        return shift_sigma(torch.linspace(1.0, 0.0, steps + 1), self.shift)


def _expand(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(values.shape + (1,) * (like.dim() - values.dim()))
