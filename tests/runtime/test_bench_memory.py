"""Memory plans against what is truly allocated, and what is refused before anything is loaded."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shotstream.runtime import memory
from shotstream.runtime.bench.plans import CACHES, CAPTIONS, plan_for, session_items, tiny_plan, wan_plan, watch_memory
from shotstream.runtime.bench.text import memory_lines
from shotstream.runtime.cli import run
from shotstream.runtime.errors import UserError
from shotstream.runtime.memory import MemoryUse, MemoryWatch, Plan, PlanItem, check_room, left_in_group
from shotstream.runtime.plugins import ModelRequest
from shotstream.runtime.runtime import Runtime, RuntimeOptions
from shotstream.runtime.wan import WanSizes, memory_plan

CPU = torch.device("cpu")
MakeRuntime = Callable[..., Runtime]


def held(module: torch.nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


@pytest.mark.parametrize(("weights", "dtype"), [("default", torch.float32), ("random", torch.bfloat16)])
def test_the_exact_items_of_tiny_are_what_is_allocated(weights: str, dtype: torch.dtype) -> None:
    plan = tiny_plan(ModelRequest(CPU, dtype, weights))
    with Runtime("tiny", dtype=dtype, weights=weights) as runtime, torch.inference_mode():
        parts = runtime.parts
        codec, text = parts.decoder, parts.text
        assert isinstance(codec, torch.nn.Module)
        assert isinstance(text, torch.nn.Module)
        found = {"transformer": held(parts.transformer), "video codec": held(codec), "text encoder": held(text)}
        found[CACHES] = runtime.take_state().nbytes
        caption = runtime.engine.embed_caption(parts.text.encode(["a red cat"]))
        found[CAPTIONS] = 7 * sum(k.nbytes + v.nbytes for k, v in caption)
        stream = parts.decoder.new_stream(1)
        parts.decoder.decode_chunk(torch.zeros(1, 1, *parts.latent_shape, dtype=dtype), stream)
        kept = [*stream.memory, *([] if stream.shown is None else [stream.shown])]
        found["decoder stream"] = sum(left.nbytes for left in kept)
    assert {item.name: item.nbytes for item in plan.items if item.exact} == found
    assert [item.name for item in plan.items if not item.exact] == ["working space"]


def test_a_long_session_keeps_seven_captions_and_no_more(small_runtime: MakeRuntime) -> None:
    runtime = small_runtime()
    planned = {item.name: item.nbytes for item in session_items(runtime.parts.config, (4, 6), 4)}
    kept = []
    with runtime.open("A story.") as session:
        for number in range(9):
            session.begin_shot(f"Shot {number} of many.", 1)
            session.next_chunk()
            embedded = session._captions._embedded.values()
            kept.append(sum(k.nbytes + v.nbytes for caption in embedded for k, v in caption))
        assert session._state.nbytes == planned[CACHES]
    assert max(kept) == kept[-1] == planned[CAPTIONS]


def test_the_working_space_of_tiny_is_near_what_torch_allocates() -> None:
    """The estimate, against torch's own record of what a later chunk's decoding takes at once."""
    from torch.profiler import ProfilerActivity, profile

    with Runtime("tiny") as runtime, torch.inference_mode():
        latents = torch.zeros(1, 3, *runtime.parts.latent_shape)
        stream = runtime.parts.decoder.new_stream(1)
        runtime.parts.decoder.decode_chunk(latents, stream)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            runtime.parts.decoder.decode_chunk(latents, stream)
    events = record.profiler.kineto_results.events()
    taken = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        taken += event.nbytes()
        peak = max(peak, taken)
    assert tiny_plan(ModelRequest(CPU, torch.float32)).item("working space") == pytest.approx(peak, rel=0.15)


def test_the_real_models_plan_says_which_items_are_estimates() -> None:
    plan = wan_plan(ModelRequest(CPU, torch.bfloat16, "random"))
    assert plan.total == memory_plan(WanSizes(), torch.bfloat16, text_on_device=False).total
    assert {item.name for item in plan.items if not item.exact} == {"decoder stream", "working space"}
    assert plan.item("transformer") == 2 * 1_418_996_800
    assert plan.item("text encoder") == 0
    real = wan_plan(ModelRequest(torch.device("cuda"), torch.bfloat16, "/weights"))
    assert real.item("text encoder") > 11e9
    aside = wan_plan(ModelRequest(torch.device("cuda"), torch.bfloat16, "/weights", options={"text_device": "cpu"}))
    assert aside.item("text encoder") == 0


def test_a_model_of_another_plugin_has_no_plan() -> None:
    assert plan_for("small", ModelRequest(CPU, torch.float32)) is None
    assert watch_memory("small", RuntimeOptions(plugins=())).plan is None


def test_the_plan_is_of_the_decoder_that_was_asked_for() -> None:
    own, exchanged = (
        watch_memory("wan-1.3b", RuntimeOptions(weights="random", dtype=torch.bfloat16, decoder=decoder)).plan
        for decoder in (None, "taehv")
    )
    assert own is not None
    assert exchanged is not None
    assert exchanged.item("video codec") < own.item("video codec") / 5
    assert [item.name for item in exchanged.items if not item.exact] == ["working space"]
    assert watch_memory("tiny", RuntimeOptions(decoder="tiny-vae")).plan is not None
    assert watch_memory("tiny", RuntimeOptions(decoder="taehv")).plan is None


def test_weights_that_cannot_be_read_are_refused_by_the_plan(tmp_path: Path) -> None:
    (tmp_path / "dit.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(UserError, match=r"dit\.safetensors is not a readable safetensors file"):
        tiny_plan(ModelRequest(CPU, torch.float32, tmp_path))


def test_the_bench_refuses_the_real_model_on_a_small_machine_before_loading(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 8_000_000_000)
    monkeypatch.setattr("shotstream.runtime.wan.WanPlugin.load", lambda *_: pytest.fail("it was loaded"))
    assert run(["bench", "--model", "wan-1.3b", "--weights", "random"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert re.match(r"error: cpu has 8\.0 GB left, but the model needs [23]\d\.\d GB: key-value caches 15\.5 GB, ", err)


def test_a_plan_that_fits_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan([PlanItem("all", 100), PlanItem("more", 20, exact=False)])
    monkeypatch.setattr(memory, "available_bytes", lambda device: 120)
    check_room(plan, CPU)
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    check_room(plan, CPU)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 119)
    with pytest.raises(UserError, match=r"all 0\.0 MB, more ~0\.0 MB"):
        check_room(plan, CPU)


def test_a_containers_limit_counts_without_its_file_cache(tmp_path: Path) -> None:
    assert left_in_group(tmp_path) is None
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\nfile 200\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert left_in_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert left_in_group(tmp_path) == 450


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_watch_sees_what_was_taken_and_given_back_in_between() -> None:
    watch = MemoryWatch(CPU, Plan([PlanItem("ballast", 200_000_000)]))
    ballast = torch.ones(50_000_000)
    watch.loaded()
    del ballast
    watch.shot_made()
    watch.shot_made()
    found = watch.finish()
    assert found.after_load_mb - found.before_load_mb == pytest.approx(200, abs=20)
    assert found.peak_mb >= found.after_load_mb
    assert found.after_shot_mb[-1] < found.after_load_mb - 150
    assert found.taken_mb == found.peak_mb - found.before_load_mb
    assert found.of_plan == pytest.approx(found.taken_mb / 200)
    assert found.gpu is None


def test_growth_since_the_second_shot_is_said() -> None:
    use = MemoryUse(None, 200.0, 240.0, [250.0, 260.0, *[261.5] * 98], 270.0)
    assert any("262 MB after the last shot, +1.5 MB since shot 2" in line for line in memory_lines(use))


def test_a_watch_on_a_gpu_keeps_loading_and_playing_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls to torch.cuda, played by a stand-in; the real ones are tested with `-m gpu`."""
    card = {"free": 100e6, "now": 0.0, "peak": 0.0}

    def allocate(change: float) -> None:
        card["now"] += change
        card["free"] -= change
        card["peak"] = max(card["peak"], card["now"])

    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (card["free"], 100e6))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: card.update(peak=card["now"]))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: card["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: card["peak"])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: card["peak"] + 1e6)
    watch = MemoryWatch(torch.device("cuda"), Plan([PlanItem("weights", 40_000_000)]))
    allocate(50e6)
    allocate(-20e6)
    watch.loaded()
    allocate(12e6)
    allocate(-12e6)
    watch.shot_made()
    allocate(1e6)
    watch.shot_made()
    found = watch.finish().gpu
    assert found is not None
    assert (found.after_load_mb, found.load_peak_mb, found.peak_mb, found.reserved_peak_mb) == (30.0, 50.0, 42.0, 43.0)
    assert (found.free_before_mb, found.free_after_mb, found.after_shot_mb) == (100.0, 69.0, [30.0, 31.0])
    assert watch.finish().of_plan == pytest.approx(50 / 40)
