"""Weights cut over processes with FSDP2: every block and the rest of a network gathered when used, and freed again."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from shotstream.runtime.errors import UserError
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.distributed.launch import Team
from shotstream.training.distributed.scale import Scale


def place(model: Transformer, team: Team, scale: Scale) -> Transformer:
    """Put a network where it works: on the device, or with several processes in shards, block by block."""
    model.gradient_checkpointing = scale.checkpointing
    if team.mesh is None:
        if scale.precision == "fsdp-bf16":
            raise UserError(
                "precision fsdp-bf16 shards weights, which takes torchrun: start with "
                "'torchrun --nproc-per-node 1 --no-python shotstream train ...', or set precision: autocast"
            )
        return model.to(team.device)
    blocks: Any = model.blocks  # a ModuleList does not say what it holds
    for block in blocks:
        place_part(block, team, scale)
        register_fsdp_forward_method(block, "text_kv")
    place_part(model, team, scale)
    register_fsdp_forward_method(model, "embed_captions")
    # FSDP guesses the order of a backward pass from the forward passes, which a roll-out has too many of.
    for earlier, later in pairwise(blocks):
        later.set_modules_to_backward_prefetch([earlier])
    return model


def place_part(module: nn.Module, team: Team, scale: Scale) -> nn.Module:
    """Shard one module's parameters (those of modules in it that are sharded already excepted)."""
    if team.mesh is None:
        return module.to(team.device)
    # Inputs are left as they are: timesteps and rotary tables must stay float32.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if scale.precision == "fsdp-bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    # The root is freed too: the average and the optimizer change shards between passes.
    fully_shard(module, mesh=team.mesh, reshard_after_forward=True, mp_policy=policy)
    return module


def keep_in_backward(model: Transformer) -> None:
    """Weights that a backward pass has gathered stay until `free`. Needed where gradients of one pass come back through
    keys and values of another: FSDP frees a module's weights after the one, and does not see that the other needs them.
    """
    if isinstance(model, FSDPModule):
        model.set_reshard_after_backward(False)


def free(model: Transformer) -> None:
    """Undo what `keep_in_backward` has kept, after a step's backward passes and before its update."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in place; the tensor itself if it is whole. Not differentiable."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered from all processes (which all must ask); not for gradients."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_whole(target: Tensor, full: Tensor) -> None:
    """Fill a tensor, sharded or not, from a whole one that every process has."""
    if isinstance(target, DTensor):
        full = distribute_tensor(full.to(target.dtype), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(full)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict with whole tensors, in every process, on the CPU."""
    return {key: whole(value).cpu() for key, value in module.state_dict().items()}


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name: what a checkpoint must hold, for the rest comes from files."""
    return {key: value.detach() for key, value in module.named_parameters() if value.requires_grad}


def trained_share(model: Transformer) -> float:
    """The share of the weights in its blocks that is trained."""
    every = list(model.blocks.parameters())
    return sum(p.numel() for p in every if p.requires_grad) / sum(p.numel() for p in every)


@torch.no_grad()
def load_trained(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Inverse of :func:`trained_state`."""
    for key, value in module.named_parameters():
        if value.requires_grad:
            value.copy_(state[key])
