"""Segments on ONNX Runtime: one session per graph, reading and writing torch's memory without copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shotstream.export.manifest import Port, check_files, read_manifest
from shotstream.runtime.errors import UserError
from shotstream.runtime.optional import require

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ELEMENT_TYPES = {torch.float32: 1, torch.int64: 7, torch.float16: 10, torch.float64: 11, torch.bfloat16: 16}
"""ONNX's numbers of them."""


@dataclass(frozen=True)
class SessionSettings:
    """threads: of each session on the CPU; None: as many as torch has. provider: cpu or cuda."""

    device: torch.device
    threads: int | None = None
    provider: str = "cpu"


class SessionRunner:
    """Executes graphs by name, as `segments.cut.SegmentRunner` says.

    A graph's outputs lie in tensors of its own, one set per size of its inputs: the next call overwrites them. On a GPU
    sessions work on torch's current stream. That path was written by the manual and never run.
    """

    def __init__(self, graphs: Mapping[str, LoadedGraph], device: torch.device) -> None:
        self.device = device
        self._graphs = graphs

    def __call__(self, name: str, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """As `segments.cut.SegmentRunner`."""
        graph = self._graphs[name]
        sizes = _sizes(name, graph.inputs, inputs)
        call = graph.calls.get(sizes)
        if call is None:
            call = graph.calls[sizes] = _Call(graph, dict(sizes), self.device)
        return call(inputs)


class OnnxRunner(SessionRunner):
    """Of graphs of an export."""

    def __init__(self, folder: Path, names: Sequence[str], settings: SessionSettings) -> None:
        """Raises UserError: no ONNX Runtime, no such provider, or files that are missing, foreign or truncated."""
        manifest = read_manifest(folder)
        check_files(folder, manifest, names)
        graphs = {}
        for name in names:
            graph = manifest.graph(name)
            graphs[name] = load_graph(folder / graph.file, graph.inputs, graph.outputs, settings)
        super().__init__(graphs, settings.device)


@dataclass
class LoadedGraph:
    """A graph's session, and what has been called so far, by the free sizes. weights: memory that the session reads."""

    session: Any
    inputs: Sequence[Port]
    outputs: Sequence[Port]
    weights: Sequence[Any] = ()
    calls: dict[tuple[tuple[str, int], ...], _Call] = field(default_factory=dict)


class _Call:
    """A graph bound to outputs of one size, and to the inputs of its last call."""

    def __init__(self, graph: LoadedGraph, sizes: Mapping[str, int], device: torch.device) -> None:
        self._run, self._binding = graph.session.run_with_iobinding, graph.session.io_binding()
        self._names = [port.name for port in graph.inputs]
        self._bound: list[tuple[int, torch.Size] | None] = [None] * len(self._names)
        self._place = device.type, device.index or 0
        self._options = _run_options()
        self.outputs = []
        for port in graph.outputs:
            shape = [size if isinstance(size, int) else sizes[size] for size in port.shape]
            out = torch.empty(shape, dtype=getattr(torch, port.dtype), device=device)
            self._binding.bind_output(port.name, *self._where(out))
            self.outputs.append(out)

    def __call__(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        held = [part.contiguous() for part in inputs]  # until the run is over
        for i, part in enumerate(held):
            key = part.data_ptr(), part.shape
            if key != self._bound[i]:
                self._binding.bind_input(self._names[i], *self._where(part))
                self._bound[i] = key
        self._run(self._binding, self._options)
        return self.outputs

    def _where(self, t: Tensor) -> tuple[str, int, int, list[int], int]:
        return *self._place, _ELEMENT_TYPES[t.dtype], list(t.shape), t.data_ptr()


def _sizes(name: str, ports: Sequence[Port], inputs: Sequence[Tensor]) -> tuple[tuple[str, int], ...]:
    """The free sizes of a call by name; UserError where inputs do not fit a graph."""
    found: dict[str, int] = {}
    fits = len(ports) == len(inputs)
    for port, given in zip(ports, inputs, strict=False):
        fits = fits and len(port.shape) == given.dim() and given.dtype == getattr(torch, port.dtype)
        for wanted, size in zip(port.shape, given.shape, strict=False):
            fits = fits and size == (found.setdefault(wanted, size) if isinstance(wanted, str) else wanted)
    if not fits:
        shapes = ", ".join(f"{port.name} {_listed(port.shape)} {port.dtype}" for port in ports)
        got = ", ".join(f"{_listed(part.shape)} {str(part.dtype).removeprefix('torch.')}" for part in inputs)
        raise UserError(f"graph '{name}' reads {shapes}, and was given {got}; export the graphs of this model")
    return tuple(found.items())


def _listed(shape: Sequence[int | str]) -> str:
    return "x".join(str(size) for size in shape)


def load_graph(
    path: Path,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    settings: SessionSettings,
    weights: Mapping[str, np.ndarray] | None = None,
) -> LoadedGraph:
    """A session of a file. weights: of the initializers that the file only names. UserError as of `OnnxRunner`."""
    ort = require("onnxruntime", "running ONNX graphs", "export")
    check_provider(ort, settings)
    options, weights = _options(ort, settings), weights or {}
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    try:
        if values:
            options.add_external_initializers(list(weights), values)
        session = ort.InferenceSession(str(path), options, providers=_providers(settings))
    except Exception as error:  # ONNX Runtime's errors have no class in common
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"ONNX Runtime {ort.__version__} does not load {path} ({reason}); export the graphs anew"
        ) from error
    return LoadedGraph(session, inputs, outputs, [*weights.values(), *values])


def _options(ort: Any, settings: SessionSettings) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that wait by spinning would take the cores from torch, which works between the graphs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _providers(settings: SessionSettings) -> list[Any]:
    if settings.provider == "cpu":
        return [PROVIDERS["cpu"]]
    stream = torch.cuda.current_stream(settings.device).cuda_stream
    given = {"device_id": settings.device.index or 0, "user_compute_stream": str(stream)}
    return [(PROVIDERS["cuda"], given)]


def _run_options() -> Any:
    """On a GPU a run only queues its work up."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def check_provider(ort: Any, settings: SessionSettings) -> None:
    """UserError for a provider that does not exist, is not installed, or works elsewhere than the runtime."""
    if settings.provider not in PROVIDERS:
        raise UserError(f"there is no provider '{settings.provider}' here; there is {', '.join(PROVIDERS)}")
    if settings.provider != settings.device.type:
        raise UserError(
            f"the provider {settings.provider} does not work on tensors of {settings.device.type}; "
            f"leave the option provider away, or give --device {settings.provider}"
        )
    if PROVIDERS[settings.provider] not in ort.get_available_providers():
        raise UserError(
            f"the installed onnxruntime has no {PROVIDERS[settings.provider]}; "
            "run: pip install onnxruntime-gpu, in place of onnxruntime"
        )
