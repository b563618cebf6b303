"""How `subset.pt` was cut from a full file of reference vectors, as a function that cuts it again.

Kept: the tables, one model, its student case with three captions and the one with a single caption, and the teacher's
training loss with the smaller of its gradients. Nothing is recomputed: every tensor is the reference's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

TABLES = ("meta", "schedule", "rope_d32", "sinusoid", "context_sampling")
STUDENTS = ("student_A", "student_A_onecaption")
LOSS = "train_teacher_A"
BULKY = ("calls", "cache_after_chunk", "block_out_context", "block_out_first_step")
LARGEST_GRADIENT = 10_000
"""Gradients with more elements are left out."""


def cut(full: Path, subset: Path) -> None:
    """Write the subset of the vector file `full` to `subset`."""
    content: dict[str, Any] = torch.load(full, weights_only=True)
    kept = {name: content[name] for name in TABLES}
    for name in STUDENTS:
        kept[name] = {key: value for key, value in content[name].items() if key not in BULKY}
    loss = dict(content[LOSS])
    loss["grads"] = {key: g for key, g in loss["grads"].items() if g.numel() < LARGEST_GRADIENT}
    kept[LOSS] = loss
    for name in {kept[case]["weights"] for case in (*STUDENTS, LOSS)}:
        kept[name] = content[name]
    torch.save(_owned(kept), subset)


def _owned(value: Any) -> Any:
    """The same content with tensors that own just their elements, so that views do not drag their base along."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _owned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_owned(item) for item in value)
    return value
