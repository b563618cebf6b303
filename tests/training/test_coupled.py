"""Regression from noise that knows its answer: what the network is shown, and what it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed_jobs import ALONE, Stories, make_stage
from torch import Tensor

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.cache import RecordingKeys
from shotstream.runtime.model.rollout import ShotConditions, chunk_pass
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.data.teacher_data import Phase, batch_of, draw_sample
from shotstream.training.method import coupled
from shotstream.training.method.clean_history import History, behind, behind_clean_history
from shotstream.training.method.conditioning import Conditioning
from shotstream.training.method.coupled import chosen_offset, coupled_loss
from shotstream.training.method.draws import TorchDraws
from shotstream.training.recipe import Recipe
from shotstream.training.stages import coupled as stage_module
from shotstream.training.stages.coupled import SUBJECTS, USUAL_SHARE, CoupledRecipe, subjects_of
from shotstream.training.stages.teacher import compile_blocks
from shotstream.training.world.parts import PARTS

CONFIG = DiTConfig(
    dim=32, heads=2, ffn_dim=48, layers=2, channels=4, text_len=6, text_dim=16, shift=3.0, noise_offset=0.5
)
SCHEDULE = NoiseSchedule(CONFIG.shift)
STEPS = SCHEDULE.warp(CONFIG.nominal_steps)
NAN = float("nan")


class Watched(TorchDraws):
    """Draws levels and exits as told."""

    def __init__(self, levels: list[int], exit_step: int = 0) -> None:
        super().__init__(torch.Generator().manual_seed(3))
        self.levels, self.exit = levels, exit_step

    def block_index(self, batch: int, blocks: int, entries: int) -> Tensor:
        assert (blocks, entries) == (len(self.levels), len(STEPS) + 1)
        return torch.tensor([self.levels] * batch)

    def exit_step(self, steps: int) -> int:
        assert steps == len(STEPS)
        return self.exit


def case(frames: int) -> tuple[Transformer, Tensor, Conditioning]:
    torch.manual_seed(0)
    flags = torch.tensor([[0, 0, 1, 1, 2, 2, *[3] * frames]])
    given = Conditioning(torch.randn(1, 6, 4, 4, 4), torch.randn(4, 6, 16), flags, flags.clone())
    return Transformer(CONFIG), torch.randn(1, frames, 4, 4, 4), given


def shown(
    monkeypatch: pytest.MonkeyPatch, draws: Watched, frames: int, *, played: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Noisy input and timesteps of every pass."""
    seen: list[tuple[Tensor, Tensor]] = []

    def noted(model: Transformer, schedule: NoiseSchedule, noisy: Tensor, t: Tensor, history: History) -> Tensor:
        seen.append((noisy.detach(), t))
        return behind(model, schedule, noisy, t, history)

    monkeypatch.setattr(coupled, "behind", noted)
    model, clip, given = case(frames)
    numbers, weight = torch.tensor([[5.0, NAN, -5.0]]), torch.ones(1, frames, 1, 4, 4)
    coupled_loss(model, SCHEDULE, clip, STEPS, given, numbers, weight, draws, motion_weight=1.0, played=played)
    return seen


def test_choices_take_the_first_numbers_of_an_offset_channel_by_channel() -> None:
    free = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    offset = chosen_offset(free, torch.tensor([[7.0, NAN, 8.0, 9.0], [NAN] * 4]))
    assert torch.equal(offset[1], free[1])
    changed = free[0].clone()
    changed[0, 0, 0], changed[2, 0, 0], changed[0, 0, 1] = 7, 8, 9
    assert torch.equal(offset[0], changed)


def test_more_choices_than_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="13 choices do not fit into an offset of 12 signs"):
        chosen_offset(torch.zeros(1, 3, 2, 2), torch.zeros(1, 13))


