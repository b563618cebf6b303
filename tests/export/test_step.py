"""The whole step as one ONNX graph: what it computes, what its file says, and which mistakes of exporters it avoids."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from step_files import exported_step, session_of, small_parts
from torch import Tensor, nn

from shotstream.export.graphs.cache_chunk_attention import add_body, cache_chunk_attention, translations
from shotstream.export.graphs.spec import GraphSpec, write_graph
from shotstream.export.graphs.step import StepGraph, example_step_inputs, step_spec
from shotstream.runtime.model.transformer import Transformer

TOLERANCE = 3e-6


class _Node(nn.Module):
    """The operation by itself."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        return cache_chunk_attention(q, k, v, k_cache, v_cache, q.shape[-1] ** -0.5)


def _node_inputs(cached: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = {"q": 6, "k": 6, "v": 6, "k_cache": cached, "v_cache": cached}
    return {name: torch.randn((n, 2, 16), generator=generator).to(dtype) for name, n in lengths.items()}


def _node_spec(dtype: torch.dtype = torch.float32, **changes: Any) -> GraphSpec:
    dynamic = {key: {0: "cached"} for key in ("k_cache", "v_cache")}
    spec = GraphSpec(_Node(), _node_inputs(9, dtype), ("out",), dynamic, {"cached": (0, 99)}, translations(), add_body)
    return dataclasses.replace(spec, **changes)


def _relative_error(ours: np.ndarray, theirs: Tensor) -> float:
    return float((torch.from_numpy(ours) - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(("frames", "cached_frames"), [(3, 2), (1, 0), (6, 0), (3, 27)])
def test_onnx_runtime_runs_the_body_and_gets_what_torch_gets(frames: int, cached_frames: int) -> None:
    parts = small_parts()
    inputs = example_step_inputs(parts.config, parts.latent_shape, torch.float32, frames, cached_frames)
    theirs = StepGraph(parts.transformer, parts.latent_shape).eval()(*inputs.values())
    ours = session_of(exported_step() / "step.onnx").run(None, {name: value.numpy() for name, value in inputs.items()})
    assert len(ours) == len(theirs) == 1 + 2 * parts.config.layers
    for a, b in zip(ours, theirs, strict=True):
        assert _relative_error(a, b) < TOLERANCE


def test_the_file_is_valid_and_names_the_plugin() -> None:
    model = onnx.load(exported_step() / "step.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [function.name for function in model.functions] == ["CacheChunkAttention"]
    nodes = [node for node in model.graph.node if node.domain == "shotstream"]
    assert len(nodes) == 2
    for node in nodes:
        said = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert said.pop("scale") == pytest.approx(16**-0.5)
        assert said == {"plugin_namespace": b"shotstream", "plugin_version": b"1"}


def test_every_input_is_read_although_examples_of_keys_and_values_have_the_same_shape() -> None:
    """One example tensor given twice would leave an input that nothing reads (the exporter merges them)."""
    given = step_spec(small_parts().transformer, small_parts().latent_shape).inputs
    assert len({value.data_ptr() for value in given.values()}) == len(given)
    model = onnx.load(exported_step() / "step.onnx")
    read = {name for node in model.graph.node for name in node.input}
    assert [port.name for port in model.graph.input] == list(given)
    assert set(given) <= read


@pytest.mark.parametrize("opset", [20, 23])
def test_the_body_is_the_operation_in_old_and_new_opsets(opset: int, tmp_path: Path) -> None:
    write_graph(_node_spec(), tmp_path, "node.onnx", opset)
    session = session_of(tmp_path / "node.onnx")
    for cached in (0, 9, 40):
        inputs = _node_inputs(cached)
        (ours,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        assert _relative_error(ours, _Node()(*inputs.values())) < TOLERANCE
    model = onnx.load(tmp_path / "node.onnx")
    # An exporter can write operations of newer opsets under an old number, and says nothing: the checker does.
    onnx.checker.check_model(model, full_check=True)
    (function,) = model.functions
    assert [entry.version for entry in function.opset_import] == [opset]
    assert ("Attention" in [node.op_type for node in function.node]) == (opset >= 23)


def test_in_bfloat16_all_of_the_file_is(tmp_path: Path) -> None:
    write_graph(_node_spec(torch.bfloat16), tmp_path, "node.onnx")
    model = onnx.load(tmp_path / "node.onnx")
    onnx.checker.check_model(model, full_check=True)
    types = {port.type.tensor_type.elem_type for port in (*model.graph.input, *model.graph.output)}
    assert types == {onnx.TensorProto.BFLOAT16}


def test_a_step_in_bfloat16_is_typed_in_every_opset(tmp_path: Path) -> None:
    """From opset 23 on the exporter makes norms one node, whose result ONNX and TensorRT type by its input."""
    parts = small_parts()
    model = Transformer(dataclasses.replace(parts.config, layers=1)).bfloat16().requires_grad_(False).eval()
    write_graph(step_spec(model, parts.latent_shape, torch.bfloat16), tmp_path, "step.onnx", 23)
    onnx.checker.check_model(onnx.load(tmp_path / "step.onnx"), full_check=True)


def test_without_the_body_onnx_runtime_refuses_the_node(tmp_path: Path) -> None:
    write_graph(_node_spec(finish=None), tmp_path, "node.onnx")
    with pytest.raises(Exception, match="CacheChunkAttention"):
        session_of(tmp_path / "node.onnx")
