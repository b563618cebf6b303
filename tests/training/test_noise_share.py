"""Noise that latents of a shot have in common, and the loss that looks at motion alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shotstream.training.method import losses
from shotstream.training.method.draws import TorchDraws, shot_noise

FRAMES = 6
SHOT = (2, 6, 8, 16, 16)


def alike(a: Tensor, b: Tensor) -> float:
    """Correlation; 4096 numbers put two independent draws below 0.06."""
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def latents(seed: int, frames: int) -> Tensor:
    return torch.randn(2, frames, 4, 4, 4, generator=seeded(seed))


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_without_a_share_is_what_it_always_was() -> None:
    expected = torch.randn(SHOT, generator=seeded())
    assert torch.equal(shot_noise(SHOT, 0.0, seeded()), expected)
    assert torch.equal(TorchDraws(seeded()).shot_noise(SHOT), expected)


def test_frames_of_a_shot_share_noise_but_samples_do_not() -> None:
    for noise in (shot_noise(SHOT, 0.4, seeded()), TorchDraws(seeded(), noise_share=0.4).target_noise(SHOT)):
        assert abs(float(noise.std()) - 1) < 0.03
        assert abs(alike(noise[:, 0], noise[:, 5]) - 0.4) < 0.06
        assert abs(alike(noise[0], noise[1])) < 0.03


def test_a_roll_out_keeps_its_shared_noise_and_scores_draw_another() -> None:
    draws = TorchDraws(seeded(), noise_share=0.4)
    start = draws.shot_noise(SHOT)
    assert abs(alike(start[:, 0], draws.renoise((2, 3, 8, 16, 16), 1, 0)[:, 2]) - 0.4) < 0.06
    assert abs(alike(start, draws.target_noise(SHOT))) < 0.03
    assert abs(alike(start[:, :3], draws.clean_noise((2, 3, 8, 16, 16), 0))) < 0.03
    assert abs(alike(start[:, 0], draws.renoise((2, 3, 8, 16, 16), 0, 1)[:, 0]) - 0.4) < 0.06


def test_motion_loss_sees_change_only() -> None:
    x0, noise, sigma = latents(1, FRAMES), latents(2, FRAMES), torch.tensor([0.5, 1.0])
    still = noise - x0 + latents(3, 1)
    assert losses.motion_loss(still, x0, noise, sigma).item() == pytest.approx(0, abs=1e-10)
    sway = torch.tensor([1.0, -1.0]).repeat(FRAMES // 2)[None, :, None, None, None]
    found = losses.motion_loss(still + 2.0 * sway, x0, noise, sigma)
    assert found.item() == pytest.approx(4 * (0.25 + 1.0) / 2, rel=1e-5)
