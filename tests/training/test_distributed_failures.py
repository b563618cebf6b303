"""When something goes wrong in a run of several processes, all of them end, and one of them says why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from distributed_jobs import outcome, train

from shotstream.training.distributed import checkpoint


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nan", r"stage teacher: flow_6\+3 is not finite at step 6"),
        ("refused", "this process cannot read its videos"),
        ("killed", "another process of this training ended"),
    ],
)
def test_a_failure_is_said_once_and_ends_all_processes(tmp_path: Path, fault: str, words: str) -> None:
    codes, said = outcome(2, train, tmp_path, tmp_path / "out", "teacher", None, None, fault)
    assert 0 not in codes
    spoken = [line for line in said if line is not None]
    assert len(spoken) == 1
    assert re.search(words, spoken[0])
    assert checkpoint.newest(tmp_path / "out") == tmp_path / "out" / "checkpoint-000004"
