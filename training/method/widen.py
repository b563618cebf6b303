"""A wider transformer that computes nearly what a trained one does, so that training goes on from there.

New channels of the residual stream are empty at first: nothing is written to them, though all that reads them has
weights. Norms over channels then divide by less than they did, and what comes behind them is made smaller by as much.
New heads and hidden units find something and write nothing. So nothing changes but for the channels' mean, which a
layer norm takes off in part only, and for the head's shift, which is right on average over the student's steps.
Source: function-preserving growth, Chen et al., "Net2Net", 2016; all of it adapted to these norms and modulations.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer

_SMALL = 1e-2  # of the usual size: new queries and keys, which the norms over all heads would make felt
_SHIFTS, _SCALES, _GATES = (0, 3), (1, 4), (2, 5)  # rows of a block's modulation


def wider(config: DiTConfig, dim: int) -> DiTConfig:
    """The same with `dim` channels in heads of the same size, and as many more hidden units in proportion.

    Raises UserError if `dim` is no multiple of the heads' size or less than what there is.
    """
    size = config.head_dim
    if dim % size or dim < config.dim:
        raise UserError(f"a transformer of width {config.dim} grows to multiples of {size} from there, not to {dim}")
    return replace(config, dim=dim, heads=dim // size, ffn_dim=config.ffn_dim * dim // config.dim)


@torch.no_grad()
def widened(model: Transformer, dim: int, seed: int = 0) -> Transformer:
    """A model of the `wider` sizes that computes nearly the same; `seed` decides what new weights there are.

    Raises UserError as `wider` does.
    """
    config = wider(model.config, dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wide = Transformer(config, attention=model.blocks[0].attention)  # type: ignore[arg-type]
        _fill(wide, model)
    return wide


def _fill(wide: Any, model: Any) -> None:  # modules do not say what they hold
    less = (model.config.dim / wide.config.dim) ** 0.5
    _grow(wide.patch_embedding, model.patch_embedding, writes=True)
    for ours, theirs in ((wide.text_embedding, model.text_embedding), (wide.time_embedding, model.time_embedding)):
        _grow(ours[0], theirs[0])
        _grow(ours[2], theirs[2], writes=True)
    _grow_modulation(wide.time_projection[1], model.time_projection[1], less)
    for new, block in zip(wide.blocks, model.blocks, strict=True):
        _grow_modulation(new, block, less)
        for ours, theirs in ((new.self_attn, block.self_attn), (new.cross_attn, block.cross_attn)):
            for name in "qkv":
                _grow(getattr(ours, name), getattr(theirs, name), small=name != "v")
            _grow(ours.o, theirs.o, writes=True)
            for name in ("norm_q", "norm_k"):
                _put(getattr(ours, name).weight, getattr(theirs, name).weight * less)
        _put(new.norm3.weight, block.norm3.weight * less)
        _put(new.norm3.bias, block.norm3.bias)
        _grow(new.ffn[0], block.ffn[0])
        _grow(new.ffn[2], block.ffn[2], writes=True)
    _grow_head(wide, model, less)


def _grow_head(wide: Transformer, model: Transformer, less: float) -> None:
    ours, theirs = wide.head, model.head
    ours.modulation.zero_()
    _put(ours.modulation, theirs.modulation)
    ours.head.weight.mul_(_SMALL)
    _put(ours.head.weight, theirs.head.weight * less)
    # Its modulation reads the time as it is, so that the shift is made smaller with the rest: put back on average.
    steps = NoiseSchedule(model.config.shift, "cpu").warp(model.config.nominal_steps)
    e_D = model.embed_time(steps[None].to(theirs.modulation), theirs.modulation.dtype)[0][0].mean(0)
    ours.head.bias.copy_(theirs.head.bias + (1 - less) * theirs.head.weight @ (theirs.modulation[0, 0] + e_D))


def _grow_modulation(ours: nn.Module, theirs: nn.Module, less: float) -> None:
    """Of six vectors: what scales behind a norm is made smaller, 1 included; new channels have gates like old ones."""
    for name, new in ours.named_parameters(recurse=False):
        old = getattr(theirs, name).detach().clone()
        new.zero_()
        if name == "modulation":
            parts, kept, one = new[0], old[0], 1.0  # [6, D]
        elif name == "weight":
            parts, kept, one = new.unflatten(0, (6, -1)), old.unflatten(0, (6, -1)), 0.0
            parts[..., kept.shape[-1] :].normal_(std=float(old.std()))
        else:
            parts, kept, one = new.unflatten(0, (6, -1)), old.unflatten(0, (6, -1)), 0.0
        for row in _SCALES:
            kept[row] = (kept[row] + one) * less - one
        many = kept.shape[1]
        for row in range(6):
            _put(parts[row], kept[row])
        for row in _GATES:
            extra = parts.shape[1] - many
            like = kept[row][torch.arange(extra) % many]
            _put(parts[row][many:], like)


def _grow(ours: nn.Module, theirs: nn.Module, *, writes: bool = False, small: bool = False) -> None:
    """Put a layer's weights into a larger one. writes: what is new reads and writes nothing. small: it is small."""
    weight, bias = ours.get_parameter("weight"), ours.get_parameter("bias")
    old = theirs.get_parameter("weight")
    many = len(old)
    weight.normal_(std=float(old.std()))
    bias.zero_()
    if writes:
        weight.zero_()
    elif small:
        weight[many:].mul_(_SMALL)
    _put(weight, old)
    _put(bias, theirs.get_parameter("bias"))


def _put(into: Tensor, values: Tensor) -> None:
    """Write into the first places of every axis."""
    into[tuple(slice(0, n) for n in values.shape)].copy_(values)
