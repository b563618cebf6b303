"""The training mathematics: what carries gradient, what is masked, what a batch may not mix, and LoRA."""

from __future__ import annotations

import copy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.state_dicts import detect_layout, merge_lora
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.parity import run_parity
from shotstream.training.method import lora, losses, objectives
from shotstream.training.method.conditioning import Conditioning, route_frames
from shotstream.training.method.draws import TorchDraws
from shotstream.training.method.parity_cases import parity_groups
from shotstream.training.method.rollout import RolloutSettings, self_forcing_rollout, straight_through
from shotstream.training.method.sampling import sample_teacher

CONFIG = DiTConfig(dim=32, heads=2, ffn_dim=48, layers=2, channels=4, text_len=5, text_dim=12, freq_dim=32)
SCHEDULE = NoiseSchedule(8.0)
STEPS = SCHEDULE.warp(CONFIG.nominal_steps)
FRAMES = 6
SUBSET = Path(__file__).parents[1] / "vectors" / "subset.pt"


def make_model(seed: int) -> Transformer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Transformer(CONFIG)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def latents(seed: int, batch: int, frames: int) -> Tensor:
    return torch.randn(batch, frames, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def texts(seed: int, count: int) -> Tensor:
    return torch.randn(count, 5, 12, generator=torch.Generator().manual_seed(seed))


def two_samples() -> list[Conditioning]:
    """A third shot with three captions, and a first shot with two."""
    third = route_frames([0, 0, 0, 1, 1, 1], FRAMES, 2, 3)
    first = route_frames([], FRAMES, 0, 2)
    return [
        Conditioning.batch(latents(1, 1, 6), [texts(1, 3)], [third]),
        Conditioning.batch(latents(2, 1, 6), [texts(2, 2)], [first]),
    ]


def joined() -> Conditioning:
    third = route_frames([0, 0, 0, 1, 1, 1], FRAMES, 2, 3)
    first = route_frames([], FRAMES, 0, 2)
    contexts = torch.cat([latents(1, 1, 6), latents(2, 1, 6)])
    return Conditioning.batch(contexts, [texts(1, 3), texts(2, 2)], [third, first])


class SharedDraws(TorchDraws):
    """Draws for two samples; `sample` picks one of them, None gives both. Equal calls give equal numbers."""

    def __init__(self, sample: int | None) -> None:
        super().__init__()
        self._rows = slice(None) if sample is None else slice(sample, sample + 1)

    def _seeded(self, seed: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randn((2, *shape[1:]), generator=torch.Generator().manual_seed(seed))[self._rows]

    def shot_noise(self, shape: tuple[int, ...]) -> Tensor:
        return self._seeded(11, shape)

    def renoise(self, shape: tuple[int, ...], chunk: int, step: int) -> Tensor:
        return self._seeded(100 + 10 * chunk + step, shape)

    def clean_noise(self, shape: tuple[int, ...], chunk: int) -> Tensor:
        return self._seeded(200 + chunk, shape)

    def target_noise(self, shape: tuple[int, ...]) -> Tensor:
        return self._seeded(12, shape)

    def timestep_index(self, batch: int, entries: int) -> Tensor:
        return torch.tensor([350, 810])[self._rows]

    def exit_step(self, steps: int) -> int:
        return 1

    def block_index(self, batch: int, blocks: int, entries: int) -> Tensor:
        return torch.tensor([[0, 2], [4, 1]])[self._rows]


def gradients(model: Transformer, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(a: Tensor, b: Tensor, bound: float = 2e-5) -> bool:
    return bool((a - b).abs().max() <= bound * b.abs().max().clamp(min=1e-12))


def rollout(model: Transformer, given: Conditioning, settings: RolloutSettings, sample: int | None = 0) -> Tensor:
    return self_forcing_rollout(model, SCHEDULE, STEPS, given, FRAMES, 1, SharedDraws(sample), settings=settings)


def test_the_training_cases_of_the_subset_agree_with_the_reference() -> None:
    report = run_parity(SUBSET, parity_groups(), only="train_")
    assert report.exit_code == 0
    assert report.passed == 3


# ------------------------------------------------------------------------------------------- roll-out
def test_straight_through_reads_the_clean_value_and_differentiates_the_exit() -> None:
    clean, exit_ = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([5.0, 7.0], requires_grad=True)
    out = straight_through(clean, exit_)
    assert torch.allclose(out, clean)
    out.sum().backward()
    assert clean.grad is None
    assert exit_.grad is not None
    assert exit_.grad.tolist() == [1.0, 1.0]


def test_detaching_the_cache_changes_gradients_and_nothing_else() -> None:
    model, given = make_model(0), two_samples()[0]
    through = rollout(model, given, RolloutSettings())
    detached = rollout(model, given, RolloutSettings(detach_cache=True))
    assert torch.allclose(through, detached, atol=1e-5)
    # Only the second chunk reads the cache, so only its loss tells the two apart.
    with_cache = gradients(model, through[:, 3:].square().sum())
    without = gradients(model, detached[:, 3:].square().sum())
    key = "blocks.0.self_attn.k.weight"
    assert (with_cache[key] - without[key]).norm() > 0.01 * with_cache[key].norm()
    assert close(with_cache["head.head.weight"], without["head.head.weight"])


def test_the_first_chunk_does_not_care_how_the_cache_is_kept() -> None:
    model, given = make_model(0), two_samples()[0]
    through = gradients(model, rollout(model, given, RolloutSettings())[:, :3].square().sum())
    detached = gradients(model, rollout(model, given, RolloutSettings(detach_cache=True))[:, :3].square().sum())
    assert all(close(through[key], detached[key]) for key in through)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model, given = make_model(0), two_samples()[0]
    plain = gradients(model, rollout(model, given, RolloutSettings()).square().sum())
    model.gradient_checkpointing = True
    recomputed = gradients(model, rollout(model, given, RolloutSettings()).square().sum())
    assert all(close(recomputed[key], plain[key]) for key in plain)


def test_the_clean_pass_reads_slightly_noised_latents_in_training() -> None:
    model, given = make_model(0), two_samples()[0]
    noised = rollout(model, given, RolloutSettings())
    bare = rollout(model, given, RolloutSettings(renoise_clean=False))
    assert torch.equal(noised[:, :3], bare[:, :3])
    assert not torch.equal(noised[:, 3:], bare[:, 3:])


def test_rounded_timesteps_are_a_switch() -> None:
    model, given = make_model(0), two_samples()[0]
    assert not torch.equal(
        rollout(model, given, RolloutSettings()), rollout(model, given, RolloutSettings(round_timesteps=True))
    )


def test_a_rollout_refuses_part_chunks_and_unknown_exits() -> None:
    model, given = make_model(0), two_samples()[0]
    for frames, exit_step in ((5, 0), (6, 4)):
        with pytest.raises(ValueError, match=str(frames if frames == 5 else exit_step)):
            self_forcing_rollout(model, SCHEDULE, STEPS, given, frames, exit_step, SharedDraws(0))


# ------------------------------------------------------------------------------------------- batches
def test_a_batch_equals_its_samples_one_by_one() -> None:
    model, real, fake, negative = make_model(0), make_model(1), make_model(2), texts(9, 1)

    def generator(given: Conditioning, sample: int | None) -> Tensor:
        draws = SharedDraws(sample)
        return objectives.dmd_generator_loss(model, real, fake, SCHEDULE, STEPS, given, negative, FRAMES, draws).loss

    def critic(given: Conditioning, sample: int | None) -> Tensor:
        return objectives.dmd_critic_loss(real, model, SCHEDULE, STEPS, given, FRAMES, SharedDraws(sample)).loss

    def teacher(given: Conditioning, sample: int | None) -> Tensor:
        x0 = latents(5, 2, FRAMES)[slice(None) if sample is None else slice(sample, sample + 1)]
        return objectives.teacher_loss(model, SCHEDULE, x0, given, SharedDraws(sample))

    for loss in (generator, critic, teacher):
        together = gradients(model, loss(joined(), None))
        apart = [gradients(model, loss(given, i)) for i, given in enumerate(two_samples())]
        for key in together:
            assert close(together[key], (apart[0][key] + apart[1][key]) / 2, 1e-4), (loss.__name__, key)


def test_the_dmd_normaliser_belongs_to_a_sample() -> None:
    x, fake, real = latents(1, 2, 3), latents(2, 2, 3), latents(3, 2, 3)
    both = losses.dmd_gradient(x, fake, real)
    for i in range(2):
        assert torch.allclose(both[i : i + 1], losses.dmd_gradient(x[i : i + 1], fake[i : i + 1], real[i : i + 1]))


def test_a_sample_that_equals_its_score_gives_no_gradient_and_no_nan() -> None:
    x = latents(1, 1, 3)
    assert torch.equal(losses.dmd_gradient(x, x, x), torch.zeros_like(x))


def test_the_dmd_loss_has_the_wanted_gradient() -> None:
    x, g = latents(1, 1, 3).requires_grad_(), latents(2, 1, 3)
    losses.dmd_generator_loss(x, g).backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, g / x.numel())


def test_guidance_of_the_scores_counts_from_the_conditional_side() -> None:
    assert losses.guided(torch.tensor(2.0), torch.tensor(1.0), 3.0) == 5.0  # the usual weight would be 4


# ------------------------------------------------------------------------------------------- ODE regression
def ode_case(sample: int) -> tuple[Transformer, Tensor, Conditioning]:
    return make_model(0), latents(7, 5, FRAMES)[None], two_samples()[sample]


def test_blocks_at_the_clean_end_give_no_loss() -> None:
    model, states, given = ode_case(1)
    steps = torch.cat([STEPS, STEPS.new_zeros(1)])
    result = objectives.ode_loss(model, SCHEDULE, states, steps, given, SharedDraws(1))
    x0, target = latents(3, 1, 6), latents(4, 1, 6)
    t_BF = torch.tensor([[0.0, 0.0, 0.0, 958.0, 958.0, 958.0]])
    assert torch.isfinite(result.loss)
    assert torch.allclose(losses.ode_regression_loss(x0, target, t_BF).loss, (x0 - target)[:, 3:].square().mean())


def test_a_draw_without_a_noisy_block_is_zero_by_default_and_nan_on_request() -> None:
    x0, target, t_BF = latents(3, 1, 6).requires_grad_(), latents(4, 1, 6), torch.zeros(1, 6)
    loss = losses.ode_regression_loss(x0, target, t_BF).loss
    loss.backward()
    assert loss.item() == 0
    assert x0.grad is not None
    assert torch.isfinite(x0.grad).all()
    assert torch.isnan(losses.ode_regression_loss(x0, target, t_BF, reference_nan=True).loss)


def test_the_mask_lets_a_block_see_context_and_past_only() -> None:
    mask = objectives.block_causal_mask(2, 6, 3, 2, torch.device("cpu"))
    by_frame = mask[::2, ::2]
    assert by_frame[:2, :2].all()
    assert not by_frame[:2, 2:].any()
    assert by_frame[2:5, :5].all()
    assert not by_frame[2:5, 5:].any()
    assert by_frame[5:].all()


def test_a_masked_pass_does_not_look_ahead() -> None:
    model, given = make_model(0), two_samples()[0]
    mask = objectives.block_causal_mask(6, FRAMES, 3, CONFIG.tokens_per_frame(4, 4), torch.device("cpu"))
    z, t_BF = latents(8, 1, 12), torch.full((1, 12), 500.0)
    other = z.clone()
    other[:, 9:] += 1
    with torch.no_grad():
        a, b = (objectives.whole_sequence_flow(model, x, t_BF, given, mask) for x in (z, other))
    assert torch.allclose(a[:, :9], b[:, :9], atol=1e-5)
    assert not torch.allclose(a[:, 9:], b[:, 9:], atol=1e-3)


# ------------------------------------------------------------------------------------------- captions and flags
def test_a_shot_without_context_reads_its_own_caption() -> None:
    fixed = route_frames([], 3, 0, 5)
    assert fixed.flags == (0,) * 6 + (1,) * 3
    assert set(fixed.captions) == {0}
    dropped = route_frames([0, 1, 2, 2, 3, 3], 3, 4, 5, context_dropped=True)
    assert dropped.flags == fixed.flags
    assert set(dropped.captions) == {4}


def test_the_references_caption_bug_can_be_had() -> None:
    assert route_frames([], 3, 0, 5, reference_caption_bug=True).captions == (0,) * 6 + (1,) * 3
    dropped = route_frames([0] * 6, 3, 4, 5, context_dropped=True, reference_caption_bug=True)
    assert dropped.captions[-1] == 1


def test_context_frames_read_the_caption_of_their_own_shot() -> None:
    routing = route_frames([0, 1, 2, 2, 3, 3], 2, 4, 5)
    assert routing.captions == routing.flags == (0, 1, 2, 2, 3, 3, 4, 4)


# ------------------------------------------------------------------------------------------- teacher sampler
def test_guidance_of_one_is_the_conditional_flow() -> None:
    model, given, noise = make_model(0), two_samples()[0], latents(6, 1, 3)
    plain = sample_teacher(model, SCHEDULE, noise, given, None, steps=3)
    guided = sample_teacher(model, SCHEDULE, noise, given, texts(9, 1), steps=3, guidance=1.0)
    strong = sample_teacher(model, SCHEDULE, noise, given, texts(9, 1), steps=3, guidance=6.0, save=[0, 2])
    assert torch.equal(plain.x0_BFCHW, guided.x0_BFCHW)
    assert not torch.equal(plain.x0_BFCHW, strong.x0_BFCHW)
    assert torch.equal(strong.states[0], noise)
    assert sorted(strong.states) == [0, 2]


# ------------------------------------------------------------------------------------------- LoRA
pytest_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")


def adapted(model: Transformer) -> Transformer:
    changed = copy.deepcopy(model)
    for parameter in lora.inject_lora(changed, rank=2, alpha=4.0):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.1
    return changed


def flow(model: Transformer) -> Tensor:
    with torch.no_grad():
        t_B = torch.tensor([600.0])
        return objectives.target_flow(model, latents(6, 1, FRAMES), t_B, two_samples()[0])


@pytest_peft
def test_fresh_adapters_change_nothing_and_are_all_that_trains() -> None:
    model = make_model(0)
    before = flow(model)
    trained = lora.inject_lora(model, rank=2)
    assert torch.equal(flow(model), before)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained}
    assert len(trained) == 2 * 10 * CONFIG.layers
    with pytest.raises(UserError, match="already carries"):
        lora.inject_lora(model, rank=2)


@pytest_peft
def test_merged_weights_play_like_the_adapted_model() -> None:
    base = make_model(0)
    model = adapted(base)
    with_adapters = flow(model)
    by_file, by_state = make_model(0), make_model(0)
    by_file.load_state_dict(merge_lora(base.state_dict(), lora.lora_state_dict(model), 2.0))
    by_state.load_state_dict(lora.merged_state(model.state_dict(), 2.0))
    assert close(flow(by_file), with_adapters)
    assert close(flow(by_state), with_adapters)
    assert not close(flow(base), with_adapters, 1e-3)
    assert lora.merged_state(base.state_dict()).keys() == base.state_dict().keys()


@pytest_peft
def test_adapters_survive_saving_and_loading() -> None:
    model = adapted(make_model(0))
    other = make_model(0)
    lora.inject_lora(other, rank=2, alpha=4.0)
    lora.load_lora(other, lora.lora_state_dict(model))
    assert torch.equal(flow(other), flow(model))


@pytest_peft
def test_adapters_that_do_not_fit_are_named() -> None:
    model, found = adapted(make_model(0)), lora.lora_state_dict(adapted(make_model(0)))
    first = next(iter(found))
    for wrong, words in (
        ({k: v for k, v in found.items() if k != first}, "missing from"),
        (found | {"x": found[first]}, "unknown in"),
        (found | {first: found[first][:1]}, "expected"),
    ):
        with pytest.raises(UserError, match=words):
            lora.load_lora(model, wrong)


@pytest_peft
def test_adapter_names_are_the_references() -> None:
    names = lora.lora_state_dict(adapted(make_model(0)))
    assert "base_model.model.blocks.0.self_attn.q.lora_A.weight" in names
    assert "base_model.model.blocks.1.ffn.2.lora_B.weight" in names
    assert detect_layout(names) == "lora"


def test_the_subset_is_cut_without_recomputing_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SUBSET.parent))
    from cut import cut  # type: ignore[import-not-found]

    cut(SUBSET, tmp_path / "again.pt")
    sys.modules.pop("cut")
    again, subset = (torch.load(path, weights_only=True) for path in (tmp_path / "again.pt", SUBSET))
    assert again.keys() == subset.keys()
    assert torch.equal(again["student_A"]["output"], subset["student_A"]["output"])
