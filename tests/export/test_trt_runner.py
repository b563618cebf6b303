"""Segments on execution contexts: the film is the same, and what does not fit is refused with a sentence.

The contexts are those of a stand-in that computes on the CPU (fakes/tensorrt.py); nothing here has run on a GPU.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from films import assert_same_film
from trt_files import LAYERS, fake_tensorrt, fill_store, small_export, small_parts

from shotstream.export.engine_store.store import EngineStore
from shotstream.export.fp8.calibration import Shots, calibrate, compare, play
from shotstream.export.fp8.exporting import eight_bit_export
from shotstream.export.fp8.products import FP8_FOLDER
from shotstream.export.graphs.segments import example_inputs
from shotstream.export.segments.cut import signatures
from shotstream.export.trt import runner as running
from shotstream.export.trt.engine import stored_engine, tensorrt_engine
from shotstream.export.trt.product import Product
from shotstream.export.trt.runner import TrtRunner
from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import EngineRequest, Registry
from shotstream.runtime.runtime import Runtime

MakeRuntime = Callable[..., Runtime]
CONFIG, LATENT = small_parts().config, small_parts().latent_shape


class AsIfOnGpu:
    """The engine `tensorrt`, without asking for a GPU."""

    name = "as-if-on-gpu"

    def __init__(self, product: Product) -> None:
        self.product = product

    def build(self, registry: Registry) -> None:
        registry.register("engine", "tensorrt", lambda request: stored_engine(self.product, "sm_90", request))


@pytest.fixture
def product(monkeypatch: pytest.MonkeyPatch) -> Product:
    made = fake_tensorrt(monkeypatch)
    monkeypatch.setattr(running, "ALIGNMENT", made.module.ALIGNMENT)
    made.module.calls.clear()
    made.module.failing.clear()
    return made


@pytest.fixture
def store(product: Product, tmp_path: Path) -> Path:
    fill_store(tmp_path / "store", product, small_export())
    return tmp_path / "store"


@pytest.fixture
def make(small_runtime: MakeRuntime, product: Product, store: Path) -> Callable[..., Runtime]:
    def made(**options: Any) -> Runtime:
        given = {"folder": str(small_export()), "store": str(store), **options}
        return small_runtime(AsIfOnGpu(product), engine="tensorrt", engine_options=given, model_options=LAYERS)

    return made


@pytest.fixture
def runner(product: Product, store: Path) -> TrtRunner:
    return runner_of(product, store)


def runner_of(
    product: Product,
    store: Path,
    kernels: Path | None = None,
    aliases: Mapping[str, str] | None = None,
    **changed: bytes,
) -> TrtRunner:
    held = EngineStore(store)
    plans = {entry.key.graph: held.load(entry) for entry, _ in held.entries() if entry} | changed
    given = [(name, partial(plans.__getitem__, name)) for name in plans]
    return TrtRunner(product, given, signatures(CONFIG), torch.device("cpu"), kernels, aliases)


def inputs_of(name: str, frames: int = 3) -> list[torch.Tensor]:
    return list(example_inputs(CONFIG, LATENT, name, torch.float32, frames=frames).values())


def test_the_film_is_that_of_the_eager_engine(
    small_runtime: MakeRuntime, make: Callable[..., Runtime], product: Product
) -> None:
    eager, ours = small_runtime(engine="eager", model_options=LAYERS), make()
    assert_same_film(eager, ours)


def test_contexts_keep_their_sizes_and_share_one_scratch_block(runner: TrtRunner, product: Product) -> None:
    for frames in (3, 6, 3, 6):
        runner("mid_0", inputs_of("mid_0", frames))
        runner("head", inputs_of("head", frames))
    calls = product.module.calls
    contexts = [call for call in calls if call[0] == "context"]
    assert len(contexts) == 4  # two segments, two numbers of frames
    assert {call[2:] for call in calls if call[0] == "scratch"} == {(runner._scratch.data_ptr(), runner.scratch_bytes)}
    set_up = [call for call in calls if call[0] == "shape"]
    assert len(set_up) == 2 * (6 + 2)  # each input of each context once, and never again
    assert [call[2] for call in calls if call[0] == "run"] == [0] * 8


def test_a_segments_outputs_outlive_its_next_call(runner: TrtRunner) -> None:
    first = runner("head", inputs_of("head"))[0]
    before = first.clone()
    runner("head", [2 * part for part in inputs_of("head")])
    torch.testing.assert_close(first, before)


def test_inputs_that_do_not_lie_as_they_should_are_copied(runner: TrtRunner) -> None:
    latent, time = inputs_of("head", 4)
    expected = [part[1:] for part in runner("head", [latent, time])]
    odd = torch.empty(latent.numel() + 1)[1:].view_as(latent).copy_(latent)
    assert odd.data_ptr() % running.ALIGNMENT
    torch.testing.assert_close(runner("head", [odd, time])[0][1:], expected[0])
    turned = latent.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(runner("head", [turned, time])[0][1:], expected[0])


def test_what_is_written_in_place_keeps_its_address(product: Product, store: Path, runner: TrtRunner) -> None:
    expected = runner("mid_0", inputs_of("mid_0"))[0].clone()
    in_place = runner_of(product, store, aliases={"x_next": "x"})
    aligned = torch.empty(1 << 16)  # torch aligns what is large enough
    inputs = inputs_of("mid_0")
    start = -aligned.data_ptr() % running.ALIGNMENT // 4
    x = aligned[start : start + inputs[0].numel()].view_as(inputs[0]).copy_(inputs[0])
    assert in_place("mid_0", [x, *inputs[1:]])[0] is x
    torch.testing.assert_close(x, expected)
    with pytest.raises(ValueError, match="written in place"):
        in_place("mid_0", [aligned[start + 1 : start + 1 + x.numel()].view_as(x), *inputs[1:]])


def test_what_an_engine_does_not_take_is_refused(runner: TrtRunner, product: Product) -> None:
    latent, time = inputs_of("head")
    with pytest.raises(UserError, match=r"head takes latent as torch\.float32, and it is torch\.float64"):
        runner("head", [latent.double(), time])
    with pytest.raises(UserError, match="head does not take latent of 9x4x4x6; it was built for 1x4x4x6 to 6x4x4x6"):
        runner("head", [latent.repeat(3, 1, 1, 1), time.repeat(3, 1)])
    product.module.failing.add("run")
    with pytest.raises(UserError, match="TensorRT could not run in head: it does not say why"):
        runner("head", [latent, time])
    product.module.failing.add("qkv")
    with pytest.raises(UserError, match="TensorRT could not take qkv in head"):
        runner("head", [latent, time])


def test_rtx_keeps_what_it_compiled_from_one_start_to_the_next(
    product: Product, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx = fake_tensorrt(monkeypatch, "tensorrt-rtx")
    calls = rtx.module.calls
    file = tmp_path / "rtx.kernels"
    kept = runner_of(rtx, store, kernels=file)
    for frames in (3, 3, 6):
        kept("head", inputs_of("head", frames))
    assert [call[1] for call in calls if call[0] == "kernels"] == [b"", b"kernels "]
    del kept
    gc.collect()
    assert file.read_bytes() == b"kernels kernels "

    calls.clear()
    runner_of(rtx, store, kernels=file)("head", inputs_of("head"))
    assert [call[1] for call in calls if call[0] == "kernels"] == [b"kernels kernels "]
    file.write_bytes(b"of another GPU")
    calls.clear()
    runner_of(rtx, store, kernels=file)("head", inputs_of("head"))
    assert [call[1] for call in calls if call[0] == "kernels"] == [b""]


def test_what_rtx_cannot_capture_is_said_before_a_graph_is_spoilt(
    product: Product, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtx = fake_tensorrt(monkeypatch, "tensorrt-rtx")
    runner = runner_of(rtx, store, kernels=tmp_path / "rtx.kernels")
    runner("head", inputs_of("head"))
    monkeypatch.setattr(running, "_capturing", lambda: True)
    runner("head", inputs_of("head"))
    monkeypatch.setattr(rtx.module, "capturable", False)
    with pytest.raises(UserError, match=r"TensorRT-RTX cannot be captured in head; .* capture=false"):
        runner("head", inputs_of("head"))


def test_plans_of_something_else_are_refused(product: Product, store: Path) -> None:
    held = EngineStore(store)
    tail = next(held.load(entry) for entry, _ in held.entries() if entry and entry.key.graph == "tail")
    with pytest.raises(UserError, match="the engine of head is of something else: it has x, attn"):
        runner_of(product, store, head=tail)
    with pytest.raises(UserError, match="does not take the engine of head on this GPU: the plan has another magic tag"):
        runner_of(product, store, head=b"nonsense")
    with pytest.raises(UserError, match="there are no engines of head, mid_0, mid_1, tail, text_ctx"):
        TrtRunner(product, [], signatures(CONFIG), torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folder": ""}, "needs the folder of an export; give --engine-option folder=DIR"),
        ({"folder": "nowhere"}, "there is no manifest.json in nowhere"),
        ({"precision": "int8"}, "precision of an engine is fp8, or as exported; not 'int8'"),
        ({"precision": "fp8"}, "there is no manifest.json in .*float8"),
        ({"wheels": 4}, "the engine 'tensorrt' has no option wheels; it has fp8, capture, folder, store, precision"),
    ],
)
def test_options_that_lead_nowhere_are_refused(make: Callable[..., Runtime], options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**options)


def test_an_engine_of_another_gpu_is_not_taken(small_runtime: MakeRuntime, product: Product, store: Path) -> None:
    runtime = small_runtime(engine="eager", model_options=LAYERS)
    given = {"folder": str(small_export()), "store": str(store)}
    request = EngineRequest(runtime.parts, torch.device("cpu"), torch.float32, options=given)
    stored_engine(product, "sm_90", request)
    with pytest.raises(UserError, match="has an engine of text_ctx for tensorrt, but with other targets"):
        stored_engine(product, "sm_86", request)


def test_engines_in_eight_bits_make_nearly_the_same_film(
    small_runtime: MakeRuntime, product: Product, tmp_path: Path
) -> None:
    folder = tmp_path / "graphs"
    shutil.copytree(small_export(), folder)
    segments = small_runtime("shotstream.export.plugin:plugin", engine="torch-segments", model_options=LAYERS)
    shots = Shots("A forest. ", ["a fox waits"], seed=3)
    report = calibrate(segments, shots)
    eight_bit_export(folder, report)
    fill_store(tmp_path / "store", product, folder / FP8_FOLDER)
    given = {"folder": str(folder), "store": str(tmp_path / "store"), "precision": "fp8"}
    eight = small_runtime(AsIfOnGpu(product), engine="tensorrt", engine_options=given, model_options=LAYERS)
    made = compare(play(segments, shots), play(eight, shots), len(report.amax))
    assert made.errors[7] == pytest.approx(report.loss(), rel=0.3)  # what the emulation foresaw


def test_engines_of_another_model_or_of_none_are_refused(
    small_runtime: MakeRuntime, product: Product, store: Path, make: Callable[..., Runtime], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="has no engine of text_ctx for tensorrt; build it with"):
        make(store=str(tmp_path / "empty"))
    given = {"folder": str(small_export()), "store": str(store)}
    other = {"model_options": {"layers": 3, "shift": 2.0}, "weights_seed": 5, "engine_options": given}
    with pytest.raises(UserError, match="is an export of other weights of 'small'"):
        small_runtime(AsIfOnGpu(product), engine="tensorrt", **other)


def test_a_truncated_engine_stops_the_start(make: Callable[..., Runtime], store: Path) -> None:
    plan = next(store.glob("mid_1-*/engine.plan"))
    plan.write_bytes(plan.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"mid_1-.* is broken: its plan is not the one that was built"):
        make()


def test_without_a_gpu_the_engine_says_so(small_runtime: MakeRuntime) -> None:
    class Bare:
        name = "bare"

        def build(self, registry: Registry) -> None:
            registry.register("engine", "tensorrt", tensorrt_engine)

    with pytest.raises(UserError, match="the engine 'tensorrt' runs on a GPU; choose --device cuda"):
        small_runtime(Bare(), engine="tensorrt")


def test_an_engine_in_other_numbers_is_refused(small_runtime: MakeRuntime, product: Product, store: Path) -> None:
    runtime = small_runtime(engine="eager", model_options=LAYERS)
    given = {"folder": str(small_export()), "store": str(store)}
    request = EngineRequest(runtime.parts, torch.device("cpu"), torch.float16, options=given)
    with pytest.raises(UserError, match="was exported in float32, and the runtime uses float16"):
        stored_engine(product, "sm_90", request)
