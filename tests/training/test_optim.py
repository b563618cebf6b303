"""The optimizer: who gets which rule, what Muon does to a matrix, and that it resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from distributed_jobs import alone, optimize, together
from torch import nn

from shotstream.training.stages.optim import build_adamw, build_optimizer, orthogonalise


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, *shape)))
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_matrices_and_kernels_go_to_muon_and_the_rest_to_adamw() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 5), nn.Linear(5, 6))
    optimizer = build_optimizer(
        model.named_parameters(), lr=1.0, adam_lr=0.1, adam_only=lambda name: name.startswith("2.")
    )
    rules = {group["rule"]: {tuple(p.shape) for p in group["params"]} for group in optimizer.param_groups}
    assert rules == {"muon": {(4, 3, 3, 3), (5, 4)}, "adamw": {(4,), (5,), (6, 5), (6,)}}


@pytest.mark.parametrize(("betas", "decay"), [((0.9, 0.99), 0.0), ((0.0, 0.999), 0.01)])
def test_its_adamw_is_that_of_torch(betas: tuple[float, float], decay: float) -> None:
    ours, theirs = nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones(7))
    mine = build_adamw([("p", ours)], lr=0.1, betas=betas, weight_decay=decay)
    reference = torch.optim.AdamW([theirs], lr=0.1, betas=betas, weight_decay=decay)
    for step in range(5):
        gradient = torch.linspace(-1, 1, 7) * (step + 1)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_it_lowers_the_loss_of_a_small_regression() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    x = torch.randn(64, 8)
    target = x @ torch.randn(8, 8)
    optimizer = build_optimizer(model.named_parameters(), lr=0.1)
    losses = []
    for _ in range(150):
        loss = (model(x) - target).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]


def test_a_restored_state_continues_exactly() -> None:
    def run(interrupt: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        optimizer = build_optimizer(model.named_parameters(), lr=0.1, weight_decay=0.1)
        for step in range(6):
            if interrupt and step == 3:
                state = optimizer.state_dict()
                optimizer = build_optimizer(model.named_parameters(), lr=0.1, weight_decay=0.1)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            model(torch.full((2, 4), step + 1.0)).square().sum().backward()
            optimizer.step()
        return model.weight.detach()

    assert torch.equal(run(False), run(True))


def test_the_learning_rate_scales_from_the_one_it_was_built_with() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2).named_parameters(), lr=1.0, adam_lr=0.1)
    optimizer.set_lr(0.5)
    optimizer.set_lr(0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]


def test_sharded_matrices_are_orthogonalised_as_whole_ones(tmp_path: Path) -> None:
    whole = alone(optimize, tmp_path)
    for found in together(3, optimize, tmp_path):
        for name, value in whole.items():
            # Newton and Schulz iterate in bfloat16, where batches of other sizes may round otherwise.
            assert torch.allclose(found[name], value, atol=2e-3), name
