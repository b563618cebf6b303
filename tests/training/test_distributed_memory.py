"""What a step costs: operations against torch's own counter, memory against what autograd keeps, plans of recipes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distributed_jobs import place
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from shotstream.runtime.config import TINY, WAN_1_3B, DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.attention import matmul_softmax, sdpa
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.data.prepared import DatasetInfo, claim
from shotstream.training.data.teacher_data import Phase
from shotstream.training.distributed.flops import Geometry, Pass, caption_flop, pass_flop, step_work
from shotstream.training.distributed.launch import ALONE, Team
from shotstream.training.distributed.memory import (
    Network,
    adapter_parameters,
    available,
    estimate,
    parameters,
)
from shotstream.training.distributed.scale import Scale
from shotstream.training.distributed.throughput import peak_tflops
from shotstream.training.method.conditioning import Conditioning, route_frames
from shotstream.training.method.draws import TorchDraws
from shotstream.training.method.rollout import self_forcing_rollout
from shotstream.training.plan import check_memory, explain_plans, plan_stage
from shotstream.training.recipe import load_recipe

CONFIG = DiTConfig(dim=64, heads=2, ffn_dim=192, layers=3, channels=4, text_len=16, text_dim=32, freq_dim=32)
PER_FRAME = 16  # of 8 x 8 latents


def run(config: DiTConfig, frames: int, scale: Scale, gradient: bool) -> tuple[float, float]:
    """Operations and kept bytes of one pass under one caption."""
    torch.manual_seed(0)
    model = place(Transformer(config, matmul_softmax if gradient else sdpa), ALONE, scale)
    z, text = torch.randn(1, frames, 4, 8, 8), torch.randn(1, 16, 32)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        with scale.autocast(torch.device("cpu")):
            positions = torch.arange(frames)[None]
            flow = model(z, torch.full((1, frames), 500.0), model.embed_captions(text), None, positions, None)
        if gradient:
            flow.sum().backward()
    return counter.get_total_flops(), sum(x.untyped_storage().nbytes() for x in kept.values())


def test_operations_are_those_that_torch_counts() -> None:
    sample = Geometry(CONFIG, PER_FRAME, 2, 4)
    counted, _ = run(CONFIG, 6, Scale("float32"), gradient=True)
    work = step_work(sample, [sample.everything(trained=True)], 1, trained_share=1.0)
    assert work.tokens == 96
    assert work.flop == pytest.approx(counted, rel=0.02)


def test_a_roll_out_costs_its_passes() -> None:
    config = replace(CONFIG, layers=12)
    model = Transformer(config, matmul_softmax)
    routing = route_frames([0] * 6, 6, 1, 2)
    given = Conditioning.batch(torch.randn(1, 6, 4, 8, 8), [torch.randn(2, 16, 32)], [routing])
    schedule = NoiseSchedule(8.0)
    counted = []
    for exit_step in (1, 2):  # the expected number of steps before the exit is the mean of these
        with FlopCounterMode(display=False) as counter:
            steps, draws = schedule.warp(config.nominal_steps), TorchDraws()
            self_forcing_rollout(model, schedule, steps, given, 6, exit_step, draws, with_gradient=False)
        counted.append(counter.get_total_flops())
    passes = Geometry(config, PER_FRAME, 6, 6).rollout(trained=False)
    expected = sum(one.times * pass_flop(config, one) for one in passes) + 2 * caption_flop(config)
    assert sum(counted) / 2 == pytest.approx(expected, rel=0.03)  # passes for keys alone leave out the last block


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["float32", "autocast"])
def test_activations_are_estimated_within_a_quarter(precision: str, checkpointing: bool) -> None:
    scale = Scale(precision, checkpointing=checkpointing)
    config = DiTConfig(dim=128, heads=2, ffn_dim=512, layers=8, channels=4, text_len=16, text_dim=32, freq_dim=32)
    _, kept = run(config, 24, scale, gradient=False)
    one = Pass(24 * PER_FRAME, 24 * PER_FRAME, 0, trained=True)
    found = {need.what: need.bytes for need in estimate([Network("m", config, 1)], [one], 1, scale, 1, "cuda")}
    if checkpointing:  # the block that is being computed again comes on top
        full = estimate([Network("m", config, 1)], [one], 1, Scale(precision), 1, "cuda")
        found["activations"] -= next(need.bytes for need in full if need.what == "activations") / config.layers
    rounded = found["weights in bfloat16"] if precision == "autocast" and not checkpointing else 0
    assert found["activations"] + rounded == pytest.approx(kept, rel=0.25)


def test_weights_shrink_with_processes_and_activations_do_not() -> None:
    networks = [Network("generator", TINY, parameters(TINY), ema=True), Network("teacher", TINY, 0)]
    passes = Geometry(TINY, 40, 6, 9).generator()
    one, four = (
        {need.what: need for need in estimate(networks, passes, 2, Scale("autocast"), size, "cpu")} for size in (1, 4)
    )
    for part in ("weights", "gradients", "optimizer", "average"):
        assert four[f"generator: {part}"].bytes == one[f"generator: {part}"].bytes / 4
        assert four[f"generator: {part}"].sharded
    assert four["activations"].bytes == one["activations"].bytes
    assert "gathered blocks" in four
    assert "teacher: gradients" not in one


def test_a_regression_keeps_the_blocks_that_its_backward_pass_has_gathered() -> None:
    networks, passes = [Network("model", TINY, parameters(TINY))], Geometry(TINY, 40, 6, 9).ode(clean_history=True)
    two, all_of_them = (
        {
            need.what: need.bytes
            for need in estimate(networks, passes, 2, Scale("autocast"), 2, "cpu", regression=regression)
        }
        for regression in (False, True)
    )
    block = 4 * parameters(TINY, "blocks.0.")
    assert all_of_them["gathered blocks"] - two["gathered blocks"] == (TINY.layers - 2) * block
    assert not any("roll-out" in what for what in all_of_them)


def test_sizes_of_the_real_model_are_those_of_its_paper() -> None:
    assert parameters(WAN_1_3B) == 1_418_996_800
    assert parameters(WAN_1_3B, "self_attn") == 283_392_000
    assert adapter_parameters(WAN_1_3B, 256) == 349_962_240
    chunk = Pass(4680, 14040, 4680 * 14040)
    assert pass_flop(WAN_1_3B, chunk) == pytest.approx(24.27e12, rel=0.01)


def test_a_plan_says_how_a_batch_is_made_up() -> None:
    told = explain_plans(load_recipe("wan-1.3b"), ("teacher", "intra"), Team(size=8, device=torch.device("cuda")))
    assert "batch 64 = 8 processes x 8 rounds x 1 samples" in told
    assert all(line.startswith("# ") for line in told.splitlines())
    with pytest.raises(UserError, match="does not split evenly over 7"):
        explain_plans(load_recipe("wan-1.3b"), ("teacher",), Team(size=7))
    tiny = load_recipe("tiny")
    assert tiny.coupled is not None
    broken = replace(tiny, coupled=replace(tiny.coupled, phases=(Phase(1, 1, 4, 6),)))
    with pytest.raises(UserError, match="has frames: 4, and the student makes 3 at a time"):
        explain_plans(broken, ("coupled",), ALONE)


def test_what_cannot_fit_is_refused_before_it_starts() -> None:
    recipe = load_recipe("wan-1.3b")
    plan = plan_stage("intra", recipe, ALONE)
    huge = replace(plan, needs=tuple(replace(need, bytes=need.bytes * 1e4) for need in plan.needs))
    with pytest.raises(UserError, match=r"stage intra needs about \d+\.\d GB in each of 1 .* set micro_batch: 1"):
        check_memory(huge, ALONE)
    check_memory(replace(plan, needs=plan.needs[:1]), Team(device=torch.device("cpu"), neighbours=1))
    assert 1e6 < available(torch.device("cpu"), 2) < available(torch.device("cpu"), 1)
    assert peak_tflops(torch.device("cpu")) is None


def test_the_latents_of_prepared_videos_decide_their_plan(tmp_path: Path) -> None:
    recipe = replace(load_recipe("wan-1.3b"), videos=str(tmp_path))
    assert plan_stage("ode", recipe, ALONE).steps[0].work.tokens == 64 * 27 * 1560
    (tmp_path / "stories").mkdir()
    claim(tmp_path, DatasetInfo("wan-1.3b", {}, (16, 8, 12), (512, 4096), 16, 81, 6, "model", "stretch"))
    assert plan_stage("ode", recipe, ALONE).steps[0].work.tokens == 64 * 27 * 24
