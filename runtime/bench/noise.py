"""How sure a ratio of two medians is: bootstrap intervals. Pure numbers; what they mean is the caller's.

An interval covers the spread inside the two runs. It does not cover what changes from one run to the next, such as a
machine's other load or a GPU's temperature: for that, measure each side more than once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shotstream.runtime.bench.samples import quantile

ROUNDS = 4000
CONFIDENCE = 0.95
FEWEST = 5
"""From five values on, a median's interval holds the true one nearly as often as it claims (94 %); of three, 75 %."""
_VALUES_AT_ONCE = 1 << 20

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """A ratio with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """For times, of the new over the old: `faster`, `slower`, or `same within noise` where 1 is inside."""
        if self.low > 1:
            return "slower"
        return "faster" if self.high < 1 else "same within noise"


def median_ratio(old: Sequence[float], new: Sequence[float], rounds: int = ROUNDS, seed: int = 0) -> Ratio:
    """Median of `new` over median of `old`, positive values; both are drawn again with replacement, `rounds` times."""
    generator = np.random.default_rng(seed)
    ratios = _medians(_column(new), rounds, generator) / _medians(_column(old), rounds, generator)
    return _interval(quantile(new, 0.5) / quantile(old, 0.5), ratios[:, 0])


def shots_ratio(old: Floats, new: Floats, rounds: int = ROUNDS, seed: int = 0) -> Ratio:
    """Geometric mean over positions of the ratio of medians; old and new are [shots, positions] of positive values.

    Whole shots are drawn again, since the chunks of one shot share their moment of the machine."""
    generator = np.random.default_rng(seed)
    here = _middle(new[None]) / _middle(old[None])
    ratios = _medians(new, rounds, generator) / _medians(old, rounds, generator)
    return _interval(float(_geometric_mean(here)[0]), _geometric_mean(ratios))


def _column(values: Sequence[float]) -> Floats:
    return np.asarray(values, dtype=np.float64)[:, None]


def _medians(values_SP: Floats, rounds: int, generator: np.random.Generator) -> Floats:
    """Medians over S of `rounds` samples of S rows: [rounds, P]."""
    shots, positions = values_SP.shape
    step = max(1, _VALUES_AT_ONCE // (shots * positions))
    found = []
    for begin in range(0, rounds, step):
        drawn = generator.integers(shots, size=(min(step, rounds - begin), shots))
        found.append(_middle(values_SP[drawn]))
    return np.concatenate(found)


def _middle(values_RSP: Floats) -> Floats:
    """Medians over the second axis, the lower of two in the middle, as `quantile` has them."""
    middle = (values_RSP.shape[1] + 1) // 2 - 1
    return np.partition(values_RSP, middle, axis=1)[:, middle]


def _geometric_mean(values_RP: Floats) -> Floats:
    return np.exp(np.log(values_RP).mean(axis=1))


def _interval(value: float, ratios: Floats) -> Ratio:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Ratio(value, float(low), float(high))
