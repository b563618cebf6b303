"""What the benchmark counts, and the tuning files; its own path is in interpreted_fused_bench.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from shotstream.kernels.fused import bench, launch
from shotstream.kernels.fused.bench_cases import REAL, cases


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
