"""How a stage uses its machine, apart from what it learns: precision, micro-batches, recomputation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from shotstream.runtime.errors import UserError

PRECISIONS = ("autocast", "fsdp-bf16", "float32")


@dataclass(frozen=True)
class Scale:
    """What changes speed and memory, and no result beyond rounding.

    ``precision``: "autocast" (float32 weights, products in bfloat16), "fsdp-bf16" (processes gather weights rounded to
    bfloat16; the sharded master weights and the sums of gradients stay float32; the reference's way), or "float32".
    ``micro_batch``: samples that a process computes at once, 0 for its whole share of the batch. ``checkpointing``:
    the backward pass computes every block's activations again instead of keeping them.
    """

    precision: str = "autocast"
    micro_batch: int = 0
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UserError(f"precision is one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        if self.micro_batch < 0:
            raise UserError(f"micro_batch is a number of samples, 0 for all of them, not {self.micro_batch}")

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of a step's network calls."""
        # No cache: the rounded copies of all weights would outlive the gathered ones.
        return torch.autocast(
            device.type, torch.bfloat16, enabled=self.precision != "float32", cache_enabled=not _sharded()
        )


def _sharded() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
