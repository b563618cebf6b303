"""The whole step with caches written in place: right in ONNX Runtime, and what TensorRT-RTX makes of it."""

from __future__ import annotations

import dataclasses
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from step_files import session_of, small_parts
from torch import Tensor, nn

from shotstream.export.graphs.cache_chunk_attention import add_function
from shotstream.export.graphs.spec import GraphSpec, write_graph
from shotstream.export.graphs.step import StepGraph
from shotstream.export.graphs.step_in_place import (
    OPSET,
    OUTPUTS,
    StepInPlace,
    body,
    example_in_place_inputs,
    step_in_place_spec,
    translations,
    update_cache_attention,
)
from shotstream.export.trt.build import BuildOrder, build_apart
from shotstream.runtime.config import WAN_1_3B
from shotstream.runtime.model.transformer import Transformer

TOLERANCE = 3e-6
WAN_LATENT = (16, 60, 104)
log = logging.getLogger(__name__)


def _random_inputs(slot_frame: int) -> dict[str, Tensor]:
    parts = small_parts()
    inputs = example_in_place_inputs(parts.config, parts.latent_shape, torch.float32, slot_frame=slot_frame)
    generator = torch.Generator().manual_seed(2)
    for name, value in inputs.items():
        if "_cache_" in name:
            inputs[name] = torch.randn(value.shape, generator=generator)
    return inputs


@pytest.mark.parametrize("slot_frame", [2, 24])
def test_in_place_is_the_step_over_what_was_cached(slot_frame: int) -> None:
    parts = small_parts()
    tokens = parts.config.tokens_per_frame(*parts.latent_shape[1:])
    inputs = _random_inputs(slot_frame)
    flow, *caches = StepInPlace(parts.transformer, parts.latent_shape).eval()(*inputs.values())
    plain = {name: value for name, value in inputs.items() if name not in ("slot", "length")}
    for name, value in plain.items():
        if "_cache_" in name:
            plain[name] = value[0, :, : slot_frame * tokens].transpose(0, 1)
    theirs, *new = StepGraph(parts.transformer, parts.latent_shape).eval()(*plain.values())
    torch.testing.assert_close(flow, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    before = [value for name, value in inputs.items() if "_cache_" in name]
    written = slice(slot_frame * tokens, (slot_frame + 3) * tokens)
    for old, cache, part in zip(before, caches, new, strict=True):
        torch.testing.assert_close(cache[0, :, written].transpose(0, 1), part, rtol=TOLERANCE, atol=TOLERANCE)
        assert torch.equal(cache[:, :, : written.start], old[:, :, : written.start])
        assert torch.equal(cache[:, :, written.stop :], old[:, :, written.stop :])


def test_onnx_runtime_attends_over_as_many_keys_as_the_number_says(tmp_path: Path) -> None:
    parts = small_parts()
    spec = step_in_place_spec(parts.transformer, parts.latent_shape)
    write_graph(spec, tmp_path, "step.onnx", OPSET)
    onnx.checker.check_model(onnx.load(tmp_path / "step.onnx"), full_check=True)
    session = session_of(tmp_path / "step.onnx")
    for slot_frame in (0, 2, 24):
        inputs = _random_inputs(slot_frame)
        made = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for ours, theirs in zip(made, spec.module(*inputs.values()), strict=True):
            assert (torch.from_numpy(ours) - theirs).norm() / theirs.norm() < TOLERANCE


class _Node(nn.Module):
    """The operation by itself."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return update_cache_attention(*inputs, 0.25)


@pytest.mark.parametrize("attention", ["tensorrt", "onnx"])
def test_tensorrt_rtx_reads_the_number_of_keys_from_its_own_node_only(
    attention: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With ONNX's own attention an engine is built as well, which would attend over empty slots."""
    pytest.importorskip("tensorrt_rtx_bindings")
    shapes = {"q": (6, 2, 16), "k": (6, 2, 16), "v": (6, 2, 16), "k_cache": (1, 2, 40, 16), "v_cache": (1, 2, 40, 16)}
    inputs = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    inputs |= {name: torch.tensor([9], dtype=torch.int32) for name in ("slot", "length")}
    finish = partial(add_function, function=body(attention))
    spec = GraphSpec(_Node(), inputs, OUTPUTS, {}, {}, translations(), finish)
    write_graph(spec, tmp_path, "node.onnx", OPSET)
    order = BuildOrder("tensorrt-rtx", str(tmp_path / "node.onnx"), str(tmp_path / "node.plan"))
    caplog.set_level(logging.INFO, logger="shotstream.export.trt.build")
    build_apart(order)
    assert Path(order.plan).stat().st_size > 0
    assert ("Input Tensor length is unused" in caplog.text) == (attention == "onnx")


def test_tensorrt_rtx_updates_every_cache_in_place(tmp_path: Path) -> None:
    trt: Any = pytest.importorskip("tensorrt_rtx_bindings")
    parts = small_parts()
    model = Transformer(parts.config).bfloat16().requires_grad_(False).eval()
    spec = step_in_place_spec(model, parts.latent_shape, torch.bfloat16, attention="tensorrt")
    write_graph(spec, tmp_path, "step.onnx", OPSET)
    logger = trt.Logger(trt.ILogger.ERROR)
    network = trt.Builder(logger).create_network(0)
    assert trt.OnnxParser(network, logger).parse_from_file(str(tmp_path / "step.onnx"))
    kinds = [str(network.get_layer(i).type).rpartition(".")[2] for i in range(network.num_layers)]
    assert kinds.count("KV_CACHE_UPDATE") == 2 * parts.config.layers
    assert kinds.count("ATTENTION_INPUT") == 2 * parts.config.layers  # of the cache, and of the caption
    build_apart(BuildOrder("tensorrt-rtx", str(tmp_path / "step.onnx"), str(tmp_path / "step.plan")))


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_tensorrt_rtx_builds_it_at_the_real_size(layers: int, tmp_path: Path) -> None:
    """Run with ``-o log_cli=true -o log_cli_level=INFO`` to see the figures."""
    pytest.importorskip("tensorrt_rtx_bindings")
    config = dataclasses.replace(WAN_1_3B, layers=layers)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = Transformer(config).requires_grad_(False).eval()
    finally:
        torch.set_default_dtype(before)
    begun = time.perf_counter()
    spec = step_in_place_spec(model, WAN_LATENT, torch.bfloat16, attention="tensorrt")
    write_graph(spec, tmp_path, "step.onnx", OPSET)
    exported = time.perf_counter() - begun
    order = BuildOrder("tensorrt-rtx", str(tmp_path / "step.onnx"), str(tmp_path / "step.plan"))
    made = build_apart(order)
    plan_mb, weights_mb = (path.stat().st_size / 1e6 for path in (Path(order.plan), tmp_path / "step.onnx.data"))
    log.info(
        "%d blocks: export %.1f s, build %.1f s, weights %.0f MB, plan %.0f MB, peak %.0f MB",
        layers, exported, made["seconds"], weights_mb, plan_mb, made["peak_mb"],
    )  # fmt: skip
    assert weights_mb < plan_mb < 1.2 * weights_mb
