"""A streaming decoder's step with most convolutions in eight-bit integers, for CPUs: static, by ONNX Runtime's tools.

Ranges of activations are those of a stream of normal latents from a fixed seed: latents are normalised, and pictures
vary less than noise. What reads the latents, mixes channels only, narrows, or comes last stays in float32: rounding it
shows as grain on even ground.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from shotstream.export.exporting import locked
from shotstream.export.files import hash_of, writing
from shotstream.export.graphs.decoder_stream import FIRST, FRAMES, LATENT, NEXT, STEP
from shotstream.export.manifest import Graph, Manifest, Source, read_manifest, write_manifest
from shotstream.export.onnx_runtime.int8 import holds
from shotstream.runtime.errors import UserError

if TYPE_CHECKING:
    import numpy as np

_CHUNKS, _LATENTS = 6, 3
"""Of the stream by which ranges are found."""
_LAST = 3
"""Convolutions at the end that stay as they are in a decoder where none widens."""


def quantise_decoder(folder: Path, target: Path, source: Source) -> Manifest:
    """The step of the export in `folder` with eight-bit convolutions, in `target`, unless it is there already.

    source: as of `int8.eight_bit_source`. UserError for decoders of two graphs, and when the disk is full.
    """
    there = read_manifest(folder)
    if FIRST in there.graphs:
        raise UserError(f"there is no int8 for the decoder '{source.model}'; leave the precision away")
    with locked(target):
        if holds(target, source, [STEP]):
            return read_manifest(target)
        step = there.graph(STEP)
        with tempfile.TemporaryDirectory(dir=target, prefix=".int8-") as scratch:
            made = Path(scratch) / step.file
            with writing(target):
                quantise_step(folder / step.file, made)
                graph = Graph(step.file, {step.file: hash_of(made)}, step.inputs, step.outputs)
                made.replace(target / step.file)
        manifest = Manifest(source, {STEP: graph})
        write_manifest(target, manifest)
    return manifest


def quantise_step(path: Path, made: Path) -> None:
    """Write an eight-bit copy of a decoder's step, in one file."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    model = onnx.load(path)
    add_pre_process_metadata(model)  # exports are folded and have their shapes, which is all that it stands for
    with _quiet():
        quantize_static(
            model,
            made,
            _Stream(path),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=_exact(model),
        )


def _exact(model: Any) -> list[str]:
    """Convolutions that stay as they are.

    Those that widen are rounded, unless they read the latents: half of all work or more in a memory block, and what
    they read is even. What narrows again has outliers in its input: rounding it shows as grain. In a decoder where
    none widens, all are rounded but 1x1, the one that reads latents, and the last.
    """
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    latent = next(port for port in model.graph.input if port.name == LATENT).type.tensor_type.shape.dim[1].dim_value
    every = [(node.name, shapes[node.input[1]]) for node in model.graph.node if node.op_type == "Conv"]
    wide = [(name, shape) for name, shape in every if shape[2:] != (1, 1)]
    inner = [(name, shape) for name, shape in wide if shape[1] != latent]
    last = {name for name, _ in wide[-_LAST:]}
    widen = {name for name, shape in inner if shape[0] > shape[1]}
    rounded = widen or {name for name, _ in inner} - last
    return [name for name, _ in every if name not in rounded]


class _Stream:
    """Inputs of a step, as ONNX Runtime's `CalibrationDataReader` gives them: a shot of random latents."""

    def __init__(self, path: Path) -> None:
        import onnxruntime as ort

        self._session = ort.InferenceSession(str(path))
        self._given = self._inputs()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next call's inputs; None at the end."""
        return next(self._given, None)

    def _inputs(self) -> Iterator[dict[str, np.ndarray]]:
        outputs, generator = [port.name for port in self._session.get_outputs()], torch.Generator().manual_seed(0)
        latent, *states = self._session.get_inputs()
        given = {port.name: torch.zeros(port.shape).numpy() for port in states}
        for _ in range(_CHUNKS):
            given[LATENT] = torch.randn(_LATENTS, *latent.shape[1:], generator=generator).numpy()
            yield given
            made = dict(zip(outputs, self._session.run(outputs, given), strict=True))
            given = {name.removesuffix(NEXT): values for name, values in made.items() if name != FRAMES}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the quantiser prints and logs on its way is for those who tune it."""
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
