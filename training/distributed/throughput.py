"""How fast a device can be, where that is known, so that a log can say how much of it a run reaches."""

from __future__ import annotations

import torch

# bfloat16 with dense matrices, float32 sums, TFLOP/s, from the makers' data sheets; longer names first.
_PEAKS = (
    ("B200", 2250.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("RTX 4090", 165.0),
    ("RTX 5090", 209.0),
    ("A10", 125.0),
)


def peak_tflops(device: torch.device) -> float | None:
    """Of one device; None for a CPU and for a GPU that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in _PEAKS if known in name), None)
