"""The engine `graph` on a GPU: captured work equals plain work, nothing waits or is allocated. ``pytest -m gpu``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from films import film, latents_of

from shotstream.runtime.parity import run_parity
from shotstream.runtime.parity.engines import EngineParity
from shotstream.runtime.runtime import Runtime

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
VECTORS = Path(__file__).parents[1] / "vectors" / "subset.pt"
MakeRuntime = Callable[..., Runtime]
SIZES = {"dim": 128, "heads": 2, "ffn_dim": 256}
"""Heads of 64 channels: the kernels know these and 128."""


@pytest.fixture
def gpu_runtime(small_runtime: MakeRuntime) -> MakeRuntime:
    """A small model on the GPU with engine `graph`; Triton does what it can if it is there."""

    def make(**options: Any) -> Runtime:
        plugins: list[Any] = []
        try:
            import triton  # noqa: F401

            plugins.append("shotstream.kernels.plugin:KernelsPlugin")
        except ImportError:
            assert "attention" not in options, "this test needs Triton"
        chosen = {"device": "cuda", "engine": "graph", "model_options": SIZES, **options}
        return small_runtime(*plugins, **chosen)

    return make


@contextmanager
def nothing_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


ENGINES = [
    {"dtype": torch.float32},
    {"dtype": torch.bfloat16},
    {"dtype": torch.bfloat16, "attention": "triton"},
    {"dtype": torch.bfloat16, "ops": "torch"},
    {"dtype": torch.bfloat16, "attention": "triton", "fp8": "all"},
]


def _options(chosen: dict[str, Any], **more: Any) -> dict[str, Any]:
    chosen = dict(chosen)
    fp8 = chosen.pop("fp8", "none")
    if fp8 != "none" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("no float8 on this GPU")
    return {**chosen, "engine_options": {"fp8": fp8, **more}}


@pytest.mark.parametrize("chosen", ENGINES, ids=str)
def test_graphs_make_the_same_film_bit_for_bit(gpu_runtime: MakeRuntime, chosen: dict[str, Any]) -> None:
    films = []
    for capture in (True, False):
        runtime = gpu_runtime(**_options(chosen, capture=capture))
        films.append(film(runtime.open("A forest. ", seed=3)))
        films.append(film(runtime.open("A forest. ", seed=3)))  # all from graphs now
    assert all(np.array_equal(films[0], each) for each in films[1:])


def test_graphs_are_used(gpu_runtime: MakeRuntime) -> None:
    runtime = gpu_runtime(dtype=torch.bfloat16, attention="triton")
    runtime.warm_up()
    session = runtime.open("A forest. ", seed=3)
    assert session._state.recorder.captured == 4  # first, joined, step, clean: for every fill level


@pytest.mark.parametrize("chosen", ENGINES, ids=str)
def test_running_ahead_changes_no_frame(gpu_runtime: MakeRuntime, chosen: dict[str, Any]) -> None:
    films = [
        film(gpu_runtime(**_options(chosen), run_ahead=ahead).open("A forest. ", seed=3)) for ahead in (True, False)
    ]
    assert np.array_equal(*films)


def test_a_gpu_makes_what_a_cpu_makes(gpu_runtime: MakeRuntime, small_runtime: MakeRuntime) -> None:
    cpu = small_runtime(engine="eager", model_options=SIZES)
    gpu = gpu_runtime(dtype=torch.float32)
    theirs, ours = latents_of(cpu), latents_of(gpu)
    for runtime in (cpu, gpu):
        film(runtime.open("A forest. ", seed=3))
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("chosen", ENGINES, ids=str)
def test_the_chunk_loop_waits_for_nothing_but_its_frames_and_allocates_nothing(
    gpu_runtime: MakeRuntime, chosen: dict[str, Any]
) -> None:
    runtime = gpu_runtime(**_options(chosen))
    runtime.warm_up()
    session = runtime.open("A forest. ", seed=3)
    for _ in range(2):  # caches of libraries and of the allocator fill up
        session.begin_shot("a fox waits", 7)
        list(session.chunks())
    session.begin_shot("a fox runs", 7)
    before = torch.cuda.memory_stats()["num_device_alloc"]
    with nothing_waits():
        chunks = list(session.chunks())
    assert len(chunks) == 7
    assert torch.cuda.memory_stats()["num_device_alloc"] == before
    with pytest.raises(RuntimeError, match="synchronizing"), nothing_waits():  # the watch does see what waits
        session._state.x0[0, 0, 0, 0, 0].item()


@pytest.mark.parametrize("chosen", ENGINES, ids=str)
def test_it_agrees_with_the_reference(gpu_runtime: MakeRuntime, chosen: dict[str, Any]) -> None:
    """Heads of the vectors are narrower than the attention kernel's, so attention is torch's; operations are ours."""
    options = _options(chosen)
    ops = gpu_runtime(ops=options.get("ops")).engine.ops  # type: ignore[attr-defined]
    parity = EngineParity(torch.device("cuda"), options["dtype"], options["engine_options"] | {"exact_blocks": 0}, ops)
    report = run_parity(VECTORS, [parity.group()], claimed_only=True)
    found = [row for row in report.rows if row.error is not None]
    assert {row.case for row in found} == {"student_A", "student_A_onecaption"}
    assert {row.status for row in found} == {"passed"}, found
