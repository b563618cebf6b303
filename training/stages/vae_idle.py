"""Leaves out of a codec what does nothing: hidden units of its memory blocks that no clip makes fire.

Nothing reads such a unit and no gradient brings it back; its block only adds a constant, which the layer before it can
add as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shotstream.runtime.decoders.tiny_vae import MemoryBlock, TinyVAE
from shotstream.training.data.clips import Clip, to_pixels
from shotstream.training.stages.vae_checks import round_trip

_TOGETHER = 8  # numbers of channels that convolutions like are multiples of this


@torch.no_grad()
def without_idle_units(vae: TinyVAE, clips: Iterable[Clip], margin: float) -> TinyVAE:
    """A codec that does to `clips` ``[T, H, W, 3]`` what `vae` does, without the hidden units that stay `margin` or
    more below firing on all of them, whole and in single frames. A block that keeps some keeps a multiple of eight.
    """
    highest = _highest(vae, clips)
    kept = {name: _kept(top, margin) for name, top in highest.items()}
    encoder = [len(kept.get(f"encoder.block_{x}", [])) for x in "abcd"]
    a, b, c = ([len(kept[n]) for n in kept if n.startswith(f"decoder.blocks_{x}.") and kept[n]] for x in "abc")
    blocks = (len(a), len(b), len(c))
    smaller = TinyVAE(dataclasses.replace(vae.config, decoder_blocks=blocks, hidden=(*encoder, *a, *b, *c)))
    smaller.load_state_dict(_state(vae, kept))
    smaller.use_channels_last()
    return smaller.train(vae.training)


def _highest(vae: TinyVAE, clips: Iterable[Clip]) -> dict[str, Tensor]:
    """Of every memory block, in order, the highest value ``[hidden]`` that its units have before their ReLU."""
    found: dict[str, Tensor] = {}

    def watch(name: str, block: MemoryBlock) -> torch.utils.hooks.RemovableHandle:
        def look(_: nn.Module, inputs: tuple[Tensor, int, Tensor | None], __: object) -> None:
            x, batch, before = inputs
            now, left = block.split(F.relu(x)).chunk(2, dim=1)
            shifted = torch.cat([torch.zeros_like(left[:batch]) if before is None else before, left[:-batch]])
            top = (now + shifted).amax((0, 2, 3))
            found[name] = torch.maximum(found.get(name, top), top)

        return block.register_forward_hook(look)

    handles = [watch(name, block) for name, block in vae.named_modules() if isinstance(block, MemoryBlock)]
    try:
        for clip in clips:
            round_trip(vae, clip)
            vae.encode_frames(to_pixels(clip[None, ::4])[0])
    finally:
        for handle in handles:
            handle.remove()
    return found


def _kept(highest: Tensor, margin: float) -> list[int]:
    """Places of the units that fire or nearly do, and of the next highest up to a multiple of eight."""
    firing = int((highest > -margin).sum())
    count = min(len(highest), -(-firing // _TOGETHER) * _TOGETHER)
    return sorted(highest.topk(count).indices.tolist())


def _state(vae: TinyVAE, kept: dict[str, list[int]]) -> dict[str, Tensor]:
    """The smaller codec's tensors; live blocks of the decoder are counted anew."""
    inside = tuple(f"{name}." for name in kept)
    state = {name: tensor.clone() for name, tensor in vae.state_dict().items() if not name.startswith(inside)}
    for entry, names in _runs(vae):
        last, place = entry, 0  # what the running sum comes from, and how many live blocks were met
        for name in (n for n in names if n in kept):
            block, units = vae.get_submodule(name), kept[name]
            assert isinstance(block, MemoryBlock)
            assert block.mix.bias is not None
            assert block.split.bias is not None
            if not units:
                state[f"{last}.bias"] += block.mix.bias
                continue
            both = [*units, *(unit + len(block.mix.weight[0]) for unit in units)]
            new = f"{name.rpartition('.')[0]}.{place}" if name.startswith("decoder.") else name
            state |= {
                f"{new}.split.weight": block.split.weight[both].clone(),
                f"{new}.split.bias": block.split.bias[both].clone(),
                f"{new}.mix.weight": block.mix.weight[:, units].clone(),
                f"{new}.mix.bias": block.mix.bias.clone(),
            }
            last, place = f"{new}.mix", place + 1
    return state


def _runs(vae: TinyVAE) -> Iterator[tuple[str, list[str]]]:
    """Layers that memory blocks stand behind, and the names of these, in order."""
    yield "encoder.stem", ["encoder.block_a"]
    yield "encoder.fold_a", ["encoder.block_b"]
    yield "encoder.fold_b", ["encoder.block_c", "encoder.block_d"]
    net = vae.decoder
    behind = {"stem": net.blocks_a, "smooth_a": net.blocks_b, "smooth_b": net.blocks_c}
    for (layer, blocks), stride in zip(behind.items(), "abc", strict=True):
        yield f"decoder.{layer}", [f"decoder.blocks_{stride}.{i}" for i in range(len(blocks))]