def test_every_patch_of_every_frame_shows_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    ((noisy, t),) = shown(monkeypatch, Watched([0, 1]), 6)
    assert t.tolist() == [[1000.0] * 6], "levels 0 and 1 of one more than there are: pure noise twice as often"
    places = noisy[0, :, :, ::2, ::2].mean(dim=(0, 2, 3))  # the first place of a patch, by channel
    assert places[0] == pytest.approx(5 * 0.5**0.5, abs=0.5)
    assert places[2] == pytest.approx(-5 * 0.5**0.5, abs=0.5)
    rest = noisy - noisy.unflatten(3, (2, 2)).unflatten(5, (2, 2)).mean((1, 3, 5)).tile(1, 1, 2, 2)[:, None]
    assert float(rest.std()) == pytest.approx(0.5**0.5, abs=0.1)


def test_levels_are_the_students_and_noise_is_mixed_with_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    ((noisy, t),) = shown(monkeypatch, Watched([4, 2]), 6)
    assert t[0].tolist() == [STEPS[3].item()] * 3 + [STEPS[1].item()] * 3
    _, clip, _ = case(6)
    sigma = SCHEDULE.sigma_of(t)[0]
    start = (noisy[0] - (1 - sigma)[:, None, None, None] * clip[0]) / sigma[:, None, None, None]
    assert float(start[:, 0, ::2, ::2].mean()) == pytest.approx(5 * 0.5**0.5, abs=0.5)


def test_a_played_input_is_what_the_student_made_of_pure_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = shown(monkeypatch, Watched([], exit_step=2), 3, played=True)
    assert [t[0, 0].item() for _, t in seen] == STEPS[:3].tolist()
    model, clip, given = case(3)
    with torch.no_grad():
        made = behind_clean_history(model, SCHEDULE, *seen[0], clip, given, TorchDraws())
    sigma = SCHEDULE.sigma_of(seen[1][1])[0, 0]
    fresh = (seen[1][0] - (1 - sigma) * made) / sigma
    assert float(fresh[0, :, 0, ::2, ::2].mean()) == pytest.approx(5 * 0.5**0.5, abs=0.6), "the same choices again"
    assert float((fresh - seen[0][0]).std()) == pytest.approx(1, abs=0.2), "and otherwise fresh noise"


def test_only_the_last_of_the_played_steps_has_a_gradient() -> None:
    model, clip, given = case(3)
    weight, numbers = torch.ones(1, 3, 1, 4, 4), torch.zeros(1, 0)
    loss = coupled_loss(
        model, SCHEDULE, clip, STEPS, given, numbers, weight, Watched([], 3), motion_weight=0.0, played=True
    ).loss  # fmt: skip
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_weights_count_cells_and_motion_counts_change() -> None:
    model, clip, given = case(3)

    def found(weight: Tensor, motion_weight: float) -> tuple[float, float, float]:
        loss = coupled_loss(
            model, SCHEDULE, clip, STEPS, given, torch.zeros(1, 0), weight, Watched([0]),
            motion_weight=motion_weight, played=False,
        )  # fmt: skip
        return loss.loss.item(), loss.picture.item(), loss.motion.item()

    ones = torch.ones(1, 3, 1, 4, 4)
    loss, picture, motion = found(ones, 0.0)
    assert loss == pytest.approx(picture)
    assert 0 < motion < picture
    assert found(ones, 2.0)[0] == pytest.approx(picture + 2 * motion)
    assert found(3 * ones, 2.0)[0] == pytest.approx(3 * (picture + 2 * motion))
    half = ones.clone()
    half[..., 2:, :] = 0
    counted = found(half, 0.0)
    assert counted[0] < 0.8 * picture
    assert counted[1] == pytest.approx(2 * counted[0]), "what has no weight is in no figure"


