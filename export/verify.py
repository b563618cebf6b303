"""Do the graphs of an export compute what the model does? Graph by graph, and a shot through all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from shotstream.export.exporting import PRECISIONS, check_weights
from shotstream.export.graphs.contents import DECODER, graph_specs
from shotstream.export.graphs.segments import CAPTIONS, FRAMES, example_inputs, most_frames
from shotstream.export.graphs.spec import GraphSpec
from shotstream.export.graphs.step_in_place import CONTEXT_IN_PLACE, STEP_IN_PLACE
from shotstream.export.manifest import Manifest, check_files
from shotstream.export.onnx_runtime.runner import OnnxRunner, SessionSettings
from shotstream.export.segments.cut import signatures
from shotstream.runtime.engine import EagerEngine, Engine, ShotContext
from shotstream.runtime.parity.report import Row, relative_error
from shotstream.runtime.plugins import EngineRequest, ModelParts

TOLERANCES: Mapping[str, float] = {"float32": 3e-6, "float16": 1e-2}
"""Accepted max|graph - torch| / max|torch|, both in the graph's precision."""
DECODER_FLOAT32 = 1e-5
"""Of decoders in float32: two runs of so many layers may each be off by some 3e-6."""
SHOT = 1e-4
"""The same of a shot's latents in float32: every step and chunk starts from what was made before it."""


def check_graphs(
    folder: Path, manifest: Manifest, parts: ModelParts, tell: Callable[[str], None] | None = None
) -> Iterator[Row]:
    """One row per graph and size: the worst output, relative to its own largest value; decoders with their PSNR.

    UserError for graphs of other weights, and for files that are missing or changed.
    """
    source = manifest.source
    check_weights(folder, source, parts)
    check_files(folder, manifest)
    if source.precision not in TOLERANCES:
        for name in manifest.graphs:
            yield Row(name, "", "skipped", note=f"ONNX Runtime does not compute in {source.precision} on a CPU")
        return
    specs = graph_specs(parts, PRECISIONS[source.precision])
    settings = SessionSettings(torch.device("cpu"))
    for name in manifest.graphs:
        if name in (STEP_IN_PLACE, CONTEXT_IN_PLACE):
            yield Row(name, "", "skipped", note="its attention is in TensorRT's words")
            continue
        if name not in specs:
            yield Row(name, "", "skipped", note="this version does not make such a graph")
            continue
        if tell is not None:
            tell(name)
        runner = OnnxRunner(folder, [name], settings)  # one at a time: all weights at once may not fit
        spec = specs[name]()
        for label, inputs in _sizes(name, spec, parts, PRECISIONS[source.precision]):
            yield _row(name, label, spec, inputs, runner, _tolerance(name, source.precision))


@torch.inference_mode()
def check_shot(parts: ModelParts, engine: Engine, chunks: int = 3) -> Row:
    """A shot from random context, captions and noise: the latents of an engine over these graphs against eager's."""
    request = EngineRequest(parts, torch.device("cpu"), next(parts.transformer.parameters()).dtype)
    theirs, ours = (_shot(executor, parts, chunks) for executor in (EagerEngine(request), engine))
    worst = max(relative_error(a, b) for a, b in zip(ours, theirs, strict=True))
    note = f"after {chunks} chunks of {len(parts.config.nominal_steps)} steps"
    return Row("shot", "latents", "passed" if worst <= SHOT else "failed", worst, SHOT, note)


def _shot(engine: Engine, parts: ModelParts, chunks: int) -> list[Tensor]:
    config, dtype = parts.config, next(parts.transformer.parameters()).dtype
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    captions = [engine.embed_caption(draw(1, config.text_len, config.text_dim)) for _ in range(2)]
    frames, chunk = config.context_frames, (1, config.chunk_frames, *parts.latent_shape)
    index = [0 if i < frames // 2 else 1 for i in range(frames)]
    state = engine.new_state()
    engine.begin_shot(state, ShotContext(draw(frames, *parts.latent_shape), index, captions, index), captions[1])
    made = []
    for start in range(0, chunks * config.chunk_frames, config.chunk_frames):
        made.append(engine.denoise(state, start, draw(*chunk), lambda _: draw(*chunk)))
        engine.clean(state, start, made[-1])
    return made


def _tolerance(name: str, precision: str) -> float:
    return DECODER_FLOAT32 if name.startswith(DECODER) and precision == "float32" else TOLERANCES[precision]


def _sizes(
    name: str, spec: GraphSpec, parts: ModelParts, dtype: torch.dtype
) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """A graph's inputs at the sizes to be checked, with a label."""
    if name not in signatures(parts.config) or not spec.dynamic:
        yield "example", spec.inputs
        return
    for frames in (1, parts.config.chunk_frames, most_frames(parts.config)):
        captions = min(frames, parts.config.context_frames) if CAPTIONS in spec.ranges else 1
        yield f"{frames} {FRAMES}", example_inputs(parts.config, parts.latent_shape, name, dtype, frames, captions)


@torch.inference_mode()
def _row(
    name: str, label: str, spec: GraphSpec, inputs: Mapping[str, Tensor], runner: OnnxRunner, tolerance: float
) -> Row:
    made = spec.module(*inputs.values())
    expected: Sequence[Tensor] = made if isinstance(made, tuple) else (made,)
    ours = runner(name, list(inputs.values()))
    worst = max(relative_error(a, b) for a, b in zip(ours, expected, strict=True))
    largest = max((a.double() - b.double()).abs().max().item() for a, b in zip(ours, expected, strict=True))
    note = f"largest difference {largest:.1e}"
    if name.startswith(DECODER):
        note += f", {_psnr(ours[0], expected[0]):.0f} dB"
    return Row(name, label, "passed" if worst <= tolerance else "failed", worst, tolerance, note)


def _psnr(ours: Tensor, expected: Tensor) -> float:
    """Of pictures between -1 and 1, in decibels."""
    error = (ours.double() - expected.double()).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(4 / error)
