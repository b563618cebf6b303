"""The two networks of TAEHV: latents to frames and back. Streams, number ranges and files are the subject of ``taehv``.

Convolutions are two-dimensional; time passes in the memory blocks, each of which also sees its input of one frame
before. Layers carry the numbers they have in the published file, so that state-dict keys are the file's.

Letters: B clips, F latent frames, T pixel frames, C channels, H W height and width. Frames are images in channels-last
layout and time-major order, ``[T*B, C, H, W]``: what belongs to one moment lies together, whatever the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROW = (1, 2, 2)
"""Frames that a decoder stage makes of one."""
_POOL = (2, 2, 1)
"""Frames that an encoder stage makes one of."""
_BLOCKS = 3
# Where layers are in the file's two lists. What has no weights (ReLU, doubling) has a number there too.
DECODER_STEM, DECODER_STAGE, DECODER_HEAD = 1, 3, 22
ENCODER_STEM, ENCODER_STAGE, ENCODER_HEAD = 0, 2, 17


@dataclass(frozen=True)
class TaehvConfig:
    """Sizes of the codec; the defaults are those of ``taew2_1``, tests use smaller ones."""

    latent_channels: int = 16
    encoder_width: int = 64
    decoder_widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    """Of the three stages, and of what the last convolution reads."""

    def stream_values(self, latent_height: int, latent_width: int, batch: int = 1) -> int:
        """Numbers that a stream keeps: a feature map of one frame for every memory block of the decoder."""
        cells = sum(width * 4**stage for stage, width in enumerate(self.decoder_widths[:3]))
        return batch * _BLOCKS * cells * latent_height * latent_width


class _MemoryBlock(nn.Module):
    """Three convolutions beside a skip; the first reads this frame and the one before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.conv = nn.Sequential(
            _conv3(2 * width, width), nn.ReLU(inplace=True),
            _conv3(width, width), nn.ReLU(inplace=True), _conv3(width, width),
        )  # fmt: skip

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        """x ``[T*B, C, H, W]``; ``past`` ``[B, C, H, W]`` is the frame ahead of it and becomes x's last frame."""
        frames, channels, height, width = x.shape
        batch = past.shape[0]
        shape = (frames, 2 * channels, height, width)
        pair = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        pair[:, :channels].copy_(x)
        pair[:batch, channels:].copy_(past)
        pair[batch:, channels:].copy_(x[:-batch])
        past.copy_(x[-batch:])
        return torch.relu_(self.conv(pair).add_(x))


class _Pointwise(nn.Module):
    """A 1x1 convolution without bias, under the name it has in the file."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Layers(nn.ModuleDict):
    """Layers by their number in the file, so that state-dict keys are the file's."""

    def stage(self, first: int, stage: int, length: int) -> list[nn.Module]:
        """The layers with weights of one stage."""
        numbers = range(first + stage * length, first + (stage + 1) * length)
        return [self[str(number)] for number in numbers if str(number) in self]

    def memory_widths(self) -> list[int]:
        return [layer.width for layer in self.values() if isinstance(layer, _MemoryBlock)]


