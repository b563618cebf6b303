"""The optimizer of every training stage: Muon for matrices and convolution kernels, AdamW for everything else.

Muon replaces the momentum of a matrix by its nearest orthogonal matrix (Keller Jordan, "Muon: an optimizer for hidden
layers", 2024). `torch.optim.Muon` takes 2-D parameters only and one at a time; this one also takes kernels, as
[out, in*height*width], and orthogonalises matrices of equal shape in one batched product. Both rules live in one
`torch.optim.Optimizer`, so schedules and checkpoints see a single object. Schedules are not here.

Parameters may be sharded over processes by rows. AdamW then works on shards; Muon gathers the updates of equal shape,
every process orthogonalises its share of them, and keeps its rows of all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from shotstream.training.distributed.sharding import local, whole

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


def orthogonalise_together(updates: list[Tensor]) -> Tensor:
    """Orthogonal matrices ``[N, R, C]`` to matrices of equal shape, in every process; sharded ones are shared out."""
    matrices_NRC = torch.stack([whole(update).flatten(1) for update in updates])
    if not isinstance(updates[0], DTensor) or updates[0].device_mesh.size() == 1:
        return orthogonalise(matrices_NRC)
    group = updates[0].device_mesh.get_group()
    size, rank, count = dist.get_world_size(group), dist.get_rank(group), len(updates)
    share = -(-count // size)
    own = matrices_NRC[rank * share : (rank + 1) * share]
    done = matrices_NRC.new_zeros(share, *matrices_NRC.shape[1:])
    if len(own):
        done[: len(own)] = orthogonalise(own)
    every = [torch.empty_like(done) for _ in range(size)]
    dist.all_gather(every, done, group=group)
    return torch.cat(every)[:count]


def _rows(matrix: Tensor, like: Tensor) -> Tensor:
    """This process's rows of a whole matrix, in the shape of its part of `like`."""
    if not isinstance(like, DTensor):
        return matrix.view(like.shape)
    part = local(like)
    mesh = like.device_mesh
    first = mesh.get_local_rank() * -(-like.shape[0] // mesh.size())  # torch.chunk's rule
    return matrix[first : first + part.shape[0]].view(part.shape)


class MuonAdamW(torch.optim.Optimizer):
    """Parameter groups with `rule` "muon" or "adamw"; both decay weights apart from the gradient.

    A Muon update has the root mean square 0.2 of a typical AdamW update, so one learning rate scale suits both. All
    state is there from the start, so that a checkpoint knows what it has to fill.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        defaults = {"rule": "adamw", "lr": 1e-3, "weight_decay": 0.0, "momentum": 0.95, "betas": (0.9, 0.99)}
        super().__init__(groups, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                if group["rule"] == "muon":
                    self.state[p] = {"momentum": torch.zeros_like(p)}
                else:
                    self.state[p] = {"mean": torch.zeros_like(p), "square": torch.zeros_like(p), "step": 0}

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
                    local(p).mul_(1 - group["lr"] * group["weight_decay"])
            if group["rule"] == "muon":
                self._muon(parameters, group)
            else:
                self._adamw(parameters, group)
        return loss

    def _muon(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        same_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for p in parameters:
            momentum, grad = self.state[p]["momentum"], p.grad
            assert grad is not None
            local(momentum).lerp_(local(grad), 1 - group["momentum"])
            update = grad.lerp(momentum, group["momentum"])
            same_shape[(p.shape[0], p.shape[1:].numel())].append((p, update))
        for shape, members in same_shape.items():
            orthogonal = orthogonalise_together([update for _, update in members])
            size = group["lr"] * 0.2 * max(shape) ** 0.5
            for (p, _), update in zip(members, orthogonal, strict=True):
                local(p).add_(_rows(update, p), alpha=-size)

    def _adamw(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        if not parameters:
            return
        beta1, beta2 = group["betas"]
        for p in parameters:
            self.state[p]["step"] += 1
        grads = [local(p.grad) for p in parameters if p.grad is not None]
        means = [local(self.state[p]["mean"]) for p in parameters]
        squares = [local(self.state[p]["square"]) for p in parameters]
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        for p, mean, square in zip(parameters, means, squares, strict=True):
            step = self.state[p]["step"]
            scale = (square / (1 - beta2**step)).sqrt_().add_(1e-8)
            local(p).addcdiv_(mean, scale, value=-group["lr"] / (1 - beta1**step))

    def set_lr(self, factor: float) -> None:
        """Set every group's rate to `factor` times the one it was built with."""
        for group in self.param_groups:
            group["lr"] = group["base_lr"] * factor


def take_step(optimizer: MuonAdamW, modules: Iterable[nn.Module], clip: float, lr_factor: float) -> float:
    """One update from the gradients that are there, clipped to the norm `clip` over all parameters and processes;
    returns the norm before and forgets the gradients. `modules` hold what the optimizer updates.
    """
    norm = whole(nn.utils.clip_grad_norm_([p for module in modules for p in module.parameters()], clip))
    optimizer.set_lr(lr_factor)
    optimizer.step()
    optimizer.zero_grad()
    return norm.item()


class Rates(Protocol):
    """What a stage's recipe says of its optimizer; `optimizer` is "muon" (AdamW for the rest) or "adamw"."""

    @property
    def optimizer(self) -> str: ...
    @property
    def lr(self) -> float: ...
    @property
    def adam_lr(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...


def stage_optimizer(modules: Mapping[str, nn.Module], rates: Rates, adam_only: Callable[[str], bool]) -> MuonAdamW:
    """The optimizer that a recipe asks for, over the trained parameters of `modules`."""
    named = [(f"{m}.{name}", p) for m, module in modules.items() for name, p in module.named_parameters()]
    if rates.optimizer == "adamw":
        return build_adamw(named, lr=rates.lr, betas=rates.betas, weight_decay=rates.weight_decay)
    return build_optimizer(
        named, lr=rates.lr, adam_lr=rates.adam_lr, weight_decay=rates.weight_decay, betas=rates.betas,
        adam_only=adam_only,
    )  # fmt: skip


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
