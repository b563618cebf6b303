"""Graphs without weights are, once filled, the graphs that an export would have made, to the bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from films import latents_of
from small_model import SmallPlugin

from shotstream.export import exporting
from shotstream.export.compact import loading as compact
from shotstream.export.compact.loading import (
    MIDDLE,
    Compact,
    DoesNotFit,
    decoder_runner,
    eight_bit,
    read_compact,
    segment_runner,
)
from shotstream.export.graphs.segments import example_inputs
from shotstream.export.onnx_runtime import decoder as onnx_decoder
from shotstream.export.onnx_runtime import engine as onnx_engine
from shotstream.export.onnx_runtime.decoder import OnnxDecoder
from shotstream.export.onnx_runtime.engine import own_export
from shotstream.export.onnx_runtime.int8 import INT8
from shotstream.export.onnx_runtime.runner import OnnxRunner, SessionSettings
from shotstream.export.segments.cut import TEXT, cut, signatures
from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import EngineRequest, ModelParts
from shotstream.runtime.runtime import Runtime

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
building = pytest.importorskip("shotstream.export.compact.building")
CPU = SessionSettings(torch.device("cpu"), threads=1)
EXPORT = "shotstream.export.plugin:plugin"
MakeRuntime = Callable[..., Runtime]


@pytest.fixture(scope="module")
def make() -> Iterator[MakeRuntime]:
    """Runtimes of the small model, for all tests of this file."""
    plugins = ["shotstream.runtime.presets:CorePlugin", SmallPlugin(), EXPORT]
    made: list[Runtime] = []

    def runtime(**options: Any) -> Runtime:
        made.append(Runtime("small", plugins=plugins, **{"engine": "eager", **options}))
        return made[-1]

    yield runtime
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def parts(make: MakeRuntime) -> ModelParts:
    found: ModelParts = make().parts
    return found


@pytest.fixture(scope="module")
def folder(parts: ModelParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("compact")
    building.build_compact(parts, made)
    return made


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def exported(parts: ModelParts, cache: Path) -> Path:
    """The same model, exported with its weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_engine, "cache_folder", lambda: cache)
        request = EngineRequest(parts, torch.device("cpu"), torch.float32, say=lambda _: None)
        return own_export(request, INT8, list(signatures(parts.config)))


@pytest.fixture
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small model's graphs as if they came with the package."""
    monkeypatch.setattr(onnx_engine, "shipped", lambda model: folder if model == "small" else None)
    monkeypatch.setattr(onnx_decoder, "shipped", lambda _: folder)
    monkeypatch.setattr(exporting, "write_graph", lambda *_: pytest.fail("exported"))
    return folder


def test_every_initializer_is_what_the_export_has(parts: ModelParts, folder: Path, exported: Path) -> None:
    described, modules = read_compact(folder), cut(parts.transformer, parts.latent_shape)
    for name in signatures(parts.config):
        graph = described.segments[MIDDLE if name.startswith("mid_") else name]
        ours = onnx.load(str(folder / graph.file), load_external_data=False)
        inline = {one.name: one for one in ours.graph.initializer if one.name not in graph.fillings}
        theirs = onnx.load(str(exported / f"{name}.onnx")).graph.initializer
        assert {one.name for one in theirs} == {*inline, *graph.fillings}
        for one in theirs:
            expected = onnx.numpy_helper.to_array(one)
            if one.name in inline:
                found = onnx.numpy_helper.to_array(inline[one.name])
            else:
                found = graph.fillings[one.name].array(modules[name])
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected, err_msg=f"{name} {one.name}")


def test_segments_compute_the_same(parts: ModelParts, folder: Path, exported: Path) -> None:
    names = list(signatures(parts.config))
    ours, theirs = segment_runner(folder, read_compact(folder), parts, CPU), OnnxRunner(exported, names, CPU)
    for name in names:
        inputs = list(example_inputs(parts.config, parts.latent_shape, name, torch.float32).values())
        for a, b in zip(ours(name, inputs), theirs(name, inputs), strict=True):
            assert torch.equal(a, b), name


def test_nothing_of_the_weights_is_left(folder: Path) -> None:
    for name, graph in read_compact(folder).segments.items():
        assert (folder / graph.file).stat().st_size < 40_000
        kept = onnx.load(str(folder / graph.file), load_external_data=False).graph.initializer
        for one in kept:
            if one.name not in graph.fillings:
                assert len(np.unique(onnx.numpy_helper.to_array(one))) <= 8, f"{name} {one.name}"
    assert {filling.form for filling in read_compact(folder).segments[TEXT].fillings.values()} == {"exact"}


