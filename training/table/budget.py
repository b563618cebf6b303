"""What training costs: every update is charged in floating-point operations, and the budget ends a row's training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.flop_counter import FlopCounterMode

SAMPLES = 8
"""Updates of one kind that are counted; later ones are charged their mean, because counting slows them by a sixth."""


class Budget:
    """Floating-point operations of all matrix products, attentions and convolutions, forward and backward, the codec's
    included where a method trains behind its own shots.
    """

    def __init__(self, tflop: float) -> None:
        self.flop, self.spent = 1e12 * tflop, 0.0
        self.updates: dict[str, int] = defaultdict(int)
        self._counted: dict[str, list[int]] = defaultdict(list)

    @property
    def share(self) -> float:
        """The part of the budget that is spent; 1 or more at the end."""
        return self.spent / self.flop

    @contextmanager
    def charge(self, kind: str) -> Iterator[None]:
        """Charge what runs inside; all work of one kind costs about the same."""
        counted = self._counted[kind]
        self.updates[kind] += 1
        if len(counted) < SAMPLES:
            with FlopCounterMode(display=False) as counter:
                yield
            counted.append(counter.get_total_flops())
            self.spent += counted[-1]
        else:
            yield
            self.spent += sum(counted) / len(counted)