def test_of_several_pictures_the_likeliest_is_drawn_with_huber_and_their_mean_without() -> None:
    likely, other = torch.zeros(1, 3, 4, 2, 2), torch.ones(1, 3, 4, 2, 2)
    shares = [i / 20 for i in range(21)]

    def best(huber: float) -> float:
        def cost(share: float) -> float:
            drawn = share * other
            return sum(
                float(coupled._counted((drawn - true).square(), huber).mean()) for true in (likely, likely, other)
            )

        return min(shares, key=cost)

    assert best(0.0) == pytest.approx(1 / 3, abs=0.05)
    assert best(0.01) == 0


def test_with_huber_a_cell_counts_by_the_length_of_its_error_and_change_as_before() -> None:
    model, clip, given = case(3)
    weight, numbers = torch.rand(1, 3, 1, 4, 4), torch.zeros(1, 0)
    with_change, without = (
        coupled_loss(
            model, SCHEDULE, clip, STEPS, given, numbers, weight, Watched([0]), motion_weight=m, played=False, huber=0.2
        ).loss
        for m in (2.0, 0.0)
    )
    plain, still = (
        coupled_loss(
            model, SCHEDULE, clip, STEPS, given, numbers, weight, Watched([0]), motion_weight=m, played=False
        ).loss
        for m in (2.0, 0.0)
    )
    assert (with_change - without).item() == pytest.approx((plain - still).item(), rel=1e-4)
    square = torch.full((1, 3, 4, 4, 4), 0.3) ** 2
    assert coupled._counted(square, 0.4).shape == (1, 3, 1, 4, 4)
    assert torch.allclose(coupled._counted(square, 0.4), torch.tensor(0.1))


def test_a_single_picture_sits_at_its_own_place_in_time() -> None:
    model, clip, given = case(1)
    few = replace(
        given, context_BFCHW=given.context_BFCHW[:, [1, 4]], flags_BF=torch.tensor([[0, 2, 3]]),
        caption_index_BF=torch.tensor([[0, 2, 3]]),
    )  # fmt: skip
    made = []
    for positions in ([1, 4, 6], [0, 1, 2]):
        placed = replace(few, positions_BF=torch.tensor([positions]))
        t = STEPS[:1].expand(1, 1)
        made.append(behind_clean_history(model, SCHEDULE, clip, t, clip, placed, TorchDraws()))
    assert made[0].shape == clip.shape
    assert not torch.allclose(*made, atol=1e-4)
    plain = behind_clean_history(model, SCHEDULE, clip, t, clip, few, TorchDraws())
    assert torch.equal(made[1], plain)