def test_the_decoder_makes_the_same_frames(
    parts: ModelParts, cache: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = torch.randn(1, 7, *parts.latent_shape, generator=torch.Generator().manual_seed(0))
    ours = OnnxDecoder(parts.decoder, cache / "unused", threads=1, precision=INT8).decode(z)
    assert not (cache / "unused").exists()
    monkeypatch.undo()
    theirs = OnnxDecoder(parts.decoder, cache, threads=1, precision=INT8).decode(z)
    assert list(cache.glob("tiny-vae-int8-*"))
    assert torch.equal(ours, theirs)


def test_the_engine_takes_them_and_plays(make: MakeRuntime, there: Path, exported: Path) -> None:
    made = []
    for extra in ({}, {"folder": str(exported)}):
        options = {"precision": INT8, "threads": 1, **extra}
        runtime = make(engine="onnx", engine_options=options)
        made.append(latents_of(runtime))
        session = runtime.open("A forest. ", seed=3)
        session.begin_shot("a fox waits", 2)
        list(session.chunks())
    for ours, theirs in zip(*made, strict=True):
        assert torch.equal(ours, theirs)


def test_what_does_not_fit_is_exported(make: MakeRuntime, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_engine, "own_export", _asked)
    with pytest.raises(_Asked, match="float32"):
        make(engine="onnx")
    with pytest.raises(_Asked, match="int8"):
        make(engine="onnx", engine_options={"precision": INT8}, model_options={"layers": 3})
    other: Any = make().parts.decoder
    other.decoder.stem.bias += 1e-3
    monkeypatch.setattr(onnx_decoder, "export_graphs", _asked)
    with pytest.raises(_Asked):
        OnnxDecoder(other, there, precision=INT8).prepare((4, 6))


def test_others_are_refused_in_a_sentence(parts: ModelParts, make: MakeRuntime, folder: Path) -> None:
    described = read_compact(folder)
    with pytest.raises(
        DoesNotFit, match="are of other sizes than 'small' has; build them anew with: shotstream export"
    ):
        segment_runner(folder, described, make(model_options={"layers": 3}).parts, CPU)
    with pytest.raises(DoesNotFit, match="calibrated for other weights or sizes"):
        decoder_runner(folder, described, parts.decoder, (6, 4), CPU)
    stale = Compact(**{**vars(described), "decoder_hash": "0" * 64})
    with pytest.raises(DoesNotFit, match="calibrated for other weights or sizes"):
        decoder_runner(folder, stale, parts.decoder, (4, 6), CPU)


def test_spoilt_files_are_refused(folder: Path, tmp_path: Path) -> None:
    spoilt = Path(shutil.copytree(folder, tmp_path / "spoilt"))
    (spoilt / "head.onnx").write_bytes((folder / "head.onnx").read_bytes()[:100])
    with pytest.raises(UserError, match=r"head\.onnx is not the file that was built; install shotstream again"):
        read_compact(spoilt)
    (spoilt / "head.onnx").unlink()
    with pytest.raises(UserError, match=r"cannot read .*head\.onnx: No such file"):
        read_compact(spoilt)
    text = json.loads((folder / compact.FILE).read_text())
    (spoilt / compact.FILE).write_text(json.dumps({**text, "format": 2}))
    with pytest.raises(UserError, match="has format 2, and this version reads 1"):
        read_compact(spoilt)
    (spoilt / compact.FILE).write_text("{}")
    with pytest.raises(UserError, match="does not describe graphs"):
        read_compact(spoilt)


def test_eight_bits_are_the_quantisers() -> None:
    from onnx import TensorProto
    from onnxruntime.quantization.quant_utils import quantize_data

    weight = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
    weight[2] = 0
    weight[3] *= 1e-3
    weight[4, :2] = (2.54, 0.01 * 2.5)  # halves are rounded to even
    rows, scales = eight_bit(weight)
    for row, scale, given in zip(rows, scales, weight, strict=True):
        _, expected_scale, expected = quantize_data(given, TensorProto.INT8, symmetric=True)
        assert scale == expected_scale
        np.testing.assert_array_equal(row, expected)


class _Asked(Exception):
    pass


def _asked(*given: Any) -> None:
    raise _Asked(str(given[1:2]))
