"""The decoder of `tiny-vae` as a graph. The noise reduction over time ahead of it stays outside (`steady.py`): it goes
from one latent to the next, and is nothing beside the decoder.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from shotstream.export.graphs.decoder_stream import Memory, StreamGraph
from shotstream.runtime.decoders.common import TIME_FACTOR
from shotstream.runtime.decoders.tiny_vae import MemoryBlock, TinyVAE


class TinyVAEGraph(StreamGraph):
    """One graph for a shot's start and what follows: one state, a feature map, for every memory block."""

    mean: Tensor
    std: Tensor

    def __init__(self, vae: TinyVAE) -> None:
        super().__init__()
        self.decoder = vae.decoder
        self.cell = vae.config.cell
        self.register_buffer("mean", vae.mean[:, None, None].clone())
        self.register_buffer("std", vae.std[:, None, None].clone())

    def decode(self, latent_FCHW: Tensor, memory: Memory) -> Tensor:
        net = self.decoder
        z = latent_FCHW * self.std + self.mean
        h = _remembering(net.blocks_a, net.stem(z), memory)
        h = net.smooth_a(_doubled(_frames(net.unfold_a(h), 2)))
        h = _remembering(net.blocks_b, h, memory)
        h = net.smooth_b(_doubled(_frames(net.unfold_b(h), 2)))
        h = _remembering(net.blocks_c, h, memory)
        painted = F.pixel_shuffle(net.head(F.relu(h)), self.cell // 4)
        patches = F.pixel_shuffle(_frames(net.linear(z), TIME_FACTOR), self.cell)
        return (painted + patches).clamp(-1.0, 1.0)


def _remembering(blocks: nn.ModuleList, h: Tensor, memory: Memory) -> Tensor:
    for block in blocks:
        assert isinstance(block, MemoryBlock)
        now, left = block.split(F.relu(h)).chunk(2, dim=1)
        h = h + block.mix(F.relu(now + memory.behind(left, 1, axis=0)[:-1]))
    return h


def _frames(h: Tensor, factor: int) -> Tensor:
    """Channels to frames: ``[F, factor C, H, W]`` -> ``[factor F, C, H, W]``."""
    return h.unflatten(1, (factor, -1)).flatten(0, 1)


def _doubled(h: Tensor) -> Tensor:
    return F.interpolate(h, scale_factor=2.0, mode="nearest")
