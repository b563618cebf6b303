"""Eight-bit graphs compute what the emulation says, and a calibration finds what they need and what they cost."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from trt_files import LAYERS, small_export, small_parts

from shotstream.export.fp8.calibration import LAYER_SETS, Accuracy, Report, Shots, calibrate, read_report, shots_of
from shotstream.export.fp8.emulation import emulated, places, watched
from shotstream.export.fp8.exporting import eight_bit_export
from shotstream.export.fp8.products import (
    FP8_FOLDER,
    FP8_MAX,
    PRODUCTS,
    eight_bit_products,
    products_of,
    quantise_graph,
    weight_scales,
)
from shotstream.export.graphs.segments import example_inputs
from shotstream.export.manifest import check_files, read_manifest
from shotstream.export.segments.cut import cut, signatures
from shotstream.export.trt.build import BuildOrder, build_apart
from shotstream.export.trt.keys import profiles
from shotstream.export.trt.product import RTX, missing_to_build
from shotstream.runtime.errors import UserError
from shotstream.runtime.runtime import Runtime

MakeRuntime = Callable[..., Runtime]
PARTS = small_parts()
SHOTS = Shots("A forest. ", ["a fox waits", "a fox runs"])
EXPORT = "shotstream.export.plugin:plugin"


@pytest.fixture(scope="module")
def segments() -> dict[str, torch.nn.Module]:
    return cut(PARTS.transformer, PARTS.latent_shape)


@pytest.fixture
def report(small_runtime: MakeRuntime) -> Report:
    return calibrate(small_runtime(EXPORT, engine="torch-segments", model_options=LAYERS), SHOTS)


def test_every_product_of_every_block_is_in_one_segment() -> None:
    found = [place for name in signatures(PARTS.config) for place in products_of(name, PARTS.config).values()]
    assert sorted(found) == sorted(eight_bit_products(PARTS.config, exact_blocks=0))
    assert len(found) == 3 * len(PRODUCTS)
    assert eight_bit_products(PARTS.config) == {(1, kind) for kind in PRODUCTS}


@pytest.mark.parametrize("name", ["mid_0", "mid_1"])
def test_an_eight_bit_graph_computes_what_the_emulation_does(
    segments: dict[str, torch.nn.Module], name: str, tmp_path: Path
) -> None:
    inputs = example_inputs(PARTS.config, PARTS.latent_shape, name, torch.float32)
    wanted = products_of(name, PARTS.config)
    found = {place: where for place, where in places(segments).items() if place in wanted.values()}
    with torch.no_grad(), watched(found) as seen:
        exact = segments[name](*inputs.values())
    amax = {place: float(most) for place, most in seen.items()}
    with torch.no_grad(), emulated(found, amax):
        expected = segments[name](*inputs.values())
    with torch.no_grad():
        for a, b in zip(segments[name](*inputs.values()), exact, strict=True):
            assert torch.equal(a, b)  # all is as it was
    assert not any("forward" in where.owner.__dict__ for where in found.values())

    graph = small_export() / f"{name}.onnx"
    quantise_graph(graph, tmp_path / "eight.onnx", {kind: amax[place] for kind, place in wanted.items()})
    onnx.checker.check_model(str(tmp_path / "eight.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "eight.onnx"), providers=["CPUExecutionProvider"])
    made = session.run(None, {port: tensor.numpy() for port, tensor in inputs.items()})
    for ours, theirs, plain in zip(expected, made, exact, strict=True):
        apart = float((ours - torch.from_numpy(theirs)).norm() / ours.norm())
        rounding = float((ours - plain).norm() / ours.norm())
        assert rounding > 0.005
        assert apart < rounding / 10  # the same rounding, but for numbers that lie between two


def test_weights_keep_their_channels_scale() -> None:
    weight_ND = torch.tensor([[1.0, -2.0], [1e-5, 2e-6], [0.0, 0.0]])
    scale_N = weight_scales(weight_ND)
    torch.testing.assert_close(weight_ND[:2].abs().amax(dim=1) / scale_N[:2], torch.full((2,), FP8_MAX))
    assert scale_N[2] > 0
    assert torch.isfinite(weight_ND.half().float() / weight_scales(weight_ND.half())[:, None]).all()


def test_a_product_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"head\.onnx has no product up with constant weights; it has qkv"):
        quantise_graph(small_export() / "head.onnx", tmp_path / "out.onnx", {"up": 1.0})


def test_a_calibration_watches_inner_blocks_and_tells_what_each_layer_set_costs(report: Report) -> None:
    assert set(report.amax) == {f"1.{kind}" for kind in PRODUCTS}
    assert all(most > 0 for most in report.amax.values())
    assert {name: found.products for name, found in report.layer_sets.items()} == {
        "self-attention": 2, "cross-attention": 2, "feed-forward": 2, "all": 6,
    }  # fmt: skip
    for found in report.layer_sets.values():
        assert list(found.errors) == [1, 3, 7]
        assert all(0 < error < 0.2 for error in found.errors.values())
        assert found.psnr > 20
    assert report.loss() == report.layer_sets["all"].errors[7]
    parts = [report.layer_sets[name].errors[1] for name in LAYER_SETS if name != "all"]
    assert max(parts) / 2 < report.layer_sets["all"].errors[1] < sum(parts) * 2


def test_a_model_without_inner_blocks_cannot_be_calibrated(small_runtime: MakeRuntime) -> None:
    with pytest.raises(UserError, match="a model of 2 blocks, 1 at either end exact, has none for eight bits"):
        calibrate(small_runtime(EXPORT, engine="torch-segments"), SHOTS)


def test_an_eight_bit_export_is_complete_resumable_and_of_one_calibration(tmp_path: Path) -> None:
    folder = tmp_path / "graphs"
    shutil.copytree(small_export(), folder)
    found = {name: Accuracy(6, {1: 0.01, 3: 0.02, 7: 0.03}, 40.0) for name in LAYER_SETS}
    report = Report(PARTS.weights_hash, 1, {f"1.{kind}": 3.0 for kind in PRODUCTS}, found)
    told: list[str] = []
    made = eight_bit_export(folder, report, told.append)
    target = folder / FP8_FOLDER
    assert told == list(signatures(PARTS.config)) == list(made.graphs)
    assert made.source.precision == "float8"
    check_files(target, read_manifest(target))
    assert read_report(target) == report
    rounded = [name for name in made.graphs if _eight_bit_weights(target / f"{name}.onnx")]
    assert rounded == ["mid_0", "mid_1"]  # block 1's start is in the first, its rest in the second
    assert _eight_bit_weights(target / "mid_0.onnx") == 1
    assert _eight_bit_weights(target / "mid_1.onnx") == 5

    told.clear()
    (target / "mid_1.onnx").write_bytes(b"")
    eight_bit_export(folder, report, told.append)
    assert told == ["mid_1"]
    eight_bit_export(folder, dataclasses.replace(report, amax={**report.amax, "1.up": 4.0}), told.append)
    assert len(told) == 1 + len(made.graphs)
    with pytest.raises(UserError, match="the calibration is of other weights than the export"):
        eight_bit_export(folder, dataclasses.replace(report, weights_hash="0"))


@pytest.mark.skipif(bool(missing_to_build(RTX)), reason="TensorRT-RTX is not installed")
def test_rtx_builds_eight_bit_products(tmp_path: Path) -> None:
    graph = small_export() / "mid_1.onnx"
    quantise_graph(graph, tmp_path / "eight.onnx", dict.fromkeys(PRODUCTS[1:], 3.0))
    ranges = profiles("mid_1", read_manifest(small_export()).graph("mid_1"), PARTS.config, PARTS.latent_shape)
    build_apart(BuildOrder(RTX, str(tmp_path / "eight.onnx"), str(tmp_path / "plan"), ranges, ("sm_120",)))
    with pytest.raises(UserError, match=r"Cannot compile for target.*sm86"):
        build_apart(BuildOrder(RTX, str(tmp_path / "eight.onnx"), str(tmp_path / "plan"), ranges, ("sm_86",)))


def test_a_calibration_plays_what_a_story_says(tmp_path: Path) -> None:
    demo = shots_of()
    assert "red cat" in demo.global_caption
    assert len(demo.captions) == 2
    (tmp_path / "story.txt").write_text("A forest.\na fox waits\na fox runs\na fox sleeps\n")
    assert list(shots_of(tmp_path / "story.txt").captions) == ["a fox waits", "a fox runs"]


def test_a_damaged_report_is_refused(tmp_path: Path) -> None:
    assert read_report(tmp_path) is None
    (tmp_path / "accuracy.json").write_text("{}")
    with pytest.raises(UserError, match=r"cannot be read: .* delete it and calibrate again"):
        read_report(tmp_path)


def _eight_bit_weights(graph: Path) -> int:
    model = onnx.load(str(graph))
    eight = onnx.TensorProto.FLOAT8E4M3FN
    return sum(tensor.data_type == eight and len(tensor.dims) == 2 for tensor in model.graph.initializer)
