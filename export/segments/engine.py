"""Engines made of segments: the runtime's engine `graph`, with somebody else running what lies between attentions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from shotstream.export.segments.cut import SegmentRunner, cut
from shotstream.export.segments.passes import SegmentedTransformer
from shotstream.export.segments.torch_runner import TorchRunner
from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.engine import GraphEngine, GraphOptions
from shotstream.runtime.graph.ops import TorchOps
from shotstream.runtime.model.attention import sdpa
from shotstream.runtime.plugins import EngineRequest

OURS, NATIVE = "ours", "native"
"""Whose attention: ours, between segments, or that of whoever executes, in the whole step."""


@dataclass(frozen=True)
class SegmentOptions:
    """fp8: eight-bit keys and values ("cache") or not ("none"). capture: on a GPU, replay steps as CUDA graphs."""

    fp8: str = "none"
    capture: bool = True

    def __post_init__(self) -> None:
        if self.fp8 not in ("none", "cache"):
            raise UserError(f"fp8 of an engine made of segments is none or cache, not {self.fp8!r}")

    @classmethod
    def of(cls, engine: str, options: Mapping[str, Any]) -> Self:
        """From an engine's options; UserError for unknown ones."""
        known = cls.__dataclass_fields__
        if unknown := sorted(set(options) - set(known)):
            raise UserError(f"the engine '{engine}' has no option {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**options)


@dataclass(frozen=True)
class TorchSegmentOptions(SegmentOptions):
    """compile: segments by torch.compile; needs a C++ compiler."""

    compile: bool = False


def segment_engine(request: EngineRequest, runner: SegmentRunner, options: SegmentOptions) -> GraphEngine:
    """An engine whose segments `runner` executes."""
    parts = request.parts
    passes = SegmentedTransformer(
        parts.transformer, runner, request.ops or TorchOps(), request.attention or sdpa, parts.latent_shape[1:]
    )
    return GraphEngine(request, GraphOptions(fp8=options.fp8, capture=options.capture), passes)


def torch_segments(request: EngineRequest) -> GraphEngine:
    """Factory of the engine `torch-segments`."""
    options = TorchSegmentOptions.of("torch-segments", request.options)
    runner = TorchRunner(cut(request.parts.transformer, request.parts.latent_shape), compile=options.compile)
    return segment_engine(request, runner, options)
