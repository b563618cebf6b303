"""The decoder of `taehv` as a graph: one for a shot's start and what follows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shotstream.export.graphs.decoder_stream import Memory, StreamGraph
from shotstream.runtime.decoders.taehv import Taehv
from shotstream.runtime.decoders.taehv_layers import DECODER_HEAD, DECODER_STAGE, DECODER_STEM

_STAGES = 3


class TaehvGraph(StreamGraph):
    """Nine states: the frame that a memory block saw last, ``[1, C, h, w]``."""

    def __init__(self, codec: Taehv) -> None:
        super().__init__()
        self.decoder = codec.decoder

    def decode(self, latent_FCHW: Tensor, memory: Memory) -> Tensor:
        net = self.decoder
        h = F.relu(net[str(DECODER_STEM)](torch.tanh(latent_FCHW / 3) * 3))
        for stage in range(_STAGES):
            *blocks, grow, convolve = net.stage(DECODER_STAGE, stage, 6)
            for block in blocks:
                h = _remembering(block, h, memory)
            width = h.shape[1]
            h = grow(h).unflatten(1, (-1, width)).flatten(0, 1)
            h = convolve(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        pixels = net[str(DECODER_HEAD)](F.relu(h))
        return (pixels * 2 - 1).clamp(-1.0, 1.0)


def _remembering(block: Any, h: Tensor, memory: Memory) -> Tensor:
    before = memory.behind(h, 1, axis=0)[:-1]
    return F.relu(block.conv(torch.cat([h, before], dim=1)) + h)
