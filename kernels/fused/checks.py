"""Refusals before a launch: a kernel that gets the wrong shape reads someone else's memory instead of failing.

Messages name the tensor, say what it must be and what it is. They are put together only when something is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check(
    name: str,
    tensor: Tensor,
    *,
    like: Tensor | None = None,
    shape: Sequence[int | None] | None = None,
    dtypes: Sequence[torch.dtype] = FLOATS,
    contiguous: bool = False,
) -> None:
    """Raise ValueError unless the tensor has this shape (None: any size), one of these dtypes and `like`'s device.

    The last axis must be contiguous; with `contiguous`, all of them.
    """
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} is {tensor.dtype}; it must be one of {', '.join(map(str, dtypes))}")
    if shape is not None and (
        tensor.ndim != len(shape) or any(w not in (None, s) for w, s in zip(shape, tensor.shape, strict=True))
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be [{wanted}]")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device} and the activations are on {like.device}")
    if contiguous and not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous; its strides are {tensor.stride()}")
    if tensor.ndim and tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError(f"{name} must be contiguous along its last axis; its strides are {tensor.stride()}")


def as_rows(name: str, tensor: Tensor) -> Tensor:
    """View ``[..., D]`` as ``[L, D]`` without a copy; ValueError where its strides do not allow that."""
    if tensor.ndim < 1 or tensor.numel() == 0:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must have at least one row")
    if tensor.ndim == 2:
        return tensor
    try:
        return tensor.view(-1, tensor.shape[-1])
    except RuntimeError as error:
        raise ValueError(f"{name} does not lie in evenly spaced rows; its strides are {tensor.stride()}") from error


def frame_vectors(name: str, tensor: Tensor, rows_LD: Tensor) -> Tensor:
    """Check per-frame vectors ``[..., D]`` against the activations' rows and return them as ``[N, D]``."""
    check(name, tensor, like=rows_LD)
    vectors_ND = as_rows(name, tensor)
    rows, width = rows_LD.shape
    if vectors_ND.shape[1] != width:
        raise ValueError(f"{name} has {vectors_ND.shape[1]} channels and the activations have {width}")
    if rows % vectors_ND.shape[0]:
        raise ValueError(f"{name} has {len(vectors_ND)} vectors, over which {rows} rows cannot be shared evenly")
    return vectors_ND
