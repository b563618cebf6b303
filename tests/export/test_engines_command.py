"""`shotstream export engines` as a user calls it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from test_store import ENGINE, damage, writes
from trt_files import fake_tensorrt, small_export, small_parts
from typer.testing import CliRunner

from shotstream.export.engine_store import building as engine_building
from shotstream.export.engine_store.command import mount
from shotstream.export.engine_store.entry import KEY
from shotstream.export.engine_store.store import EngineStore
from shotstream.export.exporting import export_graphs, source_of
from shotstream.export.fp8.calibration import LAYER_SETS, Accuracy, Report
from shotstream.export.fp8.products import FP8_FOLDER, PRODUCTS
from shotstream.export.graphs.contents import graph_specs
from shotstream.export.graphs.spec import OPSET
from shotstream.export.graphs.step import STEP
from shotstream.export.graphs.step_in_place import CONTEXT_IN_PLACE, STEP_IN_PLACE
from shotstream.export.graphs.step_in_place import OPSET as IN_PLACE_OPSET
from shotstream.export.manifest import read_manifest
from shotstream.export.segments.cut import TEXT
from shotstream.export.trt import product as products
from shotstream.runtime.errors import UserError


class Answer:
    """What a command printed, and how it ended."""

    def __init__(self, *arguments: str) -> None:
        app = typer.Typer()
        mount(app)
        result = CliRunner().invoke(app, ["engines", *arguments], terminal_width=200)
        self.code = result.exit_code
        self.said = str(result.exception) if isinstance(result.exception, UserError) else ""
        self.text = result.output
        if result.exception is not None and not isinstance(result.exception, UserError | SystemExit):
            raise result.exception


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def _tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if TensorRT and a GPU were there."""
    fake_tensorrt(monkeypatch)
    monkeypatch.setattr(products, "missing_driver", lambda: "")
    monkeypatch.setattr(products, "local_gpu", lambda: "sm_90")


@pytest.mark.usefixtures("_tensorrt")
def test_engines_are_built_once_listed_and_verified(store: Path) -> None:
    build = ["--target", "tensorrt", "--from", str(small_export()), "--store", str(store), "--only", "head,mid_0"]
    first = Answer(*build)
    assert first.code == 0
    assert "1/2 head" in first.text
    assert "2 engines" in first.text
    assert "was there" not in first.text
    assert Answer(*build).text.count("was there") == 2
    rest = Answer(*build[:-2]).text
    assert rest.count("was there") == 2
    assert "5 engines" in rest
    shown = Answer("list", "--store", str(store)).text
    assert all(name in shown for name in ("text_ctx", "head", "mid_0", "mid_1", "tail", "11.4.0.106", "sm_90"))
    assert list(store.glob("tensorrt-11.4.0.106-sm_90.timing"))
    assert "5 engines are as they were built, 0 are not" in Answer("verify", "--store", str(store)).text