@pytest.mark.parametrize("changes", [{"offset": 0.0}, {"offset": 1.5}, {"phases": ()}], ids=str)
def test_a_recipe_without_an_offset_or_phases_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UserError, match="at least one phase and an offset above 0"):
        CoupledRecipe(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes", [{"played": 1.5}, {"steered": -0.1}, {"still": 0.0}, {"huber": -1.0}, {"perceptual": -1.0}], ids=str
)
def test_shares_beyond_one_and_lengths_below_zero_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"shares from 0 to 1.* huber and perceptual are 0 or more"):
        CoupledRecipe(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("frames", [0, 2, 4])
def test_a_phase_of_broken_chunks_is_refused(tmp_path: Path, frames: int) -> None:
    with pytest.raises(UserError, match=f"has frames: {frames}, and the student makes 3 at a time; use 1 or a multi"):
        make_stage("coupled", tmp_path, ALONE, phases=(Phase(1, 1, 3, 6), Phase(1, 1, frames, 6)))


def test_only_passes_whose_lengths_stay_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[bool] = []

    def pretended(plain: Callable[..., Tensor], dynamic: bool) -> Callable[..., Tensor]:
        def quick(*given: Any) -> Tensor:
            compiled.append(True)
            return plain(*given)

        return quick

    plain, clip, given = case(3)
    whole = [behind_clean_history(plain, SCHEDULE, clip, STEPS[:1].expand(1, 3), clip, given, TorchDraws())]
    monkeypatch.setattr(torch, "compile", pretended)
    compile_blocks(plain)
    whole.append(behind_clean_history(plain, SCHEDULE, clip, STEPS[:1].expand(1, 3), clip, given, TorchDraws()))
    assert torch.equal(*whole)
    assert len(compiled) == 2 * CONFIG.layers, "history and noisy blocks"
    conditions = ShotConditions(plain.embed_captions(given.captions_NLD[:1]), None, None, None, None)
    chunk_pass(plain, clip, STEPS[0], 0, conditions, RecordingKeys())
    assert len(compiled) == 2 * CONFIG.layers


def test_videos_do_not_tell_what_they_leave_open() -> None:
    with pytest.raises(UserError, match="leave both out"):
        Recipe(name="films", source="videos", coupled=CoupledRecipe())


def test_a_single_picture_with_choices_is_any_latent_of_the_first_chunk_at_its_own_time() -> None:
    stories, rng = Stories(), np.random.default_rng(1)
    drawing, phase = CoupledRecipe().drawing, Phase(1, 1, 1, 2)
    clips = {
        stories.clip(story, shot, 6)[latent].sum().item(): latent
        for story in range(len(stories)) for shot in range(stories.shots(story)) for latent in range(6)
    }  # fmt: skip
    seen = set()
    for _ in range(40):
        sample = draw_sample([stories], drawing, phase, rng, CONFIG)
        latent = clips[sample.target.sum().item()]
        assert sample.positions[-1] == CONFIG.context_frames + latent
        assert sample.choices is not None
        assert len(sample.routing.flags) == len(sample.positions) == 3
        seen.add(latent)
    assert seen == {0, 1, 2}


def test_a_steered_sample_shows_another_shot_until_its_caption_comes() -> None:
    stories, rng, begun = Stories(), np.random.default_rng(2), set()
    drawing = CoupledRecipe(steered=1.0).drawing
    clips = {(s, k): stories.clip(s, k, 6) for s in range(len(stories)) for k in range(stories.shots(s))}
    samples = [draw_sample([stories], drawing, Phase(1, 1, 6, 6), rng, CONFIG) for _ in range(12)]
    for sample in samples:
        story, shot = (int(n) for n in sample.captions[-1].split())
        before = [s for s in range(stories.shots(story)) if torch.equal(clips[story, s][:3], sample.target[:3])]
        assert before
        assert before != [shot]
        assert torch.equal(sample.target[3:], clips[story, shot][3:])
        begun.add(sample.begins)
    assert begun == {3}
    assert torch.equal(batch_of(samples).asked, torch.tensor([[0.0, 0, 0, 1, 1, 1]] * 12))
    plain = draw_sample([stories], CoupledRecipe(steered=1.0).drawing, Phase(1, 1, 3, 6), rng, CONFIG)
    assert plain.begins == 0, "a single chunk has nothing before it"


def test_a_story_of_one_shot_is_not_steered() -> None:
    class Single(Stories):
        def shots(self, story: int) -> int:
            return 1

    drawing = CoupledRecipe(steered=1.0, first_shot=1.0).drawing
    sample = draw_sample([Single()], drawing, Phase(1, 1, 6, 6), np.random.default_rng(0), CONFIG)
    assert sample.begins == 0
    assert batch_of([sample]).asked.all()


def test_fewer_shots_with_a_still_camera_are_taken() -> None:
    def moving(still: float) -> float:
        drawing, rng = CoupledRecipe(still=still).drawing, np.random.default_rng(3)
        drawn = (draw_sample([stories], drawing, Phase(1, 1, 3, 6), rng, CONFIG) for _ in range(300))
        return sum(stories.camera_moves(*map(int, sample.captions[-1].split())) for sample in drawn) / 300

    stories = Stories()
    usual = moving(1.0)
    assert moving(0.25) == pytest.approx(usual / (usual + 0.25 * (1 - usual)), abs=0.07)
    assert usual < moving(0.25) - 0.15


def weights_of(monkeypatch: pytest.MonkeyPatch, stage: Any) -> Tensor:
    """How much the cells of a step's batch count."""
    weights: list[Tensor] = []

    def noted(model: Any, schedule: Any, clip: Any, steps: Any, given: Any, numbers: Any, weight: Tensor, *rest: Any,
              **more: Any) -> Any:  # fmt: skip
        weights.append(weight)
        return coupled_loss(model, schedule, clip, steps, given, numbers, weight, *rest, **more)

    monkeypatch.setattr(stage_module, "coupled_loss", noted)
    stage.step(0, 1.0)
    (weight,) = weights
    return weight


def test_what_is_not_asked_for_has_no_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in the latents before the caption comes, as a target they do not count."""
    weight = weights_of(monkeypatch, make_stage("coupled", tmp_path, ALONE, phases=(Phase(1, 4, 6, 6),), steered=1.0))
    assert not weight[:, :3].any()
    assert (weight[:, 3:] >= 1).all()


def test_small_subjects_count_as_much_as_large_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(self: Stories, story: int, shot: int, frames: int) -> Tensor:
        shares = torch.zeros(frames, 4, 4, len(PARTS), dtype=torch.uint8)
        shares[:, : 1 + 2 * (shot % 2), :2, SUBJECTS[0][0]] = 255  # an eighth, or three eighths
        return shares

    monkeypatch.setattr(Stories, "clip_parts", parts)
    stage = make_stage("coupled", tmp_path, ALONE, phases=(Phase(1, 8, 3, 6),), subject_weight=2.0)
    weight = weights_of(monkeypatch, stage)
    torch.testing.assert_close(weight.mean((1, 2, 3, 4)), torch.full((8,), 1 + 2 * USUAL_SHARE))
    assert len(weight.amax((1, 2, 3, 4)).unique()) == 2, "cells of the small one count more"


def test_all_subjects_of_a_shot_count_the_same() -> None:
    parts = torch.zeros(2, 3, 4, 8, len(PARTS))
    parts[:, :, :2, :, PARTS.index("cat body")] = 0.5
    parts[:, :, 2, 5, PARTS.index("cat accessory")] = 0.25
    parts[1, :, 3, 0, PARTS.index("bear face")] = 0.05  # less than what counts in full
    weight = subjects_of(parts)[:, :, 0]
    torch.testing.assert_close(weight[0, :, :2].sum() / 96, torch.tensor(USUAL_SHARE / 2))
    torch.testing.assert_close(weight[0, :, 2, 5].sum() / 96, torch.tensor(USUAL_SHARE / 2))
    torch.testing.assert_close(weight[1, :, :2].sum() / 96, torch.tensor(USUAL_SHARE / 3))
    assert 0 < weight[1, :, 3, 0].sum() / 96 < USUAL_SHARE / 3
    assert not subjects_of(torch.zeros(1, 3, 4, 8, len(PARTS))).any()


def test_a_recipe_may_set_the_students_steps(tmp_path: Path) -> None:
    stage = make_stage("coupled", tmp_path, ALONE, nominal_steps=(1000, 200))
    assert stage.model.config.nominal_steps == (1000, 200)
    assert torch.equal(stage.steps, SCHEDULE.warp((1000, 200)))
    assert make_stage("coupled", tmp_path, ALONE).model.config.nominal_steps == CONFIG.nominal_steps
    with pytest.raises(UserError, match="nominal_steps"):
        make_stage("coupled", tmp_path, ALONE, nominal_steps=(200, 1000))


@pytest.mark.parametrize("frames", [1, 3, 6])
def test_all_lengths_are_played(tmp_path: Path, frames: int) -> None:
    stage = make_stage("coupled", tmp_path, ALONE, phases=(Phase(1, 2, frames, 6),), played=1.0)
    assert any(name.startswith(f"picture_6+{frames}_exit") for name in stage.step(0, 1.0))
