"""A wider student computes nearly what it did, and all that is new learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.runtime import Runtime
from shotstream.training.method.widen import widened

CONFIG = DiTConfig(dim=32, heads=2, ffn_dim=48, layers=2, channels=4, text_len=6, text_dim=16, shift=3.0)


def flow(model: Transformer, t: float, frames: int = 6) -> Tensor:
    """Of noise, under two captions."""
    c, generator = model.config, torch.Generator().manual_seed(3)
    z = torch.randn(2, frames, c.channels, 4, 6, generator=generator)
    text = torch.randn(2, c.text_len, c.text_dim, generator=generator)
    index = torch.tensor([[0] * frames, [1] * frames])
    return model(
        z, torch.full((2, frames), t), model.embed_captions(text), index, torch.arange(frames).expand(2, -1), index
    )


@torch.no_grad()
def test_a_wider_student_draws_nearly_the_same() -> None:
    model = Runtime("tiny").parts.transformer
    wide = widened(model, 320)
    sizes = (wide.config.dim, wide.config.heads, wide.config.ffn_dim)
    assert sizes == (320, 5, 1280)
    assert wide.config == replace(model.config, dim=320, heads=5, ffn_dim=1280)
    for t in NoiseSchedule(model.config.shift).warp(model.config.nominal_steps).tolist():
        before, after = flow(model, t), flow(wide, t)
        assert (after - before).square().mean() < 2e-3 * before.square().mean()
        assert not torch.equal(after, before)


def test_everything_new_has_a_gradient_from_the_second_step_on() -> None:
    """What is new and writes nothing yet comes first, and then what it is read by."""
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    wide = widened(model, 64)
    optimizer = torch.optim.Adam(wide.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (flow(wide, 700.0) - torch.linspace(-1, 1, 6)).square().mean().backward()
        optimizer.step()
    for name, p in wide.named_parameters():
        fresh = torch.ones_like(p, dtype=torch.bool)
        fresh[tuple(slice(0, n) for n in model.get_parameter(name).shape)] = False
        assert p.grad is not None
        assert (p.grad[fresh] != 0).float().mean() > 0.95 or not fresh.any(), name


def test_the_same_width_changes_nothing_and_the_model_given_stays() -> None:
    torch.manual_seed(0)
    model = Transformer(CONFIG)
    began = {name: p.detach().clone() for name, p in model.named_parameters()}
    same = widened(model, 32)
    widened(model, 48)
    for name, p in model.named_parameters():
        assert torch.equal(p, began[name])
        if not name.startswith("head."):
            torch.testing.assert_close(p, same.get_parameter(name), msg=name)
    torch.testing.assert_close(flow(same, 500.0), flow(model, 500.0))


@pytest.mark.parametrize("dim", [16, 40])
def test_widths_that_are_no_whole_heads_or_less_are_refused(dim: int) -> None:
    with pytest.raises(UserError, match=f"width 32 grows to multiples of 16 from there, not to {dim}"):
        widened(Transformer(CONFIG), dim)
