"""Low-rank adapters for the inter-shot stage, by peft: put in, read out, merged.

What is here: adapters around each linear layer of the transformer's blocks, and their state dict under the reference's
key names. What is not here: merging an adapter file into a base (`runtime/model/state_dicts.py`).

Source: the reference's peft set-up (rank 256, alpha 256, no dropout, ten linears per block).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from shotstream.runtime.errors import UserError
from shotstream.runtime.model.state_dicts import merge_lora
from shotstream.runtime.optional import require

PREFIX = "base_model.model."
TARGETS = (
    *(f"{attention}.{name}" for attention in ("self_attn", "cross_attn") for name in "qkvo"),
    "ffn.0",
    "ffn.2",
)
"""The linear layers of a block that get an adapter."""


def _peft() -> Any:
    return require("peft", "LoRA adapters", "train")


def inject_lora(model: nn.Module, rank: int = 256, alpha: float = 256.0) -> list[nn.Parameter]:
    """Freezes `model` and puts an adapter into every target linear of its blocks; returns the parameters to train.

    Raises UserError if the model has adapters already.
    """
    if any(".lora_A." in name for name, _ in model.named_parameters()):
        raise UserError("this model already carries LoRA adapters; merge them before adding new ones")
    peft = _peft()
    blocks = len(list(model.get_submodule("blocks").children()))
    targets = [f"blocks.{i}.{target}" for i in range(blocks) for target in TARGETS]
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets), model
    )
    return [p for p in model.parameters() if p.requires_grad]


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The adapters alone, named as the reference's `generator_lora` and `critic_lora`."""
    return {PREFIX + key: value.detach() for key, value in _peft().get_peft_model_state_dict(model).items()}


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
    _peft().set_peft_model_state_dict(model, {key.removeprefix(PREFIX): value for key, value in lora.items()})


def merged_state(tensors: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
    """The state dict of a model without adapters, from that of one that may have some: `W + scale * B A`.

    `scale` is alpha / rank.
    """
    base = {key.replace(".base_layer.", "."): value for key, value in tensors.items() if ".lora_" not in key}
    return merge_lora(base, adapters_of(tensors), scale)


def adapters_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters in a model's state dict, named as in :func:`lora_state_dict`; empty if it has none."""
    return {PREFIX + key.replace(".default.", "."): value for key, value in tensors.items() if ".lora_" in key}
