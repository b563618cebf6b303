"""Building plans: for real with TensorRT-RTX, which needs no GPU for it, and with a stand-in for TensorRT."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from trt_files import FAKES, fake_tensorrt

from shotstream.export.trt import build as building
from shotstream.export.trt.build import BuildOrder, build_apart, build_plan
from shotstream.export.trt.product import RTX, missing_to_build
from shotstream.runtime.errors import UserError

rtx = pytest.mark.skipif(bool(missing_to_build(RTX)), reason="TensorRT-RTX is not installed")
FRAMES = {"x": ((1, 8), (3, 8), (6, 8))}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """relu(x) W, with a free number of rows, in bfloat16."""
    return write_graph(tmp_path / "graph.onnx", TensorProto.BFLOAT16)


def write_graph(path: Path, kind: int) -> Path:
    size = {TensorProto.BFLOAT16: 2, TensorProto.FLOAT: 4}[kind]
    weight = helper.make_tensor("w", kind, [8, 4], bytes(32 * size), raw=True)
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    x, y = (helper.make_tensor_value_info(n, kind, ["frames", width]) for n, width in (("x", 8), ("y", 4)))
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [weight]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.save(model, str(path))
    return path


@rtx
def test_rtx_builds_without_a_gpu(graph: Path, tmp_path: Path) -> None:
    plans = {}
    for targets in ((), ("sm_120",)):
        plan = tmp_path / f"{len(targets)}.plan"
        facts = build_apart(BuildOrder(RTX, str(graph), str(plan), FRAMES, targets))
        assert facts["seconds"] > 0
        assert 50 < facts["peak_mb"] < 2000
        plans[targets] = plan.read_bytes()
    assert len(plans[()]) > 1000
    assert plans[()] != plans["sm_120",]


@rtx
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"onnx": "nothing.onnx"}, "TensorRT-RTX cannot read nothing.onnx: .*cannot be found"),
        ({"targets": ("sm_75",)}, "TensorRT-RTX 1.* cannot build .*graph.onnx: .*Cannot compile for target"),
        ({"profiles": {}}, "inputs x have free sizes, and no range was given"),
        ({"profiles": {**FRAMES, "z": FRAMES["x"]}}, "the graph has no input z; it has x"),
        ({"plan": "/nowhere/plan"}, "cannot write /nowhere/plan: No such file"),
    ],
)
def test_rtx_says_what_it_does_not_build(graph: Path, tmp_path: Path, change: dict, message: str) -> None:
    order = {"product": RTX, "onnx": str(graph), "plan": str(tmp_path / "plan"), "profiles": FRAMES} | change
    with pytest.raises(UserError, match=message):
        build_apart(BuildOrder(**order))
    assert not (tmp_path / "plan").exists()


def test_a_file_that_is_no_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.onnx").write_text("this is no model")
    fake_tensorrt(monkeypatch)
    with pytest.raises(UserError, match=r"TensorRT cannot read .*text\.onnx: this is no model"):
        build_apart(BuildOrder("tensorrt", str(tmp_path / "text.onnx"), str(tmp_path / "plan"), FRAMES))


def test_a_builder_that_dies_is_a_sentence(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text(f"import os\nos.kill(os.getpid(), {int(signal.SIGKILL)})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match="was ended by signal 9; 9 mostly means that memory ran out"):
        build_apart(BuildOrder("tensorrt", str(graph), str(tmp_path / "plan"), FRAMES))


def test_tensorrt_before_11_is_asked_for_strong_types(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = fake_tensorrt(monkeypatch)
    flags = []
    real = product.module.Builder.create_network
    monkeypatch.setattr(product.module.Builder, "create_network", lambda self, f: flags.append(f) or real(self, f))
    for version in ("10.9.0", "11.4.0"):
        monkeypatch.setattr(product.module, "__version__", version)
        build_plan(product, BuildOrder("tensorrt", str(graph), str(tmp_path / "plan"), FRAMES))
    assert flags == [1 << 1, 0]


def test_timings_are_kept_and_foreign_ones_put_aside(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = fake_tensorrt(monkeypatch)
    cache = tmp_path / "timings"
    order = BuildOrder("tensorrt", str(graph), str(tmp_path / "plan"), FRAMES, timing_cache=str(cache))
    for expected in (b"+", b"++"):
        build_plan(product, order)
        assert cache.read_bytes() == expected
    cache.write_bytes(b"foreign")
    build_plan(product, order)
    assert cache.read_bytes() == b"+"


def test_a_child_process_finds_the_stand_in(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt(monkeypatch)
    assert os.environ["PYTHONPATH"] == str(FAKES)
    build_apart(BuildOrder("tensorrt", str(graph), str(tmp_path / "plan"), FRAMES))
    assert (tmp_path / "plan").read_bytes().startswith(b"FAKEPLAN")


def test_memory_is_that_of_the_child_alone(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt(monkeypatch)
    ours = bytearray(os.urandom(1)) * 600_000_000
    facts = build_apart(BuildOrder("tensorrt", str(graph), str(tmp_path / "plan"), FRAMES))
    assert facts["peak_mb"] < len(ours) / 2**20
    assert building._peak_mib() > len(ours) / 2**20