class TaehvDecoder(_Layers):
    """Latents to pixels in [0, 1], not clamped."""

    def __init__(self, config: TaehvConfig) -> None:
        widths = config.decoder_widths
        layers: dict[str, nn.Module] = {str(DECODER_STEM): _conv3(config.latent_channels, widths[0])}
        for stage, ((width, following), factor) in enumerate(zip(pairwise(widths), _GROW, strict=True)):
            at = DECODER_STAGE + 6 * stage
            layers |= {str(at + i): _MemoryBlock(width) for i in range(_BLOCKS)}
            layers[str(at + 4)] = _Pointwise(width, factor * width)  # at + 3 doubles the picture
            layers[str(at + 5)] = _conv3(width, following, bias=False)
        layers[str(DECODER_HEAD)] = _conv3(widths[3], 3)
        super().__init__(layers)

    def new_memory(self, batch: int, height: int, width: int, like: Tensor) -> list[Tensor]:
        """What a stream remembers before its first frame: zeros, for latents of this size."""
        shapes = [
            (batch, channels, height << number // _BLOCKS, width << number // _BLOCKS)
            for number, channels in enumerate(self.memory_widths())
        ]
        with torch.inference_mode(False):  # to be written in place with and without inference mode
            return [_zeros(shape, like) for shape in shapes]

    def forward(self, z: Tensor, memory: Sequence[Tensor], skip: int) -> Tensor:
        """z ``[F*B, C, h, w]`` -> ``[(4F-skip)*B, 3, 8h, 8w]``, without the first ``skip`` frames (0 to 4F - 1)."""
        batch, past = memory[0].shape[0], iter(memory)
        x = torch.relu_(self[str(DECODER_STEM)](torch.tanh(z / 3).mul_(3)))  # latents beyond 3 are pressed together
        for stage, factor in enumerate(_GROW):
            *blocks, grow, convolve = self.stage(DECODER_STAGE, stage, 6)
            for block in blocks:
                x = block(x, next(past))
            # The file doubles first and mixes channels then; this way round it is the same, at a quarter of the work.
            x = _channels_to_frames(grow(x), batch, factor)
            if stage == len(_GROW) - 1:
                x = x[skip * batch :]  # nothing remembers from here on, so dropped frames need not be painted
            x = convolve(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self[str(DECODER_HEAD)](torch.relu_(x))


class TaehvEncoder(_Layers):
    """Pixels in [0, 1] to latents."""

    def __init__(self, config: TaehvConfig) -> None:
        width = config.encoder_width
        layers: dict[str, nn.Module] = {str(ENCODER_STEM): _conv3(3, width)}
        for stage, factor in enumerate(_POOL):
            at = ENCODER_STAGE + 5 * stage
            layers[str(at)] = _Pointwise(factor * width, width)
            layers[str(at + 1)] = _conv3(width, width, bias=False, stride=2)
            layers |= {str(at + 2 + i): _MemoryBlock(width) for i in range(_BLOCKS)}
        layers[str(ENCODER_HEAD)] = _conv3(width, config.latent_channels)
        super().__init__(layers)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """x ``[T*B, 3, H, W]`` with T a multiple of four -> ``[T/4*B, C, H/8, W/8]``."""
        x = torch.relu_(self[str(ENCODER_STEM)](x))
        for stage, factor in enumerate(_POOL):
            pool, convolve, *blocks = self.stage(ENCODER_STAGE, stage, 5)
            x = convolve(pool(_frames_to_channels(x, batch, factor)))
            for block in blocks:
                x = block(x, _zeros((batch, *x.shape[1:]), x))
        return self[str(ENCODER_HEAD)](x)


def _conv3(inputs: int, outputs: int, bias: bool = True, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias, stride=stride)


def _zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    made = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    return made.zero_()


def _frames_to_channels(x: Tensor, batch: int, factor: int) -> Tensor:
    """``[T*B, C, H, W]`` -> ``[T/factor*B, factor*C, H, W]``: neighbouring frames side by side, earlier ones first."""
    if factor == 1:
        return x
    frames, channels, height, width = x.shape
    parts = x.permute(0, 2, 3, 1).reshape(frames // (factor * batch), factor, batch, height, width, channels)
    return parts.permute(0, 2, 3, 4, 1, 5).reshape(frames // factor, height, width, -1).permute(0, 3, 1, 2)


def _channels_to_frames(x: Tensor, batch: int, factor: int) -> Tensor:
    """The inverse of ``_frames_to_channels``."""
    if factor == 1:
        return x
    frames, channels, height, width = x.shape
    parts = x.permute(0, 2, 3, 1).reshape(frames // batch, batch, height, width, factor, channels // factor)
    return parts.permute(0, 4, 1, 2, 3, 5).reshape(frames * factor, height, width, -1).permute(0, 3, 1, 2)
