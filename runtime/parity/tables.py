"""Parity of everything that is a table: noise schedule, rotary embedding, timestep sinusoid, context choice."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from shotstream.runtime.model.context import choose_context, context_counts
from shotstream.runtime.model.rope import rope_table, rotate
from shotstream.runtime.model.schedule import TABLE_LENGTH
from shotstream.runtime.model.transformer import sinusoid
from shotstream.runtime.parity.report import CaseGroup, Row, compare, compare_equal
from shotstream.runtime.parity.vectors import VectorFile

_JUMP = 1 / 6


def _schedule(file: VectorFile, name: str) -> Iterator[Row]:
    case, schedule = file.cases[name], file.schedule()
    for quantity, ours in (
        ("sigmas", schedule.sigmas),
        ("timesteps", schedule.timesteps),
        ("weights", schedule.loss_weights),
    ):
        if quantity in case:
            yield compare(name, quantity, ours, case[quantity])
    nominal = list(file.meta.get("steps", (1000, 740, 500, 260)))
    if "warped" in case:
        yield compare(name, "warped steps", schedule.warp(nominal), case["warped"])
    if "warped_with_1001" in case:
        ours = schedule.warp([*nominal, TABLE_LENGTH + 1])
        yield compare(name, "warped steps with the clean end", ours, case["warped_with_1001"])


def _rotated(case: dict[str, Tensor], start: int, flags: list[int]) -> Tensor:
    x_BLHK: Tensor = case["x"]
    frames, height, width = (int(n) for n in case["grid"].flatten()[:3])
    positions = torch.arange(start, start + frames)[None]
    table = rope_table(positions, torch.tensor([flags]), height, width, x_BLHK.shape[-1], _JUMP)
    return rotate(x_BLHK, *table)


def _rope(file: VectorFile, name: str) -> Iterator[Row]:
    case = file.cases[name]
    flags = [int(f) for f in case["flags"]]
    if "causal" in case:
        yield compare(name, "rotated, causal", _rotated(case, int(case["start_frame"]), flags), case["causal"])
    if "bidirectional" in case:
        yield compare(name, "rotated, bidirectional", _rotated(case, 0, flags), case["bidirectional"])
    if "angle_row1" in case:
        # Position 1 on every axis, no jump: the plain ladder of each axis.
        head_dim = case["x"].shape[-1]
        cos, sin = rope_table(torch.tensor([[1]]), None, 2, 2, head_dim, _JUMP)
        reference = case["angle_row1"].double()
        ours = torch.atan2(sin[0, -1, 0].double(), cos[0, -1, 0].double())
        wrapped = torch.remainder(reference + math.pi, 2 * math.pi) - math.pi
        yield compare(name, "angles at position 1", ours, wrapped)


def _sinusoid(file: VectorFile, name: str) -> Iterator[Row]:
    case = file.cases[name]
    yield compare(name, "out", sinusoid(case["t"], case["out"].shape[-1]), case["out"])


def _context(file: VectorFile, name: str) -> Iterator[Row]:
    case = file.cases[name]
    budget = int(file.meta.get("context_frames", 6))
    length = int(case.get("shot_length", 81))
    for m, entry in case["table"].items():
        chosen = choose_context([length] * int(m), budget)
        if "counts" in entry:
            yield compare_equal(
                name, f"counts, {m} shots", context_counts(int(m), budget), [int(n) for n in entry["counts"]]
            )
        absolute = [shot * length + frame for shot, frame in chosen]
        yield compare_equal(name, f"frames, {m} shots", absolute, [int(i) for i in entry["indices"]])
        yield compare_equal(name, f"flags, {m} shots", [shot for shot, _ in chosen], [int(f) for f in entry["flags"]])


GROUPS = [
    CaseGroup("schedule", ("schedule",), lambda name: name == "schedule", _schedule),
    CaseGroup("rotary", ("rope_d128", "rope_d32"), lambda name: name.startswith("rope_d"), _rope),
    CaseGroup("sinusoid", ("sinusoid",), lambda name: name == "sinusoid", _sinusoid),
    CaseGroup("context", ("context_sampling",), lambda name: name == "context_sampling", _context),
]
