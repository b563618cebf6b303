"""What a codec is worth and how its latents spread: round trips, PSNR, sheets, and the scale of every latent channel.

Training it is `shotstream.training.stages.vae`'s business.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.training.data.clips import Clip, ClipSource, to_pixels

_STATISTICS_SEED = 2_000_000_000


@dataclasses.dataclass(frozen=True)
class Statistics:
    """From what the scale of latents is measured: ``clips`` clips of ``frames`` frames, as long as the shots that the
    model is trained on; ``importance_clips`` of them for each channel's share in the picture.
    """

    clips: int = 96
    frames: int = 33
    height: int = 160
    width: int = 256
    importance_clips: int = 6
    importance_power: float = 0.4


def statistics_clips(source: ClipSource, statistics: Statistics) -> Iterator[Clip]:
    """The clips, one at a time."""
    for n in range(statistics.clips):
        yield source(_STATISTICS_SEED + n, statistics.frames, statistics.height, statistics.width)


@torch.no_grad()
def round_trip(vae: TinyVAE, clip: Clip, bfloat16: bool = False) -> Tensor:
    """One clip [T, H, W, 3] through the codec as a player would see it: [T, 3, H, W] in [-1, 1]."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        return vae.decode(vae.encode(to_pixels(clip[None])))[0].float()


def clip_psnr(vae: TinyVAE, clips: Clip, bfloat16: bool = False) -> list[float]:
    """PSNR in dB of every clip's round trip, over all its pixels."""
    values = []
    for clip in clips:
        error = ((round_trip(vae, clip, bfloat16) - to_pixels(clip[None])[0]) ** 2).mean()
        values.append(-10 * math.log10(float(error) / 4 + 1e-10))
    return values


def sample_sheet(vae: TinyVAE, clips: Clip, path: Path, rows: int = 6, scale: int = 2) -> None:
    """A png with one row per clip: an early and the last frame, each as original | reconstruction."""
    lines = []
    for clip in clips[:rows]:
        made = ((round_trip(vae, clip) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        cells = [image for t in (1, len(clip) - 1) for image in (clip[t], made[t])]
        lines.append(np.concatenate(cells, 1))
    sheet = np.concatenate(lines, 0).repeat(scale, 0).repeat(scale, 1)
    Image.fromarray(sheet).save(path)


@torch.no_grad()
def measure_latents(vae: TinyVAE, source: ClipSource, statistics: Statistics, bfloat16: bool) -> None:
    """Set the buffers `mean` and `std` from clips as long as the shots that the model is trained on.

    The standard deviation is then divided by a power of the channel's share in the picture: what a player
    sees stands out of the noise first, and a model's loss weighs it more.
    """
    vae.mean.zero_()
    vae.std.fill_(1.0)
    latents = []
    for clip in statistics_clips(source, statistics):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            latents.append(vae.encode(to_pixels(clip[None])).float())
    z = torch.cat(latents)
    vae.mean.copy_(z.mean((0, 1, 3, 4)))
    vae.std.copy_(z.std((0, 1, 3, 4)))
    some = (z[: statistics.importance_clips] - vae.mean[:, None, None]) / vae.std[:, None, None]
    vae.std.div_(latent_importance(vae, some, _STATISTICS_SEED) ** statistics.importance_power)


@torch.no_grad()
def align_latents(vae: TinyVAE, before: TinyVAE, source: ClipSource, statistics: Statistics) -> float:
    """Turn the latents of a codec that went on learning back towards those it had before, by the best linear map.

    The map goes into the encoder's last layers and its inverse into the decoder's first, so pictures stay as they are.
    Returns the share of the latents' variance that is still not as before.
    """
    pairs = []
    for clip in statistics_clips(source, statistics):
        video = to_pixels(clip[None])
        pairs.append([codec.encode(video).float().movedim(2, 4).flatten(0, 3) for codec in (vae, before)])
    ours, theirs = (torch.cat(values).double() for values in zip(*pairs, strict=True))
    design = torch.cat([ours, torch.ones_like(ours[:, :1])], dim=1)
    solution = torch.linalg.lstsq(design, theirs).solution
    turn, offset = solution[:-1].T, solution[-1]
    std, mean = vae.std.double(), vae.mean.double()
    raw = std[:, None] * turn / std  # of latents as the encoder writes them
    back = torch.linalg.inv(raw)
    channels = vae.config.latent_channels
    for layer in (vae.encoder.head, vae.encoder.linear):
        assert layer.bias is not None
        for parameter in (layer.weight, layer.bias):
            parameter[:channels] = torch.einsum("oi,i...->o...", raw, parameter[:channels].double()).to(parameter)
    for layer in (vae.decoder.stem, vae.decoder.linear):
        layer.weight.copy_(torch.einsum("oi...,ij->oj...", layer.weight.double(), back))
    vae.mean.copy_(raw @ mean - std * offset)
    left = theirs - design @ solution
    return float(left.square().mean() / theirs.var(dim=0).mean())


@torch.no_grad()
def latent_importance(vae: TinyVAE, z_BFCHW: Tensor, seed: int = 0) -> Tensor:
    """[C], mean 1: how much squared error of pixels the same small noise causes in each channel of these latents."""
    generator = torch.Generator().manual_seed(seed)
    clean = vae.decode(z_BFCHW)
    errors = []
    for channel in range(z_BFCHW.shape[2]):
        noisy = z_BFCHW.clone()
        noisy[:, :, channel] += 0.3 * torch.randn(noisy[:, :, channel].shape, generator=generator)
        errors.append(((vae.decode(noisy) - clean) ** 2).mean())
    found = torch.stack(errors)
    return found / found.mean()
