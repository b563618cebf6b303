"""The benchmark's own path at toy size, through Triton's interpreter; its numbers mean something on a GPU only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from shotstream.kernels.fused import bench, launch
from shotstream.kernels.fused.bench_cases import TOY, cases

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_stays_tuned() -> None:
    launch.tuned.cache_clear()


def test_every_kernel_is_measured_beside_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--toy", "--rounds", "1", "--json", str(tmp_path / "rows.json")]) == 0
    report = json.loads((tmp_path / "rows.json").read_text())
    names = [row["name"] for row in report["rows"]]
    assert names == [case.name for case in cases(TOY, CPU, torch.float32, True)]
    assert all(row["ours_us"] > 0 and row["eager_us"] > 0 for row in report["rows"])
    assert all(name in capsys.readouterr().out for name in names[:1])
    assert set(report["feed_forward_us"]) == {"product and bias", "product with epilogue", "product, then gelu_tanh"}


def test_tuning_writes_what_the_launcher_reads(tmp_path: Path) -> None:
    file = tmp_path / "sm_1.json"
    assert bench.main(["--toy", "--rounds", "1", "--kernel", "rms_norm", "--tune", str(file)]) == 0
    warps = json.loads(file.read_text())["warps"]
    assert list(warps) == ["rms_norm/16"]
    assert launch.warps("rms_norm", 16, CPU) == warps["rms_norm/16"]
