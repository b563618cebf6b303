"""Every random number that a training step uses, behind one interface with named methods.

What is here: the interface `Draws` and its ordinary implementation over a torch generator. Objectives ask for a
draw by its role (re-noise of chunk 2 after step 1, score noise, ...), so that a test or the parity check can hand
in recorded tensors. What is not here: how a draw is used.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from shotstream.runtime.noise import with_offset

Shape = tuple[int, ...]


class Draws(Protocol):
    """The random draws of one training step. Noise is standard normal, indices are uniform."""

    def shot_noise(self, shape: Shape) -> Tensor:
        """Start noise of a roll-out, [B, F, C, H, W]."""
        ...

    def renoise(self, shape: Shape, chunk: int, step: int) -> Tensor:
        """Fresh noise after denoising step `step` of chunk `chunk`, [B, chunk frames, C, H, W]."""
        ...

    def clean_noise(self, shape: Shape, chunk: int) -> Tensor:
        """Noise of level sigma(0) that training adds before the clean pass of a chunk."""
        ...

    def target_noise(self, shape: Shape) -> Tensor:
        """Noise that the teacher loss, the scores and the critic add to a whole shot."""
        ...

    def offset(self, shape: Shape) -> Tensor:
        """What the patches of a shot's noise have in common: signs, [B, C, patch height, patch width]."""
        ...

    def timestep_index(self, batch: int, entries: int) -> Tensor:
        """Schedule entries in 0..entries-1, int64 [batch]."""
        ...

    def exit_step(self, steps: int) -> int:
        """Denoising step at which the roll-out stops, one for the batch and all chunks."""
        ...

    def block_index(self, batch: int, blocks: int, entries: int) -> Tensor:
        """Trajectory entries in 0..entries-1, int64 [batch, blocks]."""
        ...

    def dropped(self, batch: int, probability: float) -> Tensor:
        """Which samples lose a condition, bool [batch]."""
        ...


class TorchDraws:
    """Draws from one torch generator, on the device and in the dtype given.

    With a noise offset, patches of a shot have a part of their noise in common: a roll-out's start and its later fresh
    noise have one part, the noise of scores and critic another.
    """

    def __init__(
        self,
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        noise_offset: float = 0.0,
        patch: tuple[int, int] = (2, 2),
    ) -> None:
        """`generator` must live on `device`; None uses torch's global generator of that device.
        noise_offset: see `DiTConfig.noise_offset`; patch: height and width of one.
        """
        self._generator = generator
        self._device = torch.device(device)
        self._dtype = dtype
        self._share, self._patch = noise_offset, patch
        self._offset: Tensor | None = None

    def _normal(self, shape: Shape) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self._device, dtype=self._dtype)

    def _integers(self, high: int, shape: Shape) -> Tensor:
        return torch.randint(high, shape, generator=self._generator, device=self._device)

    def _noise(self, shape: Shape, offset_BCPQ: Tensor | None) -> Tensor:
        own = self._normal(shape)
        return own if offset_BCPQ is None else with_offset(own, offset_BCPQ, self._share)

    def _new_offset(self, shape: Shape) -> Tensor | None:
        return self.offset((shape[0], shape[2], *self._patch)) if self._share else None

    def shot_noise(self, shape: Shape) -> Tensor:
        self._offset = self._new_offset(shape)
        return self._noise(shape, self._offset)

    def renoise(self, shape: Shape, chunk: int, step: int) -> Tensor:
        return self._noise(shape, self._offset)

    def offset(self, shape: Shape) -> Tensor:
        return self._normal(shape).sign()

    def clean_noise(self, shape: Shape, chunk: int) -> Tensor:
        return self._normal(shape)

    def target_noise(self, shape: Shape) -> Tensor:
        return self._noise(shape, self._new_offset(shape))

    def timestep_index(self, batch: int, entries: int) -> Tensor:
        return self._integers(entries, (batch,))

    def exit_step(self, steps: int) -> int:
        return int(self._integers(steps, (1,)).item())

    def block_index(self, batch: int, blocks: int, entries: int) -> Tensor:
        return self._integers(entries, (batch, blocks))

    def dropped(self, batch: int, probability: float) -> Tensor:
        return torch.rand((batch,), generator=self._generator, device=self._device) < probability
