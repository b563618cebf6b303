"""Sharded networks: many forwards before one backward, the cache's gradient, recomputation, bfloat16 weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_jobs import alone, distillation, distillations, reference_teacher, together
from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.training.distributed.scale import Scale

SUBSET = Path(__file__).parents[1] / "vectors" / "subset.pt"
FULL = Scale("float32")
CASES: list[tuple[dict[str, Any], Scale, bool]] = [
    ({}, FULL, False),
    ({}, Scale("float32", checkpointing=True), False),
    ({"detach_cache": True}, FULL, False),
    ({"round_timesteps": True}, FULL, False),
    ({"round_timesteps": True}, FULL, True),
]


def apart(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest distance of a parameter's gradients, relative to the larger of its own and a thousandth of all's size."""
    assert ours.keys() == theirs.keys()
    least = 1e-3 * max(float(g.abs().max()) for g in theirs.values())
    return max(float((ours[k] - g).abs().max()) / max(float(g.abs().max()), least) for k, g in theirs.items())


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Every case in one process, whole."""
    return alone(distillations, tmp_path_factory.mktemp("single"), CASES)


def test_switches_of_the_roll_out_change_the_gradient(single: list[Any]) -> None:
    plain, recomputed, detached, rounded, _ = (gradient for _, gradient, _ in single)
    assert apart(recomputed, plain) < 2e-5
    assert apart(detached, plain) > 0.05
    assert apart(rounded, plain) > 1e-4


def test_sharded_networks_have_the_gradient_of_whole_ones(single: list[Any], tmp_path: Path) -> None:
    for found in together(2, distillations, tmp_path, CASES):
        for case, (loss, gradient, _), (loss0, gradient0, _) in zip(CASES, found, single, strict=True):
            assert loss == pytest.approx(loss0, rel=1e-6), case
            assert apart(gradient, gradient0) < 2e-5, case


def test_the_sharded_teacher_has_the_gradient_of_the_reference(tmp_path: Path) -> None:
    assert together(2, reference_teacher, tmp_path, SUBSET) == [[], []]


def test_weights_gathered_in_bfloat16_stay_float32_where_they_are_trained(single: list[Any], tmp_path: Path) -> None:
    for critic in (False, True):
        case = ({}, Scale("fsdp-bf16", checkpointing=True), critic)
        (_, gradient, dtypes), _ = together(2, distillation, tmp_path, *case)
        _, exact, _ = alone(distillation, tmp_path, {}, FULL, critic)
        assert dtypes == ["torch.bfloat16", "torch.float32"]  # what is generated, and what is trained
        assert {g.dtype for g in gradient.values()} == {torch.float32}
        whole = sum(float((gradient[k] - g).square().sum()) for k, g in exact.items()) ** 0.5
        assert whole < 0.1 * sum(float(g.square().sum()) for g in exact.values()) ** 0.5


def test_bfloat16_weights_without_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="torchrun --nproc-per-node 1"):
        alone(distillation, tmp_path, {}, Scale("fsdp-bf16"))
    with pytest.raises(UserError, match="precision is one of autocast, fsdp-bf16, float32"):
        Scale("bf16")
