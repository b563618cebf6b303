"""Small decoders with random weights, in which every layer matters to the outcome."""

from __future__ import annotations

import torch
from torch import Tensor

from shotstream.runtime.decoders.taehv import Taehv, random_taehv
from shotstream.runtime.decoders.taehv_layers import TaehvConfig
from shotstream.runtime.decoders.tiny_vae import TinyVAE, TinyVAEConfig
from shotstream.runtime.decoders.wan_vae import WanVAE, WanVAEConfig, random_wan_vae

SIZE = (2, 4)
UNEVEN = ([3, 3, 1], [1, 1, 2, 3], [2, 5], [7])
"""Ways to take seven latents."""


def tiny_vae(steady: tuple[float, float, float] | None = None) -> TinyVAE:
    """4 channels; its head begins near zero otherwise, and would hide what the memory blocks do."""
    config = TinyVAEConfig(4, decoder_channels=(12, 8, 6), decoder_blocks=(2, 1, 1), steady=steady)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = TinyVAE(config).eval().requires_grad_(False)
        torch.nn.init.normal_(vae.decoder.head.weight, std=0.05)
    vae.mean.copy_(torch.linspace(-0.5, 0.5, 4))
    vae.std.copy_(torch.linspace(0.5, 2.0, 4))
    return vae


def taehv() -> Taehv:
    """Widths that go down as the published ones do, and weights that pass on what an early layer says."""
    codec = random_taehv(TaehvConfig(encoder_width=8, decoder_widths=(16, 8, 8, 8)), seed=2)
    for parameter in codec.decoder.parameters():
        if parameter.ndim == 4:
            parameter *= 1.7
    return codec


def wan_vae(blocks: int = 2) -> WanVAE:
    """Layers as in the released model, or fewer of them; their biases are not zero."""
    return random_wan_vae(WanVAEConfig(base_dim=8, num_res_blocks=blocks), seed=3)


def latents(channels: int, frames: int = 7) -> Tensor:
    """``[1, frames, channels, *SIZE]``"""
    return torch.randn(1, frames, channels, *SIZE, generator=torch.Generator().manual_seed(1))
