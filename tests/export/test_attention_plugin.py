"""The attention plugin: its engines build on TensorRT-RTX, and what it would launch is right but for the GPU."""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from step_files import small_parts
from torch import Tensor, nn

from shotstream.export.engine_store.entry import Profile
from shotstream.export.graphs.cache_chunk_attention import INPUTS, add_body, cache_chunk_attention, translations
from shotstream.export.graphs.spec import GraphSpec, write_graph
from shotstream.export.graphs.step import step_spec
from shotstream.export.trt.attention_kernel import Kernel, attend, compile_kernels, dump, load, packed, workspace_bytes
from shotstream.export.trt.attention_plugin import PluginBuild, build_with_plugin, call_of
from shotstream.export.trt.build import BuildOrder
from shotstream.runtime.config import WAN_1_3B
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.transformer import Transformer

pytest.importorskip("triton")
log = logging.getLogger(__name__)
ARCH = 120
TOKENS, CACHED, HEADS, HEAD_DIM = 6, 9, 2, 64


class _Node(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        return cache_chunk_attention(q, k, v, k_cache, v_cache, q.shape[-1] ** -0.5)


def _inputs(head_dim: int = HEAD_DIM, cached: int = CACHED) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = dict(zip(INPUTS, (TOKENS, TOKENS, TOKENS, cached, cached), strict=True))
    return {name: torch.randn((n, HEADS, head_dim), generator=generator).bfloat16() for name, n in lengths.items()}


def _order(folder: Path, spec: GraphSpec) -> BuildOrder:
    write_graph(spec, folder, "graph.onnx", 23)
    return BuildOrder("tensorrt-rtx", str(folder / "graph.onnx"), str(folder / "graph.plan"), _profiles(spec))


def _profiles(spec: GraphSpec) -> dict[str, Profile]:
    """The sizes that the graph was exported for, with those of the example as the usual ones."""

    def shape(name: str, bound: int) -> tuple[int, ...]:
        sizes = list(spec.inputs[name].shape)
        for axis, text in spec.dynamic[name].items():
            times, _, dim = text.rpartition("*")
            sizes[axis] = int(times or 1) * spec.ranges[dim][bound]
        return tuple(sizes)

    return {name: (shape(name, 0), tuple(spec.inputs[name].shape), shape(name, 1)) for name in spec.dynamic}


def _node_order(folder: Path, head_dim: int = HEAD_DIM) -> BuildOrder:
    dynamic = {name: {0: "cached"} for name in ("k_cache", "v_cache")}
    ranges = {"cached": (0, 40)}
    spec = GraphSpec(_Node(), _inputs(head_dim), ("out",), dynamic, ranges, translations(), add_body)
    return _order(folder, spec)


# ------------------------------------------------------------------------------------ building
def test_the_plan_carries_the_kernel(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    order = _node_order(tmp_path)
    made = build_with_plugin(order, (ARCH,))
    assert made.nodes == 1
    (kernel,) = compile_kernels(HEAD_DIM, "bfloat16", (ARCH,))
    assert kernel.cubin in Path(order.plan).read_bytes()


def test_the_plugin_comes_before_the_body_only_because_the_node_names_its_namespace(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    order = _node_order(tmp_path)
    model = onnx.load(order.onnx)
    for node in model.graph.node:
        kept = [a for a in node.attribute if a.name not in ("plugin_namespace", "plugin_version")]
        del node.attribute[:]
        node.attribute.extend(kept)
    onnx.save(model, order.onnx)
    assert build_with_plugin(order, (ARCH,)).nodes == 0


def test_heads_that_the_kernel_does_not_know_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    with pytest.raises(UserError, match="16 channels"):
        build_with_plugin(_node_order(tmp_path, head_dim=16), (ARCH,))


def test_without_the_librarys_other_name_the_process_is_ended(tmp_path: Path) -> None:
    """Why building has a process and an environment of its own."""
    pytest.importorskip("tensorrt_rtx_bindings")
    order = _node_order(tmp_path)
    code = (
        "import tensorrt_rtx_bindings as trt; from shotstream.export.trt.attention_plugin import register; "
        f"kept = register(trt, ({ARCH},)); log = trt.Logger(trt.ILogger.ERROR); "
        "network = trt.Builder(log).create_network(0); "
        f"print(trt.OnnxParser(network, log).parse_from_file({order.onnx!r}))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert child.returncode < 0
    assert b"True" not in child.stdout


@pytest.mark.slow
def test_every_layer_of_a_whole_step_becomes_a_plugin(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    parts = small_parts()
    config = dataclasses.replace(parts.config, dim=HEADS * HEAD_DIM)
    model = Transformer(config).bfloat16().requires_grad_(False).eval()
    made = build_with_plugin(_order(tmp_path, step_spec(model, parts.latent_shape, torch.bfloat16)), (ARCH,))
    assert made.nodes == config.layers == 2


@pytest.mark.slow
@pytest.mark.parametrize("plugin", [True, False])
def test_one_block_builds_at_the_real_size(plugin: bool, tmp_path: Path) -> None:
    """Run with ``-o log_cli=true -o log_cli_level=INFO`` to see the figures."""
    pytest.importorskip("tensorrt_rtx_bindings")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = Transformer(dataclasses.replace(WAN_1_3B, layers=1)).requires_grad_(False).eval()
    finally:
        torch.set_default_dtype(before)
    order = _order(tmp_path, step_spec(model, (16, 60, 104), torch.bfloat16))
    if not plugin:
        graph = onnx.load(order.onnx, load_external_data=False)
        for node in graph.graph.node:
            if node.domain == "shotstream":
                del node.attribute[:2]
        onnx.save(graph, order.onnx)
    made: PluginBuild = build_with_plugin(order)
    size = Path(order.plan).stat().st_size / 1e6
    log.info("plugins %d, build %.1f s, plan %.0f MB, peak %.0f MB", made.nodes, made.seconds, size, made.peak_mb)
    assert made.nodes == plugin


# ------------------------------------------------------------------------------------ launching
class _Host:
    """A driver whose device is this machine's memory: copies are done, the launch is computed from its arguments."""

    def __init__(self) -> None:
        self.grid = 0

    def architecture(self) -> int:
        return ARCH

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        assert stream == 7
        ctypes.memmove(to, source, size)

    def set_int(self, to: int, value: int, stream: int) -> None:
        ctypes.c_int32.from_address(to).value = value

    def launch(self, kernel: Kernel, programs: int, arguments: bytes, stream: int) -> None:
        given = _unpacked(kernel, arguments)
        self.grid = programs
        length = ctypes.c_int32.from_address(int(given["length"])).value
        q = _tensor(given, "q", "l", int(given["queries"]))
        k, v = (_tensor(given, name, "s", length) for name in "kv")
        scores = torch.einsum("lhk,shk->hls", q.float(), k.float()) * given["scale"]
        shares = 2 ** (scores - scores.amax(-1, keepdim=True))
        out = torch.einsum("hls,shk->lhk", shares / shares.sum(-1, keepdim=True), v.float())
        _tensor(given, "out", "l", int(given["queries"])).copy_(out)


def _unpacked(kernel: Kernel, arguments: bytes) -> dict[str, float]:
    """Arguments by name from where a C compiler would put them."""
    kinds = {"i32": ctypes.c_int32, "fp32": ctypes.c_float}
    fields = [(name, ctypes.c_uint64 if kind[0] == "*" else kinds[kind]) for name, kind in kernel.parameters]
    both = [*fields, ("scratch", ctypes.c_uint64), ("profile", ctypes.c_uint64)]
    given = type("Given", (ctypes.Structure,), {"_fields_": both}).from_buffer_copy(arguments)
    assert (given.scratch, given.profile) == (0, 0)
    return {name: getattr(given, name) for name, _ in fields}


def _tensor(given: dict[str, float], name: str, along: str, rows: int) -> Tensor:
    row, head = int(given[f"{name}_s{along}"]), int(given[f"{name}_sh"])
    memory = (ctypes.c_int16 * (rows * row)).from_address(int(given[f"{name}_ptr"]))
    flat = torch.frombuffer(memory, dtype=torch.bfloat16)
    return flat.as_strided((rows, int(given["heads"]), HEAD_DIM), (row, head, 1))


@pytest.mark.parametrize("cached", [0, CACHED])
def test_what_would_be_launched_is_the_attention_of_the_node(cached: int) -> None:
    inputs = _inputs(cached=cached)
    q, driver = inputs["q"], _Host()
    out = torch.zeros_like(q)
    workspace = torch.zeros(workspace_bytes(TOKENS, cached, HEADS * HEAD_DIM * 2), dtype=torch.uint8)
    addresses = [value.data_ptr() for value in inputs.values()]
    shapes = [tuple(value.shape) for value in inputs.values()]
    call = call_of(addresses, out.data_ptr(), workspace.data_ptr(), shapes, 2, HEAD_DIM**-0.5)
    attend(driver, compile_kernels(HEAD_DIM, "bfloat16", (ARCH,)), call, 7)
    torch.testing.assert_close(out, _Node()(*inputs.values()), rtol=2e-2, atol=1e-2)
    assert driver.grid == HEADS  # six queries are one block


def test_arguments_lie_where_the_machine_code_reads_them(tmp_path: Path) -> None:
    import triton

    (kernel,) = compile_kernels(HEAD_DIM, "bfloat16", (ARCH,))
    (tmp_path / "kernel.cubin").write_bytes(kernel.cubin)
    tool = [triton.knobs.nvidia.cuobjdump.path, "-elf", str(tmp_path / "kernel.cubin")]
    text = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"Ordinal\s*:\s*(0x\w+)\s*Offset\s*:\s*(0x\w+)\s*Size\s*:\s*(0x\w+)", text)
    theirs = sorted(tuple(int(number, 16) for number in row) for row in found)
    ours, offset = [], 0
    for ordinal, (_, kind) in enumerate([*kernel.parameters, ("scratch", "*"), ("profile", "*")]):
        size = 8 if kind[0] == "*" else 4
        offset = -(-offset // size) * size
        ours.append((ordinal, offset, size))
        offset += size
    assert theirs == ours
    assert len(packed(kernel, dict.fromkeys((name for name, _ in kernel.parameters), 0))) == offset


def test_a_plan_for_other_gpus_is_refused() -> None:
    kernels = compile_kernels(HEAD_DIM, "bfloat16", (80,))
    assert load(dump(kernels)) == kernels
    with pytest.raises(UserError, match="no kernel for sm_120"):
        attend(_Host(), kernels, call_of([0] * 5, 0, 0, [(TOKENS, HEADS, HEAD_DIM)] * 5, 2, 1.0), 7)