@pytest.mark.usefixtures("_tensorrt")
def test_an_interrupted_build_goes_on_where_it_was(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = engine_building.build_apart

    def failing(order: Any) -> Mapping[str, float]:
        made.append(Path(order.onnx).stem)
        if made == ["text_ctx", "head"]:
            raise UserError("building head.onnx was ended by signal 9")
        return real(order)

    monkeypatch.setattr(engine_building, "build_apart", failing)
    build = ["--target", "tensorrt", "--from", str(small_export()), "--store", str(store), "--only", "text_ctx,head"]
    assert "was ended by signal 9" in Answer(*build).said
    assert Answer(*build).code == 0
    assert made == ["text_ctx", "head", "head"]


@pytest.mark.usefixtures("_tensorrt")
def test_a_changed_graph_is_not_built(store: Path, tmp_path: Path) -> None:
    shutil.copytree(small_export(), tmp_path / "graphs")
    (tmp_path / "graphs" / "head.onnx").write_bytes(b"something else")
    answer = Answer("--target", "tensorrt", "--from", str(tmp_path / "graphs"), "--store", str(store), "--only", "head")
    assert "head.onnx of graph 'head' is not the file that was exported" in answer.said
    assert EngineStore(store).verify() == []
    assert list(EngineStore(store).entries()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "tensorrt-rtx"], "say which export to build with --from DIR"),
        (["--target", "openvino"], "there is no --target 'openvino'; there is tensorrt, tensorrt-rtx"),
        (["--from", "nowhere"], "there is no manifest.json in nowhere"),
        (["--from", "EXPORT", "--precision", "bf16"], "was exported in float32; export it with --precision bfloat16"),
        (["--from", "EXPORT", "--precision", "fp8"], "was exported in float32; export it with --precision bfloat16"),
        (["--from", "EXPORT", "--precision", "int4"], "there is no --precision 'int4'; there is fp16, bf16, fp8"),
        (["--from", "EXPORT", "--only", "mid_9"], "the export has no mid_9 for this; it has text_ctx, head, mid_0"),
        (["--from", "EXPORT", "--gpu", "sm_90"], "TensorRT-RTX does not run on sm_90 (Hopper)"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments: list[str], message: str, store: Path) -> None:
    if products.missing_to_build(products.RTX):
        pytest.skip("TensorRT-RTX is not installed")
    given = [str(small_export()) if argument == "EXPORT" else argument for argument in arguments]
    assert message in Answer(*given, "--store", str(store)).said
    assert not store.exists()


def test_what_tensorrt_lacks_is_said_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(products._MODULES, products.TENSORRT, ("tensorrt_of_this_test",))
    monkeypatch.setattr(products, "missing_driver", lambda: "there is no NVIDIA driver")
    said = Answer("--target", "tensorrt", "--from", "anywhere").said
    assert said.startswith("tensorrt cannot build here: TensorRT lacks the Python package 'tensorrt_of_this_test'")
    assert said.endswith("there is no NVIDIA driver")


# ------------------------------------------------------------------------------------ eight bits
@pytest.fixture
def sixteen(tmp_path: Path) -> Path:
    """The float32 export, called a 16-bit one: what is checked here does not look at the numbers."""
    folder = tmp_path / "graphs"
    shutil.copytree(small_export(), folder)
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace('"precision": "float32"', '"precision": "bfloat16"'))
    return folder


def reports(loss: float, folder: Path) -> Callable[..., Any]:
    found = {name: Accuracy(6, {1: 0.01, 3: 0.02, 7: loss}, 40.0) for name in LAYER_SETS}
    amax = {f"1.{kind}": 3.0 for kind in PRODUCTS}
    return lambda *_: Report(read_manifest(folder).source.weights_hash, 1, amax, found)


