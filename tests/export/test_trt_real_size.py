"""One segment of the real size, built by TensorRT-RTX in 16 and in 8 bits: seconds, size and memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from shotstream.export.fp8.products import PRODUCTS, quantise_graph
from shotstream.export.graphs.segments import segment_spec
from shotstream.export.graphs.spec import write_graph
from shotstream.export.segments.cut import cut
from shotstream.export.trt.build import BuildOrder, build_apart
from shotstream.export.trt.keys import profiles
from shotstream.export.trt.product import RTX, missing_to_build
from shotstream.runtime.config import WAN_1_3B
from shotstream.runtime.wan import random_transformer

LATENT = (16, 60, 104)


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_to_build(RTX)), reason="TensorRT-RTX is not installed")
def test_a_middle_segment_of_the_real_size_builds_in_16_and_8_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(WAN_1_3B, layers=2)  # blocks are all alike, and two make a middle segment
    model = random_transformer(config, 0, "cpu", torch.bfloat16)
    spec = segment_spec("mid_0", cut(model, LATENT)["mid_0"], config, LATENT, torch.bfloat16)
    graph = write_graph(spec, tmp_path, "bf16.onnx")
    quantise_graph(tmp_path / "bf16.onnx", tmp_path / "fp8.onnx", dict.fromkeys(PRODUCTS, 8.0))
    for precision, most in (("bf16", 85), ("fp8", 45)):
        plan = tmp_path / f"{precision}.plan"
        ranges = profiles("mid_0", graph, config, LATENT)
        facts = build_apart(BuildOrder(RTX, str(tmp_path / f"{precision}.onnx"), str(plan), ranges, ("sm_120",)))
        size = plan.stat().st_size / 2**20
        with capsys.disabled():
            print(f"\n{precision}: {facts['seconds']:.1f} s, {size:.1f} MiB, peak {facts['peak_mb']:.0f} MiB")  # noqa: T201
        assert most - 10 < size < most
        assert facts["peak_mb"] < 1000
