"""The benchmark's own path, at toy size; its numbers mean something on a GPU only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from shotstream.kernels.fused import bench, launch
from shotstream.kernels.fused.bench_cases import REAL, TOY, cases

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


def test_bytes_are_those_of_the_notes() -> None:
    meta = torch.device("meta")
    megabytes = {case.name: case.bytes / 1e6 for case in cases(REAL, meta, torch.bfloat16, True)}
    expected = {
        "qk_prologue": 88.7, "qk_prologue, fp8 cache": 74.3, "norm_modulate": 28.8, "norm_modulate_fp8": 21.6,
        "gated_residual": 43.1, "gated_residual_norm": 57.5, "gated_residual_norm_fp8": 50.3, "rms_norm": 28.8,
        "gelu_tanh": 167.7, "gelu_tanh_fp8": 125.8, "quantise_fp8_rowwise": 21.6,
    }  # fmt: skip
    assert megabytes == {name: pytest.approx(value, abs=0.06) for name, value in expected.items()}
    assert all(f"| {value} |" in (Path(bench.__file__).parent / "NOTES.md").read_text() for value in expected.values())


def test_the_tuning_files_name_kernels_and_widths_that_are_launched() -> None:
    real = {case.key for case in cases(REAL, torch.device("meta"), torch.bfloat16, True)}
    for file in (Path(bench.__file__).parent / "tuning").glob("sm_*.json"):
        warps = json.loads(file.read_text())["warps"]
        assert real <= set(warps)
        assert all(count in (1, 2, 4, 8, 16) for count in warps.values())


def test_rows_get_lanes_and_warps_by_their_width() -> None:
    assert [launch.block_lanes(width) for width in (1, 2, 3, 192, 1536, 2048, 2049)] == [2, 2, 4, 256, 2048, 2048, 4096]
    assert [launch.default_warps(lanes) for lanes in (2, 256, 2048, 16384)] == [1, 1, 4, 16]
