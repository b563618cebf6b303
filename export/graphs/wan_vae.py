"""The decoder of `wan-vae` as graphs: our own walk through diffusers' layers, with every cache in the open.

A causal convolution sees the two frames before its input, so it is a convolution of the cache and the input joined,
and zeros are the cache of a shot's start. Only a shot's first latent differs: the two layers that double the frame rate
leave it alone. Any number of latents goes through at once.

Letters: F latent frames, T frames inside, C channels, H W height and width; inside, feature maps are [1, C, T, H, W].
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shotstream.export.graphs.decoder_stream import Memory, StreamGraph
from shotstream.runtime.decoders.common import TIME_FACTOR
from shotstream.runtime.decoders.wan_vae import WanVAE

_TIME = 2
"""The axis of time."""
_REMEMBERED = 2
"""Frames that a causal convolution remembers."""
_LEAST_LENGTH = 1e-12
"""Of torch's normalize."""


class WanVAEGraph(StreamGraph):
    """32 states ``[1, C, 2, H, W]``. first: for a shot's first latent, which becomes one frame, not four."""

    mean: Tensor
    scale: Tensor

    def __init__(self, vae: WanVAE, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.frames_per_latent = 1 if first else TIME_FACTOR
        self.post_quant_conv, self.decoder = vae.autoencoder.post_quant_conv, vae.autoencoder.decoder
        mean, scale = vae._norm.at(next(vae.parameters()))
        self.register_buffer("mean", mean.clone())
        self.register_buffer("scale", scale.clone())

    def decode(self, latent_FCHW: Tensor, memory: Memory) -> Tensor:
        net = self.decoder
        z_BCTHW = latent_FCHW.transpose(0, 1)[None] / self.scale + self.mean
        x = _causal(net.conv_in, self.post_quant_conv(z_BCTHW), memory)
        before, after = net.mid_block.resnets
        (attention,) = net.mid_block.attentions
        x = _residual(after, attention(_residual(before, x, memory)), memory)
        for block in net.up_blocks:
            for layer in block.resnets:
                x = _residual(layer, x, memory)
            for layer in block.upsamplers or ():
                x = self._upsampled(layer, x, memory)
        x = _causal(net.conv_out, _active(net.norm_out, x), memory)
        return x[0].transpose(0, 1).clamp(-1.0, 1.0)

    def _upsampled(self, layer: Any, x: Tensor, memory: Memory) -> Tensor:
        if layer.mode == "upsample3d":
            if self.first:
                memory.skip()
            else:
                x = _causal(layer.time_conv, x, memory).unflatten(1, (2, -1)).movedim(1, 3).flatten(_TIME, 3)
        _, convolve = layer.resample  # its upsampling is nearest-exact: the same at a factor of two
        doubled_TCHW = F.interpolate(x[0].transpose(0, 1), scale_factor=2.0, mode="nearest")
        return convolve(doubled_TCHW).transpose(0, 1)[None]


def _residual(layer: Any, x: Tensor, memory: Memory) -> Tensor:
    h = layer.conv_shortcut(x)
    x = _causal(layer.conv1, _active(layer.norm1, x), memory)
    return _causal(layer.conv2, _active(layer.norm2, x), memory) + h


def _active(norm: Any, x: Tensor) -> Tensor:
    """Norm and activation. As diffusers rounds it, but for its `expand`, which a runtime would write out in full."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    length = torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp_min(_LEAST_LENGTH)
    return F.silu((wide / length).to(x.dtype) * norm.scale * norm.gamma)


def _causal(layer: Any, x: Tensor, memory: Memory) -> Tensor:
    """A causal convolution; diffusers keeps its padding apart, width and height first."""
    width, _, height, *_ = layer._padding
    seen = memory.behind(x, _REMEMBERED, axis=_TIME)
    return F.conv3d(seen, layer.weight, layer.bias, padding=(0, height, width))
