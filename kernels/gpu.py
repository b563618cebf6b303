"""What every kernel needs: Triton, and a GPU that it can use. Says in one sentence what is missing."""

from __future__ import annotations

import importlib.util

import torch

from shotstream.runtime.errors import UserError

OLDEST = (8, 0)
"""The oldest compute capability that kernels are compiled for."""
EIGHT_BIT = (8, 9)
"""From here on the hardware knows float8_e4m3fn."""


def require_gpu(kind: str, device: torch.device | None = None) -> tuple[int, int]:
    """The compute capability of the device, by default the current one.

    kind: what is asked for, such as "attention", for the message. Raises UserError without Triton or a usable GPU.
    """
    what, instead = f"the {kind} 'triton' needs", f"choose another {kind}"
    if importlib.util.find_spec("triton") is None:
        raise UserError(f"{what} Triton; install shotstream[gpu], or {instead}")
    if not torch.cuda.is_available():
        raise UserError(f"{what} a CUDA device and torch sees none; {instead}")
    if device is not None and device.type != "cuda":
        raise UserError(f"{what} a CUDA device, not {device}; {instead}")
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        name, oldest = torch.cuda.get_device_name(device), ".".join(map(str, OLDEST))
        raise UserError(f"{what} a GPU of capability {oldest} or newer and {name} has {capability}; {instead}")
    return capability
