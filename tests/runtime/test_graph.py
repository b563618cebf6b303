"""The engine `graph` on a CPU: the same film as the eager engine's, in four launches of work per chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from films import assert_same_film, film, latents_of
from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.engine import GraphEngine
from shotstream.runtime.graph.linear import Dense, EightBit
from shotstream.runtime.graph.ops import TorchOps
from shotstream.runtime.graph.passes import FusedTransformer, PassInput
from shotstream.runtime.model.attention import Prefix, sdpa
from shotstream.runtime.runtime import Runtime

MakeRuntime = Callable[..., Runtime]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(frames, of which only remembered) of every pass of any graph engine."""
    seen: list[tuple[int, int]] = []
    real = FusedTransformer.__call__

    def noted(self: FusedTransformer, given: PassInput) -> Tensor | None:
        seen.append((given.z_BFCHW.shape[1], given.remembered))
        return real(self, given)

    monkeypatch.setattr(FusedTransformer, "__call__", noted)
    return seen


@pytest.mark.parametrize("options", [{}, {"sink_frames": 6}, {"context_noise": 300.0}, {"noise_offset": 0.5}], ids=str)
def test_both_engines_make_the_same_film(small_runtime: MakeRuntime, options: dict[str, Any]) -> None:
    eager = small_runtime(engine="eager", model_options=options)
    graph = small_runtime(engine="graph", model_options=options)
    assert_same_film(eager, graph)


def test_context_noise_changes_what_comes_after_a_chunk(small_runtime: MakeRuntime) -> None:
    made = []
    for context_noise in (0.0, 300.0):
        runtime = small_runtime(engine="graph", model_options={"context_noise": context_noise})
        made.append(latents_of(runtime))
        session = runtime.open("A forest. ", seed=3)
        session.begin_shot("a fox waits", 2)
        list(session.chunks())
    assert torch.equal(made[0][0], made[1][0])
    assert not torch.allclose(made[0][1], made[1][1], atol=1e-3)


def test_four_launches_of_work_per_chunk(small_runtime: MakeRuntime, passes: list[tuple[int, int]]) -> None:
    session = small_runtime(engine="graph").open("A forest. ")
    session.begin_shot("a fox waits", 3)
    list(session.chunks())
    context, first, joined, step = (6, 6), (3, 0), (6, 3), (3, 0)
    assert passes == [context, first, *[step] * 3, *2 * [joined, *[step] * 3]]


def test_past_the_local_cache_the_clean_pass_is_its_own(
    small_runtime: MakeRuntime, passes: list[tuple[int, int]]
) -> None:
    session = small_runtime(engine="graph").open("A forest. ")
    session.begin_shot("a fox waits", 9)
    list(session.chunks())
    assert passes[-10:] == 2 * [(3, 3), *[(3, 0)] * 4]
    assert passes.count((6, 3)) == 6


@pytest.mark.parametrize("engine", ["graph", "eager"])
@pytest.mark.parametrize("context_noise", [0.0, 300.0])
def test_running_ahead_changes_no_frame(small_runtime: MakeRuntime, engine: str, context_noise: float) -> None:
    options = {"engine": engine, "model_options": {"context_noise": context_noise}}
    films = [film(small_runtime(**options, run_ahead=ahead).open("A forest. ", seed=3)) for ahead in (False, True)]
    assert np.array_equal(*films)


def test_running_ahead_begins_the_next_chunk_before_the_frames_are_handed_over(
    small_runtime: MakeRuntime, passes: list[tuple[int, int]]
) -> None:
    session = small_runtime(engine="graph", run_ahead=True).open("A forest. ")
    session.begin_shot("a fox waits", 2)
    session.next_chunk()
    assert passes[-1] == (6, 3)
    before = len(passes)
    session.next_chunk()
    assert passes[before:] == 3 * [(3, 0)]  # the rest of it, and nothing after a shot's last chunk


def test_a_fork_and_a_restored_session_go_on_alike(small_runtime: MakeRuntime) -> None:
    runtime = small_runtime(engine="graph", run_ahead=True)
    session = runtime.open("A forest. ", seed=3)
    session.begin_shot("a fox waits", 4)
    session.next_chunk()
    fork = session.fork(mid_shot=True)
    restored = runtime.restore(session.snapshot(mid_shot=True))
    session.cut("a hare looks up", chunks=2)
    frames = []
    for each in (session, fork, restored):
        if each is not session:
            each.begin_shot("a hare looks up", 2)
        frames.append(np.concatenate([chunk.frames for chunk in each.chunks()]))
    assert np.array_equal(frames[0], frames[1])
    assert np.array_equal(frames[0], frames[2])


def test_a_prepared_state_is_as_good_as_new(small_runtime: MakeRuntime) -> None:
    cold, warm = small_runtime(engine="graph"), small_runtime(engine="graph")
    warm.warm_up()
    ours, theirs = film(warm.open("A forest. ", seed=3)), film(cold.open("A forest. ", seed=3))
    assert np.array_equal(ours, theirs)


