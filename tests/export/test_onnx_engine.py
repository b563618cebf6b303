"""The engine `onnx` makes the film of the eager engine, exports by itself, and refuses what is not of its model."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from films import assert_same_film, latents_of

from shotstream.export.manifest import MANIFEST
from shotstream.export.onnx_runtime import engine as onnx_engine
from shotstream.export.onnx_runtime.int8 import INT8
from shotstream.runtime.errors import UserError
from shotstream.runtime.runtime import Runtime

MakeRuntime = Callable[..., Runtime]
EXPORT = "shotstream.export.plugin:plugin"


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of all tests of this file: the same model is exported once."""
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(onnx_engine, "cache_folder", lambda: shared_cache)
    return shared_cache


@pytest.fixture
def onnx_runtime(small_runtime: MakeRuntime) -> MakeRuntime:
    def make(model_options: dict[str, Any] | None = None, said: list[str] | None = None, **options: Any) -> Runtime:
        say = (said if said is not None else []).append
        return small_runtime(EXPORT, engine="onnx", engine_options=options, model_options=model_options, say=say)

    return make


@pytest.fixture
def export(onnx_runtime: MakeRuntime, tmp_path: Path, cache: Path) -> Path:
    """A copy of the small model's export, to be spoilt."""
    onnx_runtime()
    found = next(cache.glob("small-float32-*"))
    return Path(shutil.copytree(found, tmp_path / "export"))


def test_it_makes_the_film_of_the_eager_engine(small_runtime: MakeRuntime, onnx_runtime: MakeRuntime) -> None:
    eager, onnx = small_runtime(engine="eager"), onnx_runtime()
    assert_same_film(eager, onnx)


def test_eight_bit_products_are_near(small_runtime: MakeRuntime, onnx_runtime: MakeRuntime) -> None:
    made = []
    for runtime in (small_runtime(engine="eager"), onnx_runtime(precision=INT8)):
        made.append(latents_of(runtime))
        session = runtime.open("A forest. ", seed=3)
        session.begin_shot("a fox waits", 2)
        list(session.chunks())
    error = (made[1][1] - made[0][1]).norm() / made[0][1].norm()
    assert 1e-4 < error < 0.1


@pytest.mark.slow
def test_native_attention_makes_the_film_too(small_runtime: MakeRuntime, onnx_runtime: MakeRuntime) -> None:
    eager, native = small_runtime(engine="eager"), onnx_runtime(attention="native")
    theirs, ours = latents_of(eager), latents_of(native)
    for runtime in (eager, native):
        session = runtime.open("A forest. ", seed=3)
        session.begin_shot("a fox waits", 3)
        list(session.chunks())
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


def test_eight_bit_graphs_that_were_spoilt_are_made_anew(onnx_runtime: MakeRuntime, cache: Path) -> None:
    onnx_runtime(precision=INT8)
    graph = next(cache.glob("small-int8-*")) / "head.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:100])
    onnx_runtime(precision=INT8)
    assert len(graph.read_bytes()) == len(whole)


def test_it_exports_once_says_so_and_mends_what_was_spoilt(onnx_runtime: MakeRuntime, cache: Path) -> None:
    onnx_runtime()
    folder, again = next(cache.glob("small-float32-*")), list[str]()
    onnx_runtime(said=again)
    assert again == []
    graph = folder / "head.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:100])
    onnx_runtime(said=again)
    assert again == [
        f"making ONNX graphs of 'small' for the engine onnx, once; they are kept in {folder}",
        "ONNX graphs of 'small': 3 of 4 ...",
    ]
    assert len(graph.read_bytes()) == len(whole)


def test_a_folder_runs_in_its_own_precision(onnx_runtime: MakeRuntime, export: Path) -> None:
    onnx_runtime(folder=str(export))
    with pytest.raises(UserError, match="holds graphs in float32, not in int8; export again"):
        onnx_runtime(folder=str(export), precision=INT8)


def test_a_truncated_file_is_refused(onnx_runtime: MakeRuntime, export: Path) -> None:
    graph = export / "tail.onnx"
    graph.write_bytes(graph.read_bytes()[:100])
    with pytest.raises(UserError, match=r"tail\.onnx of graph 'tail' is not the file that was exported"):
        onnx_runtime(folder=str(export))


def test_a_missing_folder_and_a_missing_graph_are_refused(
    onnx_runtime: MakeRuntime, export: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"there is no manifest\.json in .*; make one with: shotstream export onnx"):
        onnx_runtime(folder=str(tmp_path / "nothing"))
    _change(export, lambda manifest: manifest["graphs"].pop("tail"))
    with pytest.raises(UserError, match="has no graph 'tail'"):
        onnx_runtime(folder=str(export))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "big"}, "is an export of the model 'big', not of 'small'"),
        ({"weights_hash": "0" * 64}, r"is an export of other weights of 'small' \(000000000000\)"),
        ({"latent_shape": [4, 8, 8]}, "is an export of 'small' in other sizes"),
    ],
    ids=["model", "weights", "sizes"],
)
def test_an_export_of_something_else_is_refused(
    onnx_runtime: MakeRuntime, export: Path, change: dict[str, Any], message: str
) -> None:
    _change(export, lambda manifest: manifest["source"].update(change))
    with pytest.raises(UserError, match=message):
        onnx_runtime(folder=str(export))


def test_a_graph_of_other_shapes_is_refused(onnx_runtime: MakeRuntime, export: Path) -> None:
    def widen(manifest: Any) -> None:
        manifest["graphs"]["head"]["inputs"][0]["shape"][1] = 5

    _change(export, widen)
    runtime = onnx_runtime(folder=str(export))
    session = runtime.open("A forest. ")
    session.begin_shot("a fox waits", 1)
    with pytest.raises(UserError, match="graph 'head' reads latent framesx5x4x6 float32"):
        session.next_chunk()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float8"}, "the precision of the engine 'onnx' is"),
        ({"precision": "float16"}, "the runtime computes in float32"),
        ({"threads": 0}, "a whole number from 1 on"),
        ({"provider": "cuda"}, "the provider cuda does not work on tensors of cpu"),
        ({"provider": "npu"}, "there is no provider 'npu' here; there is cpu, cuda"),
        ({"attention": "theirs"}, "ours or native"),
        ({"speed": 9}, "has no option speed; it has"),
    ],
)
def test_options_that_cannot_be_are_refused(onnx_runtime: MakeRuntime, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        onnx_runtime(**options)


def test_without_onnx_runtime_the_pip_line_is_given(onnx_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        UserError, match=r"'onnxruntime', which is not installed; run: pip install shotstream\[export\]"
    ):
        onnx_runtime()


def test_onnxruntime_may_be_the_package_for_gpus(
    small_runtime: MakeRuntime, onnx_runtime: MakeRuntime, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which the module has the same name, and no distribution is called onnxruntime."""
    for made in cache.glob("small-int8-*"):
        shutil.rmtree(made)  # so that it is made here, and what made it is asked
    real = metadata.distribution

    def distribution(package: str) -> Any:
        if package == "onnxruntime":
            raise metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(metadata, "distribution", distribution)
    assert_same_film(small_runtime(engine="eager"), onnx_runtime())
    onnx_runtime(precision=INT8)
    manifest = json.loads((next(cache.glob("small-int8-*")) / MANIFEST).read_text())
    assert manifest["source"]["versions"]["onnxruntime"] == onnxruntime.__version__


def _change(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
