"""Checkpoints: any number of processes goes on with them, and a run that dies while writing one loses nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_jobs import ALONE, alone, make_stage, outcome, steps_of, together, train
from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.training.distributed import checkpoint
from shotstream.training.stages.trainer import LoopConfig, run_stage

MUON: dict[str, Any] = {"optimizer": "muon", "ema": 0.9, "micro_batch": 1}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def steps_in_log(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_run_continues_on_another_number_of_processes(tmp_path: Path) -> None:
    whole, tensors = alone(train, tmp_path, tmp_path / "whole", "teacher")
    curve: dict[int, dict[str, float]] = {}
    for size, steps in ((2, 3), (1, 2), (2, None)):
        figures, last = together(size, train, tmp_path, tmp_path / "parts", "teacher", steps)[0]
        curve |= figures
    assert curve.keys() == whole.keys()
    for step, figures in whole.items():
        assert curve[step] == pytest.approx(figures, rel=1e-6), step
    for name, tensor in last.items():  # weights, their average, the optimizer's state
        torch.testing.assert_close(tensor, tensors[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    ("name", "changes"), [("teacher", MUON), pytest.param("inter", {"ema": 0.9}, marks=pytest.mark.slow)]
)
def test_the_same_processes_continue_to_the_same_bits(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    whole = together(2, train, tmp_path, tmp_path / "whole", name, None, changes)
    together(2, train, tmp_path, tmp_path / "parts", name, 3, changes)
    resumed = together(2, train, tmp_path, tmp_path / "parts", name, None, changes)
    assert_equal(resumed[0][1], whole[0][1])
    assert steps_in_log(tmp_path / "parts") == list(range(1, 9))


def test_rates_of_the_recipe_hold_for_a_resumed_run(tmp_path: Path) -> None:
    _, before = alone(train, tmp_path, tmp_path, "teacher", 3)
    _, after = alone(train, tmp_path, tmp_path, "teacher", None, {"lr": 0.0})
    for name in before:
        moved = not torch.equal(after[name], before[name])
        assert moved == (not name.startswith(("dit/", "parts/"))), name


@pytest.mark.parametrize(("fault", "last"), [("killed", 4), ("killed saving", 2), ("disk full", 2)])
def test_a_run_that_dies_goes_on_from_its_last_checkpoint(tmp_path: Path, fault: str, last: int) -> None:
    _, whole = alone(train, tmp_path, tmp_path / "whole", "teacher")
    out = tmp_path / "broken"
    codes, said = outcome(1, train, tmp_path, out, "teacher", None, None, fault)
    assert codes == ([1] if fault == "disk full" else [-9])
    if fault == "disk full":
        assert "stage teacher stopped at step 4" in said[0]
        assert "the last checkpoint is whole, make room" in said[0]
    assert checkpoint.newest(out) == out / f"checkpoint-{last:06d}"
    _, resumed = alone(train, tmp_path, out, "teacher")
    assert_equal(resumed, whole)
    assert steps_in_log(out) == list(range(1, 9))
    assert [path.name for path in out.glob("checkpoint*")] == ["checkpoint-000008"]


def test_a_full_disk_of_one_process_ends_all_with_a_sentence(tmp_path: Path) -> None:
    codes, said = outcome(2, train, tmp_path, tmp_path / "out", "teacher", None, None, "disk full")
    assert 0 not in codes
    assert sum("the previous one is intact" in str(line) for line in said) == 1
    assert checkpoint.newest(tmp_path / "out") == tmp_path / "out" / "checkpoint-000002"


@pytest.mark.parametrize("name", ["teacher", "intra"])
def test_single_files_of_earlier_versions_are_continued(tmp_path: Path, name: str) -> None:
    stage = make_stage(name, tmp_path, ALONE)
    steps_of(stage, [0, 1])
    torch.save({"step": 2, "stage": _as_before(copy.deepcopy(stage.state_dict()))}, tmp_path / "checkpoint.pt")
    _, expected = alone(train, tmp_path, tmp_path / "whole", name)
    loop = LoopConfig(2, save_every=2, sheet_every=100)
    resumed = make_stage(name, tmp_path, ALONE)
    assert run_stage(resumed, loop, tmp_path)
    ours: dict[str, Tensor] = {}
    theirs: dict[str, Tensor] = {}
    checkpoint._split(resumed.state_dict(), "", ours)
    checkpoint._split(stage.state_dict(), "", theirs)
    assert_equal(ours, theirs)
    assert ours.keys() == expected.keys()


def _as_before(state: dict[str, Any]) -> dict[str, Any]:
    """The state as it was stored when the distillation used torch's AdamW."""
    for key in ("optimizer", "critic_optimizer"):
        for values in state.get(key, {}).get("state", {}).values():
            if "critic_optimizer" in state:
                values |= {"exp_avg": values.pop("mean"), "exp_avg_sq": values.pop("square")}
                values["step"] = torch.tensor(float(values["step"]))
    return state


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    stage = make_stage("teacher", tmp_path, ALONE)
    folder = checkpoint.save(tmp_path, 4, "teacher", stage.state_dict(), ALONE)
    with pytest.raises(UserError, match="is a checkpoint of stage teacher, not of ode"):
        checkpoint.load(tmp_path, "ode", stage.state_dict(), ALONE)
    other = make_stage("teacher", tmp_path, ALONE, ema=0.0, parts_weight=0.0)
    with pytest.raises(UserError, match=r"of another recipe: its ema/dit.*not there; use the recipe"):
        checkpoint.load(tmp_path, "teacher", other.state_dict(), ALONE)
    shard = next(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"checkpoint-000004 cannot be read .*; delete it"):
        checkpoint.load(tmp_path, "teacher", stage.state_dict(), ALONE)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(tmp_path / "old", "teacher", stage.state_dict(), ALONE)