# ------------------------------------------------------------------------------------ attention by length
class ByLength:
    """Reads the length from the tensor only, as a kernel does; what lies behind it is poison."""

    eight_bit = True

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return sdpa(q, k, v, mask)

    def over_prefix(self, q: Tensor, prefix: Prefix) -> Tensor:
        length = int(prefix.length_1)
        self.lengths.append(length)
        k, v = prefix.k_BSHK[:, :length].to(q.dtype), prefix.v_BSHK[:, :length].to(q.dtype)
        if prefix.k_scale_H is not None and prefix.v_scale_H is not None:
            k, v = k * prefix.k_scale_H[:, None], v * prefix.v_scale_H[:, None]
        return sdpa(q, k, v)


class ByLengthPlugin:
    name = "by-length"

    def __init__(self) -> None:
        self.attention = ByLength()

    def build(self, registry: Any) -> None:
        registry.register("attention", "by-length", lambda: self.attention)


@pytest.mark.parametrize("fp8", ["none", "cache"])
def test_a_backend_finds_the_length_on_the_device(small_runtime: MakeRuntime, fp8: str) -> None:
    plugin, options = ByLengthPlugin(), {"fp8": fp8}
    plain = small_runtime(engine="graph", engine_options=options)
    runtime = small_runtime(plugin, engine="graph", attention="by-length", engine_options=options)
    assert_same_film(plain, runtime)
    per_frame = 6
    assert {length // per_frame for length in plugin.attention.lengths} == {6, 9, 12, 15, 18, 21, 24, 27}


# ------------------------------------------------------------------------------------ eight bits
@pytest.mark.parametrize(("fp8", "bound"), [("cache", 0.12), ("linears", 0.12), ("all", 0.15)])
def test_eight_bits_cost_little_accuracy_and_not_none(small_runtime: MakeRuntime, fp8: str, bound: float) -> None:
    exact = small_runtime(engine="graph")
    rounded = small_runtime(engine="graph", engine_options={"fp8": fp8, "exact_blocks": 0})
    made = [latents_of(exact), latents_of(rounded)]
    for runtime in (exact, rounded):
        session = runtime.open("A forest. ", seed=3)
        session.begin_shot("a fox waits", 2)
        list(session.chunks())
    for a, b in zip(*made, strict=True):
        error = float((a - b).norm() / a.norm())
        assert 1e-4 < error < bound


def test_eight_bit_caches_take_a_quarter_of_the_memory(small_runtime: MakeRuntime) -> None:
    exact, rounded = small_runtime(engine="graph"), small_runtime(engine="graph", engine_options={"fp8": "cache"})
    assert rounded.engine.new_state().nbytes * 4 == exact.engine.new_state().nbytes


def test_an_eight_bit_product_is_near_the_exact_one() -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(40, 64), torch.randn(40), torch.randn(1, 9, 64)
    exact, rounded = Dense(weight, bias), EightBit.of(weight, bias)
    y, y8 = exact(x), rounded(TorchOps().quantise(x))
    assert y8.shape == y.shape
    assert 1e-4 < float((y - y8).norm() / y.norm()) < 0.05
    assert torch.equal(rounded.outputs_from(16)(TorchOps().quantise(x)), y8[..., 16:])
    torch.testing.assert_close(exact.outputs_from(16)(x), y[..., 16:])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"fp8": "some"}, "fp8 is one of none, cache, linears, all, not 'some'"), ({"speed": 9}, "has no option speed")],
)
def test_options_that_do_not_exist_are_refused(small_runtime: MakeRuntime, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_runtime(engine="graph", engine_options=options)


def test_the_packed_weights_are_the_models_own(small_runtime: MakeRuntime) -> None:
    runtime = small_runtime(engine="graph")
    engine, block = runtime.engine, runtime.parts.transformer.blocks[0]  # type: ignore[index]
    assert isinstance(engine, GraphEngine)
    packed = engine.passes.blocks[0].qkv.weight_ND
    assert block.self_attn.k.weight.data_ptr() == packed[packed.shape[0] // 3 :].data_ptr()


def test_attention_is_chosen_and_said_why(small_runtime: MakeRuntime) -> None:
    def reasons(**options: Any) -> tuple[str, dict[str, str]]:
        chosen = small_runtime(engine="graph", **options).attention
        return chosen.name, dict(chosen.reasons)

    assert reasons() == ("sdpa", {"sdpa": "the default on a CPU"})
    assert reasons(attention="auto") == ("sdpa", {"sdpa": "taken, its check passed"})
    assert reasons(attention="sdpa") == ("sdpa", {"sdpa": "asked for"})
    with pytest.raises(UserError, match="no attention 'steam'; there is sdpa"):
        reasons(attention="steam")
