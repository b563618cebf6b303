"""`CacheChunkAttention` as a plugin of TensorRT-RTX that carries our attention kernel. Experimental.

Engines with it are built here, without a GPU, from the whole-step graph as it is. None was ever run: no GPU that
TensorRT-RTX supports was at hand. The product has no plugins of its own and no network call for them; its ONNX parser
takes those of its registry for nodes with a `plugin_namespace`. That parser opens its own library by a name that the
wheel lacks, and ends the process when it cannot: so building is done in a process of its own, which is given the name.

A program that runs such an engine calls :func:`register` before it loads the plan.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from shotstream.export.graphs.cache_chunk_attention import DOMAIN, NAME, VERSION
from shotstream.export.trt.attention_kernel import (
    ARCHITECTURES,
    Call,
    CudaDriver,
    Driver,
    Kernel,
    attend,
    compile_kernels,
    dump,
    load,
    workspace_bytes,
)
from shotstream.export.trt.build import BuildOrder, answer, build_plan, run_child
from shotstream.export.trt.product import RTX, load_product
from shotstream.runtime.errors import UserError

_Q, _K, _V, _K_CACHE, _V_CACHE = range(5)
_LIBRARY = "libtensorrt_rtx.so"


@dataclass(frozen=True)
class PluginBuild:
    """What a build came to. nodes: how many nodes of the graph became plugins."""

    nodes: int
    seconds: float
    peak_mb: float
    warnings: tuple[str, ...]


def build_with_plugin(order: BuildOrder, architectures: Sequence[int] = ARCHITECTURES) -> PluginBuild:
    """Build a graph for TensorRT-RTX in a child process where the plugin is registered. UserError if that fails.

    architectures: compute capabilities (times ten) whose machine code the plan is to carry.
    """
    with environment() as variables:
        request = {"order": order, "architectures": architectures}
        return msgspec.convert(run_child(__name__, order, request, variables), PluginBuild)


@contextmanager
def environment() -> Iterator[dict[str, str]]:
    """Variables for a process whose parser is to find plugins: its library under the name that it asks for."""
    package = importlib.util.find_spec("tensorrt_rtx_libs")
    if package is None or package.origin is None:
        raise UserError("the libraries of TensorRT-RTX are not installed; run: pip install shotstream[rtx]")
    found = sorted(Path(package.origin).parent.glob(f"{_LIBRARY}.*"))
    if not found:
        raise UserError(f"there is no {_LIBRARY} in {Path(package.origin).parent}; install shotstream[rtx] again")
    with tempfile.TemporaryDirectory(prefix="shotstream-rtx-") as folder:
        (Path(folder) / _LIBRARY).symlink_to(found[0])
        before = os.environ.get("LD_LIBRARY_PATH")
        yield {**os.environ, "LD_LIBRARY_PATH": folder if not before else f"{folder}:{before}"}


def register(trt: Any, architectures: Sequence[int] = ARCHITECTURES) -> Any:
    """Offer the plugin to the parser and to the loader of plans of this process; the creator, which must be kept."""
    creator = _classes(trt)[1](tuple(architectures))
    if not trt.get_plugin_registry().register_creator(creator, DOMAIN):
        raise UserError(f"TensorRT-RTX does not take the plugin {DOMAIN}::{NAME}; one of that name is there already")
    return creator


def call_of(
    inputs: Sequence[int], out: int, workspace: int, shapes: Sequence[Sequence[int]], item_bytes: int, scale: float
) -> Call:
    """What `enqueue` was given as a call of the kernel. shapes: of the five inputs."""
    tokens, heads, head_dim = shapes[_Q]
    return Call(
        inputs[_Q], inputs[_K], inputs[_V], inputs[_K_CACHE], inputs[_V_CACHE], out, workspace,
        tokens, shapes[_K_CACHE][0], heads, head_dim, item_bytes, scale,
    )  # fmt: skip


@cache
def _classes(trt: Any) -> tuple[type, type]:
    """The plugin and its creator; their bases exist only once the product is imported."""
    types = {trt.DataType.HALF: "float16", trt.DataType.BF16: "bfloat16"}
    item_bytes = 2
    problems: list[str] = []

    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
        """One node."""

        def __init__(self, scale: float, architectures: tuple[int, ...], kernels: tuple[Kernel, ...] = ()) -> None:
            for base in Plugin.__bases__:
                base.__init__(self)
            self.plugin_name, self.plugin_namespace, self.plugin_version = NAME, DOMAIN, str(VERSION)
            self.num_outputs = 1
            self.timing_cache_id = ""
            self.scale, self.architectures, self.kernels = scale, architectures, kernels
            self.driver: Driver | None = None

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Plugin:
            return Plugin(self.scale, self.architectures, self.kernels)

        # ------------------------------------------------------------------------ while building
        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            return [input_types[_Q]]

        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Any, builder: Any) -> list[Any]:
            return [trt.DimsExprs(inputs[_Q])]

        def supports_format_combination(self, position: int, described: Sequence[Any], inputs: int) -> bool:
            here = described[position].desc
            return here.format == trt.TensorFormat.LINEAR and here.type in types and here.type == described[0].desc.type

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            query = inputs[_Q].desc
            try:
                self.kernels = compile_kernels(query.dims[2], types[query.type], self.architectures)
            except UserError as error:  # of which the product would report a number
                problems.append(str(error))
                raise

        def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            tokens, heads, head_dim = inputs[_Q].max
            return workspace_bytes(tokens, inputs[_K_CACHE].max[0], heads * head_dim * item_bytes)

        def get_valid_tactics(self) -> list[int]:
            return []

        def get_fields_to_serialize(self) -> Any:
            fields = [_scale(self.scale), _field("kernels", dump(self.kernels))]
            return trt.PluginFieldCollection(fields)

        # ------------------------------------------------------------------------ while running
        def set_tactic(self, tactic: int) -> None: ...

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None: ...

        def attach_to_context(self, context: Any) -> Plugin:
            return self.clone()

        def enqueue(
            self,
            inputs_described: Sequence[Any],
            outputs_described: Sequence[Any],
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace: int,
            stream: int,
        ) -> None:
            if self.driver is None:
                self.driver = CudaDriver()
            shapes = [tuple(each.dims) for each in inputs_described]
            call = call_of(inputs, outputs[0], workspace, shapes, item_bytes, self.scale)
            attend(self.driver, self.kernels, call, stream)

    class Creator(trt.IPluginCreatorV3One):
        """Makes plugins of nodes and of plans."""

        def __init__(self, architectures: tuple[int, ...]) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace, self.plugin_version = NAME, DOMAIN, str(VERSION)
            self.field_names = trt.PluginFieldCollection([_scale(1.0)])
            self.architectures = architectures
            self.nodes = 0
            self.problems = problems

        def create_plugin(self, name: str, given: Any, phase: Any) -> Plugin:
            fields: Mapping[str, Any] = {field.name: field.data for field in given}
            kernels = load(bytes(fields["kernels"])) if "kernels" in fields else ()
            self.nodes += phase == trt.TensorRTPhase.BUILD
            return Plugin(float(fields["scale"][0]), self.architectures, kernels)

    def _scale(value: float) -> Any:
        import numpy as np

        return trt.PluginField("scale", np.array([value], np.float32), trt.PluginFieldType.FLOAT32)

    def _field(name: str, data: bytes) -> Any:
        import numpy as np

        return trt.PluginField(name, np.frombuffer(data, np.int8), trt.PluginFieldType.CHAR)

    return Plugin, Creator


def _main() -> None:
    """The child process: an order, and for which GPUs, on standard input."""
    given = json.loads(sys.stdin.buffer.read())
    order = msgspec.convert(given["order"], BuildOrder)

    def build() -> dict[str, Any]:
        product = load_product(RTX)
        creator = register(product.module, given["architectures"])
        try:
            warnings = build_plan(product, order)
        except UserError:
            if creator.problems:
                raise UserError(creator.problems[0]) from None
            raise
        return {"nodes": creator.nodes, "warnings": warnings}

    answer(order, build)


if __name__ == "__main__":
    _main()
