"""How tiles are shared out over the multiprocessors. Depends on shapes and the GPU only, never on how full a cache is.

444 tiles on 132 multiprocessors are 3.36 waves, and the last one would leave two thirds of the GPU idle. So full waves
take whole tiles, and the tiles that remain are cut along their keys into pieces that fill the GPU once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

MOST_SPLITS = 16
PIECE_COST = 0.01
"""What a piece costs beside its keys, in units of a whole tile: its sums are written and read again (an estimate)."""
WORTH_IT = 0.95
"""A cut last wave must cost at most this part of an uncut one."""


@dataclass(frozen=True)
class Plan:
    """Tiles 0 .. ``whole`` - 1 are computed whole, the ``split`` behind them in ``splits`` pieces each."""

    whole: int
    split: int
    splits: int

    @property
    def pieces(self) -> int:
        """Programs of the split part."""
        return self.split * self.splits


@cache
def plan(tiles: int, processors: int, most_splits: int = MOST_SPLITS) -> Plan:
    """Share out ``tiles`` equal tiles; ``most_splits`` is lower where a tile has few key blocks."""
    rest = tiles % processors
    best, best_cost = 1, WORTH_IT
    for splits in range(2, min(most_splits, MOST_SPLITS) + 1):
        waves = -(-rest * splits // processors)
        cost = waves / splits + PIECE_COST * splits
        if cost < best_cost:
            best, best_cost = splits, cost
    if rest == 0 or best == 1:
        return Plan(tiles, 0, 1)
    return Plan(tiles - rest, rest, best)
