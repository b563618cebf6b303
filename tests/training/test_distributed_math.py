"""Any number of processes and any micro-batch compute the same step: figures and whole gradients, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from distributed_jobs import alone, run_steps, together, write_pairs
from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.training.distributed.accumulate import parts_of
from shotstream.training.distributed.launch import Team

STAGES: list[tuple[str, list[int], dict[str, Any]]] = [
    ("teacher", [0, 5], {}),
    ("teacher", [5], {"train_only": "self_attn", "checkpointing": True, "weighting": "gaussian"}),
    ("ode", [0, 1, 2], {}),
    ("ode", [1], {"history": "clean"}),
    ("intra", [0], {}),
    ("intra", [1], {}),
    ("intra", [0], {"checkpointing": True}),
    ("inter", [0], {}),
    ("continuation", [0], {}),
    ("coupled", [0, 2, 4], {}),
    ("coupled", [1, 3], {"played": 1.0}),
]
CLOSE = 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pairs")
    write_pairs(out)
    return out


@pytest.fixture(scope="module")
def whole(folder: Path) -> list[Any]:
    """Every stage's steps in one process, all of the batch at once."""
    return alone(run_steps, folder, STAGES)


def apart(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Relative distance of two gradients."""
    assert ours.keys() == theirs.keys()
    square = sum((ours[k].double() - theirs[k].double()).square().sum() for k in ours)
    return float(square / sum(g.double().square().sum() for g in theirs.values())) ** 0.5


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for (name, numbers, changes), (figures, gradients), (figures0, gradients0) in zip(
        STAGES, found, expected, strict=True
    ):
        assert len(gradients) == len(gradients0) >= len(numbers)
        for ours, theirs in zip(gradients, gradients0, strict=True):
            assert apart(ours, theirs) < CLOSE, (name, changes)
        for ours, theirs in zip(figures, figures0, strict=True):
            assert ours == pytest.approx(theirs, rel=CLOSE), (name, changes)


@pytest.mark.parametrize("micro_batch", [0, 1])
def test_two_processes_compute_what_one_does(folder: Path, whole: list[Any], micro_batch: int) -> None:
    parts = [(name, numbers, changes | {"micro_batch": micro_batch}) for name, numbers, changes in STAGES]
    for found in together(2, run_steps, folder, parts):
        assert_same(found, whole)


def test_micro_batches_compute_what_the_whole_batch_does(folder: Path, whole: list[Any]) -> None:
    for size in (2, 3):  # of four samples: equal parts, and unequal ones
        parts = [(name, numbers, changes | {"micro_batch": size}) for name, numbers, changes in STAGES]
        assert_same(alone(run_steps, folder, parts), whole)


def test_a_batch_is_cut_into_rows_of_equal_number() -> None:
    rows = [[range(12)[p.rows] for p in parts_of(12, Team(rank, 3), 3)] for rank in range(3)]
    assert rows == [[range(3), range(3, 4)], [range(4, 7), range(7, 8)], [range(8, 11), range(11, 12)]]
    with pytest.raises(UserError, match="a batch of 6 does not split evenly over 4 processes"):
        parts_of(6, Team(0, 4))
