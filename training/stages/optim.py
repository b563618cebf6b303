"""The optimizer of every training stage: Muon for matrices and convolution kernels, AdamW for everything else.

Muon replaces the momentum of a matrix by its nearest orthogonal matrix (Keller Jordan, "Muon: an optimizer for hidden
layers", 2024). `torch.optim.Muon` takes 2-D parameters only and one at a time; this one also takes kernels, as
[out, in*height*width], and orthogonalises matrices of equal shape in one batched product. Both rules live in one
`torch.optim.Optimizer`, so schedules and checkpoints see a single object. Schedules are not here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices_NRC: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of every matrix towards 1 with the quintic Newton-Schulz iteration, in bfloat16."""
    a, b, c = _QUINTIC
    x = matrices_NRC.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices_NRC.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Parameter groups with `rule` "muon" or "adamw"; both decay weights apart from the gradient.

    A Muon update has the root mean square 0.2 of a typical AdamW update, so one learning rate scale suits both.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        defaults = {"rule": "adamw", "lr": 1e-3, "weight_decay": 0.0, "momentum": 0.95, "betas": (0.9, 0.99)}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["weight_decay"]:
                for p in parameters:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
            if group["rule"] == "muon":
                self._muon(parameters, group)
            else:
                self._adamw(parameters, group)
        return loss

    def _muon(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        same_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for p in parameters:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            grad = p.grad
            assert grad is not None
            state["momentum"].lerp_(grad, 1 - group["momentum"])
            update = grad.lerp(state["momentum"], group["momentum"]).flatten(1)
            same_shape[(update.shape[0], update.shape[1])].append((p, update))
        for shape, members in same_shape.items():
            orthogonal = orthogonalise(torch.stack([update for _, update in members]))
            size = group["lr"] * 0.2 * max(shape) ** 0.5
            for (p, _), update in zip(members, orthogonal, strict=True):
                p.add_(update.view(p.shape), alpha=-size)

    def _adamw(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        if not parameters:
            return
        beta1, beta2 = group["betas"]
        for p in parameters:
            if not self.state[p]:
                self.state[p].update(mean=torch.zeros_like(p), square=torch.zeros_like(p), step=0)
            self.state[p]["step"] += 1
        grads = [p.grad for p in parameters if p.grad is not None]
        means = [self.state[p]["mean"] for p in parameters]
        squares = [self.state[p]["square"] for p in parameters]
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        for p, mean, square in zip(parameters, means, squares, strict=True):
            step = self.state[p]["step"]
            scale = (square / (1 - beta2**step)).sqrt_().add_(1e-8)
            p.addcdiv_(mean, scale, value=-group["lr"] / (1 - beta1**step))

    def set_lr(self, factor: float) -> None:
        """Set every group's rate to `factor` times the one it was built with."""
        for group in self.param_groups:
            group["lr"] = group["base_lr"] * factor


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    adam_lr: float | None = None,
    weight_decay: float = 0.0,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.99),
    adam_only: Callable[[str], bool] = lambda name: False,
) -> MuonAdamW:
    """One optimizer over the parameters that require a gradient.

    Muon, at `lr`, takes parameters of two or more dimensions whose name `adam_only` does not claim (claim embeddings,
    heads, and tables that are not maps between features); AdamW, at `adam_lr` (default `lr`), takes the rest. Weight
    decay falls on Muon's share only.
    """
    muon: list[nn.Parameter] = []
    adamw: list[nn.Parameter] = []
    for name, p in named_parameters:
        if p.requires_grad:
            (muon if p.ndim in (2, 4, 5) and not adam_only(name) else adamw).append(p)
    adam_rate = lr if adam_lr is None else adam_lr
    groups: list[dict[str, Any]] = []
    if muon:
        groups.append(
            {
                "params": muon,
                "rule": "muon",
                "lr": lr,
                "base_lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
            }
        )
    if adamw:
        groups.append({"params": adamw, "rule": "adamw", "lr": adam_rate, "base_lr": adam_rate, "betas": betas})
    return MuonAdamW(groups)


def build_adamw(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> MuonAdamW:
    """AdamW over every parameter that requires a gradient, weight decay included: the reference's optimizer."""
    parameters = [p for _, p in named_parameters if p.requires_grad]
    group = {
        "params": parameters, "rule": "adamw", "lr": lr, "base_lr": lr, "betas": betas, "weight_decay": weight_decay
    }  # fmt: skip
    return MuonAdamW([group])
