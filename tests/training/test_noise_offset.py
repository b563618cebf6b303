"""Noise that patches of a shot have in common, and the loss that looks at motion alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_jobs import ALONE, make_stage
from torch import Tensor

from shotstream.training.method import losses
from shotstream.training.method.draws import TorchDraws
from shotstream.training.stages import continuation

FRAMES = 6
SHOT = (2, 6, 8, 16, 16)
CHUNK = (2, 3, 8, 16, 16)


def common(noise: Tensor) -> Tensor:
    """Means over all patches, [B, C, 2, 2]."""
    return noise.unflatten(3, (8, 2)).unflatten(5, (8, 2)).mean((1, 3, 5))


def alike(a: Tensor, b: Tensor) -> float:
    """Correlation of what patches have in common."""
    return float(torch.corrcoef(torch.stack([common(a).flatten(), common(b).flatten()]))[0, 1])


def latents(seed: int, frames: int) -> Tensor:
    return torch.randn(2, frames, 4, 4, 4, generator=seeded(seed))


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_without_an_offset_is_what_it_always_was() -> None:
    expected = torch.randn(SHOT, generator=seeded())
    assert torch.equal(TorchDraws(seeded()).shot_noise(SHOT), expected)


def test_a_roll_out_keeps_its_offset_and_scores_draw_another() -> None:
    draws = TorchDraws(seeded(), noise_offset=0.4)
    start = draws.shot_noise(SHOT)
    assert abs(float(start.std()) - 1) < 0.1
    assert alike(start, draws.renoise(CHUNK, 1, 0)) > 0.95
    assert abs(alike(start[:1], start[1:])) < 0.6, "32 independent numbers of each sample"
    assert abs(alike(start, draws.target_noise(SHOT))) < 0.45, "64 independent numbers"
    assert float(common(draws.clean_noise(CHUNK, 0)).std()) < 0.15
    assert alike(start, draws.renoise(CHUNK, 0, 1)) > 0.95


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_continuation_draws_the_noise_that_its_student_plays_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: float
) -> None:
    drawn: list[Tensor] = []

    def watched(*given: Any, **more: Any) -> Any:
        clip, draws = given[3], given[6]
        drawn.append(draws.target_noise((*clip.shape[:3], 16, 16)))
        return continuation_loss(*given, **more)

    continuation_loss = continuation.continuation_loss
    monkeypatch.setattr(continuation, "continuation_loss", watched)
    stage = make_stage("continuation", tmp_path, ALONE)
    stage.model.config = replace(stage.model.config, noise_offset=offset)
    stage.step(0, 1.0)
    assert float(common(drawn[0]).std()) == pytest.approx(max(offset, 1 / 384) ** 0.5, rel=0.2)


def test_motion_loss_sees_change_only() -> None:
    x0, noise, sigma = latents(1, FRAMES), latents(2, FRAMES), torch.tensor([0.5, 1.0])
    still = noise - x0 + latents(3, 1)
    assert losses.motion_loss(still, x0, noise, sigma).item() == pytest.approx(0, abs=1e-10)
    sway = torch.tensor([1.0, -1.0]).repeat(FRAMES // 2)[None, :, None, None, None]
    found = losses.motion_loss(still + 2.0 * sway, x0, noise, sigma)
    assert found.item() == pytest.approx(4 * (0.25 + 1.0) / 2, rel=1e-5)
