"""Low-rank adapters for the inter-shot stage: put in, save, merge.

What is here: an adapter around each linear layer of the transformer's blocks, its state dict under the
reference's key names, and the merge of such a state dict into base weights. What is not here: file reading and the
`model.` prefix of whole checkpoints (`runtime/model/state_dicts.py`).

Source: the reference's peft set-up (rank 256, alpha 256, no dropout, ten linears per block) and
`merge_lora_checkpoint.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shotstream.runtime.errors import UserError

PREFIX = "base_model.model."
TARGETS = (
    *(f"{attention}.{name}" for attention in ("self_attn", "cross_attn") for name in "qkvo"),
    "ffn.0",
    "ffn.2",
)
"""The linear layers of a block that get an adapter."""


class LoraLinear(nn.Module):
    """A frozen linear layer plus `alpha / rank * B A`; B starts at zero, so that nothing changes at first."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        self.lora_A = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Same shapes as the base layer."""
        return self.base(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


def _adapters(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    return ((name, m) for name, m in model.named_modules() if isinstance(m, LoraLinear))


def inject_lora(model: nn.Module, rank: int = 256, alpha: float = 256.0) -> list[nn.Parameter]:
    """Freezes `model` and wraps every target linear of its blocks; returns the parameters to train.

    Raises UserError if the model has adapters already.
    """
    if any(True for _ in _adapters(model)):
        raise UserError("this model already carries LoRA adapters; merge them before adding new ones")
    model.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for block in model.get_submodule("blocks").children():
        for target in TARGETS:
            parent_name, _, name = target.rpartition(".")
            parent = block.get_submodule(parent_name)
            adapter = LoraLinear(getattr(parent, name), rank, alpha)
            setattr(parent, name, adapter)
            trained += [adapter.lora_A, adapter.lora_B]
    return trained


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The adapters alone, named as the reference's `generator_lora` and `critic_lora`."""
    return {
        f"{PREFIX}{name}.{part}.weight": getattr(adapter, part).detach()
        for name, adapter in _adapters(model)
        for part in ("lora_A", "lora_B")
    }


def load_lora(model: nn.Module, lora: Mapping[str, Tensor]) -> None:
    """Fills the adapters of `model` in place; raises UserError naming a missing, extra or mis-shaped tensor."""
    own = lora_state_dict(model)
    for key in sorted(own.keys() ^ lora.keys()):
        side = "missing from" if key in own else "unknown in"
        raise UserError(f"the LoRA tensor {key} is {side} the adapter file; use adapters made for this model")
    for key, tensor in own.items():
        if tensor.shape != lora[key].shape:
            raise UserError(
                f"the LoRA tensor {key} has shape {tuple(lora[key].shape)}, expected {tuple(tensor.shape)}; "
                "use adapters of the same rank and model size"
            )
        with torch.no_grad():
            tensor.copy_(lora[key])


def merge_lora(
    weights: Mapping[str, Tensor], lora: Mapping[str, Tensor], *, rank: int | None = None, alpha: float | None = None
) -> dict[str, Tensor]:
    """Base weights with `W + alpha / rank * B A`; keys and their `model.` prefix, if any, stay as they are.

    `rank` defaults to what the tensors hold and `alpha` to the rank (factor 1, as the reference uses).
    Raises UserError naming the adapter that has no partner or no base weight, or does not fit it.
    """
    merged = dict(weights)
    for key_a in (k for k in lora if ".lora_A." in k):
        key_b = key_a.replace(".lora_A.", ".lora_B.")
        if key_b not in lora:
            raise UserError(f"the adapter file holds {key_a} but not {key_b}; the file is incomplete")
        name = key_a.removeprefix(PREFIX).replace(".lora_A.weight", ".weight")
        key = next((k for k in (name, f"model.{name}") if k in weights), None)
        if key is None:
            raise UserError(f"the adapter {key_a} has no base weight {name}; it was made for another model")
        a, b = lora[key_a], lora[key_b]
        if weights[key].shape != (b.shape[0], a.shape[1]) or a.shape[0] != b.shape[1]:
            raise UserError(f"the adapter {key_a} does not fit the base weight {key} of {tuple(weights[key].shape)}")
        used_rank = a.shape[0] if rank is None else rank
        factor = (used_rank if alpha is None else alpha) / used_rank
        merged[key] = weights[key] + factor * (b.to(weights[key].dtype) @ a.to(weights[key].dtype))
    orphans = [k for k in lora if ".lora_A." not in k and k.replace(".lora_B.", ".lora_A.") not in lora]
    if orphans:
        raise UserError(f"the adapter file holds {orphans[0]} without its other half; the file is incomplete")
    return merged


def merge_adapters(model: nn.Module) -> None:
    """Folds the adapters of `model` into its linear layers and removes them, in place."""
    for name, adapter in list(_adapters(model)):
        with torch.no_grad():
            adapter.base.weight += adapter.scale * (adapter.lora_B @ adapter.lora_A)
        parent_name, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent_name), leaf, adapter.base)
