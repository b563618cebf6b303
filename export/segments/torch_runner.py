"""The engine `torch-segments`: the segments as plain or compiled torch modules, with our attention between them.

It is what the same cut costs without a foreign engine, and the path by which the kernels between segments are measured
where TensorRT-RTX does not run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TorchRunner:
    """Segments in torch. compile: by torch.compile, for any number of frames."""

    def __init__(self, modules: dict[str, nn.Module], *, compile: bool = False) -> None:
        self.modules = {
            name: torch.compile(module, dynamic=True) if compile else module for name, module in modules.items()
        }

    def __call__(self, name: str, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """As `segments.cut.SegmentRunner`."""
        made = self.modules[name](*inputs)
        return made if isinstance(made, tuple) else (made,)