@pytest.mark.usefixtures("_tensorrt")
def test_a_loss_beyond_the_limit_is_refused_unless_accepted(
    store: Path, sixteen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = ["--target", "tensorrt", "--from", str(sixteen), "--precision", "fp8", "--store", str(store)]
    monkeypatch.setattr(engine_building, "_calibrated", reports(0.2, sixteen))
    refused = Answer(*build)
    assert "the film's latents are off by 20.0% (root of mean squares), and 15% is the limit" in refused.said
    assert "error after 7" in refused.text
    assert not (sixteen / FP8_FOLDER).exists()
    accepted = Answer(*build, "--accept-loss", "--only", "head,mid_1")
    assert accepted.said == ""
    keys = [entry.key for entry, _ in EngineStore(store).entries() if entry]
    assert [(key.graph, key.precision) for key in keys] == [("head", "float8"), ("mid_1", "float8")]

    monkeypatch.setattr(engine_building, "_calibrated", None)  # what was calibrated is not calibrated again
    assert "20.0%" in Answer(*build).said


@pytest.mark.usefixtures("_tensorrt")
def test_a_calibration_needs_the_weights_that_were_exported(store: Path, sixteen: Path) -> None:
    build = ["--target", "tensorrt", "--from", str(sixteen), "--precision", "fp8", "--store", str(store)]
    assert "the weights of 'tiny' are not those that were exported" in Answer(*build, "--model", "tiny").said


# ------------------------------------------------------------------------------------ the store's own commands
def test_without_a_store_its_commands_say_how_one_is_made(store: Path) -> None:
    for command in ("list", "verify", "prune"):
        said = Answer(command, "--store", str(store)).said
        assert said == f"there is no engine store at {store}; one is made by: shotstream export engines --from DIR"


def test_verify_names_what_is_broken_and_prune_removes_it(store: Path) -> None:
    entry, _ = EngineStore(store).get_or_build(ENGINE, writes(b"plan"))
    damage(entry.folder, "changed")
    answer = Answer("verify", "--store", str(store))
    assert answer.code == 1
    assert "its plan is not the one that was built" in answer.text
    assert "0 engines are as they were built, 1 are not" in answer.text
    damage(entry.folder, "truncated")
    assert "is broken: its plan has 3 bytes of 4" in Answer("list", "--store", str(store)).text.replace("\n", "")
    assert f"removed {entry.folder.name}" in Answer("prune", "--store", str(store)).text
    assert list(EngineStore(store).entries()) == []


def test_prune_goes_by_age_size_and_export(store: Path) -> None:
    held = EngineStore(store)
    made = {}
    for days, name in enumerate(("new", "old", "ancient")):
        entry, _ = held.get_or_build(dataclasses.replace(ENGINE, graph=name), writes(b"p" * 10**6))
        used = time.time() - 10 * days * 86400
        os.utime(entry.folder / KEY, (used, used))
        made[name] = entry.folder.name
    assert "0 removed" in Answer("prune", "--store", str(store)).text
    assert Answer("prune", "--store", str(store), "--older", "15").text.startswith(f"removed {made['ancient']}")
    assert Answer("prune", "--store", str(store), "--most", "0.0015").text.startswith(f"removed {made['old']}")
    assert f"removed {made['new']}" in Answer("prune", "--store", str(store), "--keep", str(small_export())).text


@pytest.mark.usefixtures("_tensorrt")
def test_prune_keeps_the_engines_of_an_export(store: Path) -> None:
    Answer("--target", "tensorrt", "--from", str(small_export()), "--store", str(store), "--only", "head")
    assert "0 removed" in Answer("prune", "--store", str(store), "--keep", str(small_export())).text


@pytest.mark.usefixtures("_tensorrt")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attention", "theirs"], "there is no --attention 'theirs'; there is ours, native, plugin"),
        (["--attention", "native"], "the export has no step; make one with: shotstream export onnx --only step"),
        (["--attention", "plugin"], "--attention plugin is for TensorRT-RTX"),
    ],
)
def test_attentions_that_cannot_be_built_are_refused(store: Path, arguments: list[str], message: str) -> None:
    answer = Answer("--target", "tensorrt", "--from", str(small_export()), "--store", str(store), *arguments)
    assert message in answer.said


def test_the_products_attention_takes_the_whole_step(tmp_path: Path, store: Path) -> None:
    """On TensorRT-RTX itself: with any number of cached tokens, and over caches that are written in place."""
    pytest.importorskip("tensorrt_rtx_bindings")
    parts = small_parts(torch.bfloat16)
    for name, opset in ((STEP, OPSET), (STEP_IN_PLACE, IN_PLACE_OPSET)):
        export_graphs(tmp_path / name, source_of(parts, "bfloat16", opset), graph_specs(parts, torch.bfloat16, (name,)))
        built = Answer("--from", str(tmp_path / name), "--store", str(store), "--attention", "native")
        assert built.code == 0, built.said
    names = sorted(entry.key.graph for entry, _ in EngineStore(store).entries() if entry)
    assert names == [CONTEXT_IN_PLACE, STEP, STEP_IN_PLACE, TEXT]
    refused = Answer("--from", str(tmp_path / STEP), "--store", str(store), "--attention", "plugin")
    assert "the attention plugin has no kernel for heads of 16 channels" in refused.said
