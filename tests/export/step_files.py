"""The whole-step graph of the tests' small model, exported once, and ONNX Runtime in front of it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from small_model import SmallPlugin
from torch import Tensor

from shotstream.export.graphs.segments import segment_spec
from shotstream.export.graphs.spec import write_graph
from shotstream.export.graphs.step import STEP, step_spec
from shotstream.export.segments.cut import TEXT, cut
from shotstream.runtime.plugins import ModelParts, ModelRequest

_FOLDER = tempfile.TemporaryDirectory(prefix="shotstream-step-")  # deleted at the interpreter's end


@cache
def small_parts() -> ModelParts:
    """The model `small` as a runtime without options loads it."""
    return SmallPlugin()._model(ModelRequest(torch.device("cpu"), torch.float32))


@cache
def exported_step() -> Path:
    """A folder with the graphs `step` and `text_ctx`."""
    parts, folder = small_parts(), Path(_FOLDER.name)
    write_graph(step_spec(parts.transformer, parts.latent_shape), folder, f"{STEP}.onnx")
    text = cut(parts.transformer, parts.latent_shape)[TEXT]
    write_graph(segment_spec(TEXT, text, parts.config, parts.latent_shape, torch.float32), folder, f"{TEXT}.onnx")
    return folder


def session_of(path: Path) -> ort.InferenceSession:
    """One thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options)


class OrtRunner:
    """Graphs of a folder by name, as `export.segments.cut.SegmentRunner`."""

    def __init__(self, folder: Path) -> None:
        self.sessions = {name: session_of(folder / f"{name}.onnx") for name in (STEP, TEXT)}
        self.calls: list[str] = []

    def __call__(self, name: str, inputs: Sequence[Tensor]) -> list[Tensor]:
        session: Any = self.sessions[name]
        self.calls.append(name)
        fed = {port.name: value.numpy() for port, value in zip(session.get_inputs(), inputs, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, fed)]
