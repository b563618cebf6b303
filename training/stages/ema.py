"""The moving average of what is trained, kept in shards as the parameters are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from shotstream.training.distributed.sharding import local


class Ema:
    """Exponential moving average of modules' trained parameters, with a warm-up so that early averages are not stale.

    A decay of 0 keeps no average at all: the average is then the parameters themselves.
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self.decay = decay
        self.modules = modules
        self.shadow = {name: value.detach().clone() for name, value in self._named()} if decay else {}

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for name, module in self.modules.items():
            for key, value in module.named_parameters():
                if value.requires_grad:
                    yield f"{name}.{key}", value

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the present parameters."""
        if self.shadow:
            weight = 1 - min(self.decay, (1 + step) / (10 + step))
            names, values = zip(*self._named(), strict=True)
            torch._foreach_lerp_([local(self.shadow[n]) for n in names], [local(v) for v in values], weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and averages in place; call twice to come back."""
        for name, value in self._named() if self.shadow else ():
            now, average = local(value), local(self.shadow[name])
            kept = now.clone()
            now.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by ``module.parameter``."""
        return self.shadow

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state_dict`."""
        for name, value in self.shadow.items():
            value.copy_(state[name])
