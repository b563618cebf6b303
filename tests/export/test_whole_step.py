"""The engine that runs whole steps in ONNX Runtime makes the film of the eager engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from films import assert_same_film
from step_files import OrtRunner, exported_step, small_parts
from torch import Tensor

from shotstream.export.graphs.step import STEP
from shotstream.export.graphs.step_in_place import CONTEXT_IN_PLACE, STEP_IN_PLACE, StepInPlace
from shotstream.export.segments.cut import TEXT, TextSegment
from shotstream.export.segments.whole_step import NativeStep, in_place_engine, native_engine
from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.ops import CacheWriter
from shotstream.runtime.graph.passes import PassInput, Span
from shotstream.runtime.plugins import EngineRequest, Registry
from shotstream.runtime.runtime import Runtime

MakeRuntime = Callable[..., Runtime]


class _Plugin:
    """The whole step on ONNX Runtime."""

    name = "native"

    def __init__(self) -> None:
        self.runner = OrtRunner(exported_step())

    def build(self, registry: Registry) -> None:
        registry.register("engine", "native", self._make)

    def _make(self, request: EngineRequest) -> Any:
        return native_engine(request, self.runner)


@pytest.mark.parametrize("options", [{}, {"sink_frames": 6, "context_noise": 300.0}], ids=str)
def test_whole_steps_make_the_film_of_the_eager_engine(small_runtime: MakeRuntime, options: dict[str, Any]) -> None:
    plugin = _Plugin()
    eager = small_runtime(engine="eager", model_options=options)
    native = small_runtime(plugin, engine="native", model_options=options)
    assert_same_film(eager, native)
    assert set(plugin.runner.calls) == {STEP, TEXT}  # nothing of it ran elsewhere


def _given(writer: CacheWriter, spans: list[Span], remembered: int) -> PassInput:
    frames = sum(span.frames for span in spans)
    table = torch.zeros(1, 2 * frames, 1, 8)
    text = torch.zeros(1, 1, 2, 16)
    z = torch.arange(float(frames)).view(1, frames, 1, 1, 1)
    return PassInput(z, torch.zeros(1, frames), (table, table), [writer], spans, [(text, text)], None, remembered)


def test_a_joined_pass_is_two_calls_and_slots_go_round_the_ring() -> None:
    """Two frames of two tokens each; a cache of ten slots whose last six are the ring."""
    seen: list[list[float]] = []

    def runner(name: str, inputs: Any) -> Any:
        latent, k_cache = inputs[0], inputs[7]
        seen.append(k_cache[:, 0, 0].tolist())
        new = (100 + latent.flatten()).repeat_interleave(2)[:, None, None].expand(-1, 2, 16)
        return latent, new, new

    config: Any = SimpleNamespace(freq_dim=4, tokens_per_frame=lambda *_: 2)
    k, v = (torch.arange(10.0)[None, :, None, None].repeat(1, 1, 2, 16) for _ in range(2))
    writer = CacheWriter(k, v, torch.tensor([8], dtype=torch.int32), ring_begin=4)
    length = torch.tensor([10], dtype=torch.int32)
    flow = NativeStep(config, runner, (2, 2))(_given(writer, [Span(1, length, 10), Span(1, length, 10)], 1))
    assert seen == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 6, 7, 100, 100]]
    assert k[0, :, 0, 0].tolist() == v[0, :, 1, 3].tolist() == [0, 1, 2, 3, 101, 101, 6, 7, 100, 100]
    assert flow is not None
    assert flow.flatten().tolist() == [1.0]
    assert NativeStep(config, runner, (2, 2))(_given(writer, [Span(1, length, 10)], 1)) is None


def test_eight_bit_caches_are_refused() -> None:
    k = torch.zeros(1, 4, 2, 16)
    scale = torch.ones(2)
    writer = CacheWriter(k, k, torch.zeros(1, dtype=torch.int32), None, scale, scale)
    parts = small_parts()
    step = NativeStep(parts.config, lambda *_: [], parts.latent_shape[1:])
    with pytest.raises(UserError, match="choose fp8 none"):
        step(_given(writer, [Span(1, torch.tensor([2]), 2)], 0))


class _InPlace:
    """The graphs that write caches themselves, in torch. bound: as if outputs were the caches' own memory."""

    name = "in-place"

    def __init__(self, bound: bool) -> None:
        self.bound = bound
        self.calls: list[str] = []

    def build(self, registry: Registry) -> None:
        registry.register("engine", "in-place", self._make)

    def _make(self, request: EngineRequest) -> Any:
        parts = request.parts
        self.module = StepInPlace(parts.transformer, parts.latent_shape).eval()
        self.text = TextSegment(parts.transformer)
        return in_place_engine(request, self, capture=True)

    def __call__(self, name: str, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        self.calls.append(name)
        if name == TEXT:
            return self.text(*inputs)
        flow, *left = self.module(*inputs)
        caches = [part for layer in range(len(left) // 2) for part in inputs[9 + 4 * layer : 11 + 4 * layer]]
        assert all(cache.is_contiguous() for cache in caches)
        if self.bound:
            for cache, after in zip(caches, left, strict=True):
                cache.copy_(after)
            left = caches
        return flow, *left


@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize("options", [{}, {"sink_frames": 6, "context_noise": 300.0}], ids=str)
def test_steps_in_place_make_the_film_of_the_eager_engine(
    small_runtime: MakeRuntime, options: dict[str, Any], bound: bool
) -> None:
    plugin = _InPlace(bound)
    eager = small_runtime(engine="eager", model_options=options)
    assert_same_film(eager, small_runtime(plugin, engine="in-place", model_options=options))
    assert set(plugin.calls) == {TEXT, STEP_IN_PLACE, CONTEXT_IN_PLACE}
