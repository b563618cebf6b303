"""The real model's video codec: the Wan2.1 VAE through diffusers' ``AutoencoderKLWan``, with our own streaming.

Diffusers provides the layers; the order of calls, the feature cache and the normalisation are here. The cache of a
stream is explicit (one slot per causal convolution, owned by the stream and not by the module), so any number of
streams can run on one set of weights, and decoding chunk by chunk equals decoding the whole shot bit for bit:
both feed one latent frame at a time.

Nothing in a chunk waits for the device: what is decided is decided by shapes and counters, and constants are on the
device from the start. What the layers cost on paper stands in README.md beside this file.

Letters: B clips, F latent frames, N images, C channels, H W height and width. Pixels are in [-1, 1].
Source: reference ``wan/modules/vae.py`` and the VAE wrapper of ``utils/wan_wrapper.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shotstream.runtime.decoders.common import SPACE_FACTOR, TIME_FACTOR, check_latents, check_pixels
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.checkpoint_files import open_weights
from shotstream.runtime.model.key_maps import named, wan_vae_to_diffusers
from shotstream.runtime.model.state_dicts import check_shapes, placed
from shotstream.runtime.optional import require

NAME = "wan-vae"
PARAMETERS = 126_892_531

# Per channel, as published with Wan2.1.
LATENT_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENT_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


@dataclass(frozen=True)
class WanVAEConfig:
    """Sizes of the codec; the defaults are the released model's, tests use a small ``base_dim``."""

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)  # diffusers' spelling


@dataclass(frozen=True)
class WanVAEOptions:
    """How the codec runs. The result is the same up to rounding."""

    channels_last: bool | None = None
    """Weights and feature maps in channels-last layout, set once at load. None: on CUDA, whose convolutions want it."""
    latents_per_call: int = 1
    """Latents that go through the decoder together behind a shot's first, which always goes alone. More make fewer
    launches and copy less, and take working memory in proportion. Only with 1 is decoding in chunks bit for bit that
    of the whole shot."""

    def __post_init__(self) -> None:
        if self.latents_per_call < 1:
            raise UserError(f"latents_per_call is at least 1, not {self.latents_per_call}")


@dataclass
class WanStream:
    """A shot being decoded: what every causal convolution remembers, and how many latents have gone through."""

    features: list[Any]
    frames: int = 0


@dataclass
class _Norm:
    """Mean and reciprocal deviation ``[1, C, 1, 1, 1]`` in the tensor's dtype, rounded as the reference does."""

    mean: Tensor
    scale: Tensor
    cache: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, mean: tuple[float, ...], std: tuple[float, ...]) -> _Norm:
        return cls(torch.tensor(mean), torch.tensor(std))

    def at(self, like: Tensor) -> tuple[Tensor, Tensor]:
        key = (like.device, like.dtype)
        if key not in self.cache:
            # Deviation first rounded to the dtype, then inverted in it.
            mean, std = (t.to(*key).view(1, -1, 1, 1, 1) for t in (self.mean, self.scale))
            self.cache[key] = (mean, 1.0 / std)
        return self.cache[key]


class WanVAE(nn.Module):
    """Streaming decoder and encoder over diffusers' layers.

    ``autoencoder`` is an ``AutoencoderKLWan`` in eval mode; its weights change their layout if the options say so.
    Use :func:`load_wan_vae` or :func:`random_wan_vae`.
    """

    def __init__(
        self,
        autoencoder: Any,
        mean: tuple[float, ...] = LATENT_MEAN,
        std: tuple[float, ...] = LATENT_STD,
        options: WanVAEOptions | None = None,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.options = options or WanVAEOptions()
        weight = next(self.parameters())
        wanted = self.options.channels_last
        self._channels_last = weight.device.type == "cuda" if wanted is None else wanted
        if self._channels_last:
            _use_channels_last(autoencoder)
        self._norm = _Norm.of(mean, std)
        self._norm.at(weight)  # to the device now: the first chunk would wait for the copy
        self._decoder_slots = _causal_convolutions(autoencoder.decoder)
        self._encoder_slots = _causal_convolutions(autoencoder.encoder)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents it reads."""
        return int(self.autoencoder.config.z_dim)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights; inputs are cast to it."""
        return next(self.parameters()).dtype

    def new_stream(self, batch: int = 1) -> WanStream:
        """The empty memory of a new shot; a stream serves one shot only. ``batch`` follows from the first chunk."""
        if batch < 1:
            raise UserError(f"a stream needs at least one clip, not {batch}")
        return WanStream([None] * self._decoder_slots)

    @torch.no_grad()
    def decode_chunk(self, z_BFCHW: Tensor, stream: WanStream) -> Tensor:
        """The next latents of a shot to pixels ``[B, f, 3, 8H, 8W]``: f = 4F - 3 at the shot's start, 4F later.

        Result in the weights' dtype, clamped to [-1, 1].
        """
        check_latents(z_BFCHW, self.latent_channels, NAME)
        z = z_BFCHW.to(self.dtype).transpose(1, 2)
        mean, scale = self._norm.at(z)
        z = self._laid_out(z / scale + mean)
        batch, _, frames, height, width = z.shape
        made = TIME_FACTOR * frames - (TIME_FACTOR - 1 if stream.frames == 0 else 0)
        shape = (batch, made, 3, SPACE_FACTOR * height, SPACE_FACTOR * width)
        pixels_BTCHW = torch.empty(shape, dtype=z.dtype, device=z.device)
        done = 0
        for start, stop in self._calls(frames, stream.frames):
            x = self.autoencoder.post_quant_conv(z[:, :, start:stop])
            first = stream.frames == 0
            part = self.autoencoder.decoder(x, feat_cache=stream.features, feat_idx=[0], first_chunk=first)
            stream.frames += stop - start
            place = pixels_BTCHW[:, done : done + part.shape[2]]
            torch.clamp(part.transpose(1, 2), -1.0, 1.0, out=place)
            done += part.shape[2]
        return pixels_BTCHW

    def decode(self, z_BFCHW: Tensor) -> Tensor:
        """A whole shot to pixels ``[B, 1 + 4(F - 1), 3, 8H, 8W]``: one stream, one chunk."""
        return self.decode_chunk(z_BFCHW, self.new_stream(z_BFCHW.shape[0]))

    @torch.no_grad()
    def encode(self, video_BTCHW: Tensor) -> Tensor:
        """A clip of T = 4m + 1 frames to normalised latents ``[B, 1 + m, C, H/8, W/8]`` (the posterior's mean)."""
        if video_BTCHW.shape[1] % TIME_FACTOR != 1:
            raise UserError(f"a clip has 4m + 1 frames, not {video_BTCHW.shape[1]}; drop the last ones")
        check_pixels(video_BTCHW)
        x = self._laid_out(video_BTCHW.to(self.dtype).transpose(1, 2))
        features: list[Any] = [None] * self._encoder_slots
        spans = [x[:, :, :1], *x[:, :, 1:].split(TIME_FACTOR, dim=2)] if x.shape[2] > 1 else [x]
        parts = [self.autoencoder.encoder(span, feat_cache=features, feat_idx=[0]) for span in spans]
        moments = self.autoencoder.quant_conv(torch.cat(parts, dim=2) if len(parts) > 1 else parts[0])
        mu = moments.chunk(2, dim=1)[0]
        mean, scale = self._norm.at(mu)
        return ((mu - mean) * scale).transpose(1, 2)

    def encode_frames(self, frames_NCHW: Tensor) -> Tensor:
        """Context frames to latents ``[N, C, H/8, W/8]``, every one a clip of its own.

        One at a time: memory stays that of one frame, and a frame's latent does not depend on its neighbours.
        """
        latents = [self.encode(frame[None, None])[:, 0] for frame in frames_NCHW]
        return torch.cat(latents) if len(latents) > 1 else latents[0]

    def _laid_out(self, x_BCFHW: Tensor) -> Tensor:
        return x_BCFHW.contiguous(memory_format=torch.channels_last_3d) if self._channels_last else x_BCFHW

    def _calls(self, frames: int, before: int) -> Iterator[tuple[int, int]]:
        """Which of a chunk's latents go through the decoder together; ``before``: how many the shot had until now."""
        start = 0
        while start < frames:
            count = 1 if before + start == 0 else self.options.latents_per_call
            yield start, min(start + count, frames)
            start += count


def _use_channels_last(module: nn.Module) -> None:
    """Lay the kernels of all convolutions out once; cuDNN then works and answers in that layout."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d | nn.Conv2d):
            layout = torch.channels_last_3d if isinstance(part, nn.Conv3d) else torch.channels_last
            part.weight.data = part.weight.data.contiguous(memory_format=layout)


def _causal_convolutions(module: nn.Module) -> int:
    """How many cache slots a pass through ``module`` may take."""
    return sum(type(m).__name__ == "WanCausalConv3d" for m in module.modules())


def _autoencoder(config: WanVAEConfig, device: torch.device | str) -> nn.Module:
    diffusers = require("diffusers", "the Wan VAE")
    with torch.device(device):
        return diffusers.AutoencoderKLWan(
            base_dim=config.base_dim,
            z_dim=config.z_dim,
            dim_mult=list(config.dim_mult),
            num_res_blocks=config.num_res_blocks,
            attn_scales=[],
            temperal_downsample=list(config.temperal_downsample),
        ).eval()


def random_wan_vae(
    config: WanVAEConfig | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    options: WanVAEOptions | None = None,
) -> WanVAE:
    """A codec of this size with random weights (tests, dry runs); the same seed gives the same on a device type."""
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        module = _autoencoder(config or WanVAEConfig(), device)
    return WanVAE(module.requires_grad_(False).to(dtype), options=options)


def load_wan_vae(
    path: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    options: WanVAEOptions | None = None,
) -> WanVAE:
    """Load ``Wan2.1_VAE.pth`` or a diffusers ``vae`` folder or file; the width is read from the weights."""
    file = open_weights(path)
    return wan_vae_from(file.content, device, dtype, where=str(file.path), options=options)


def wan_vae_from(
    sd: Mapping[str, Tensor],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    mean: tuple[float, ...] = LATENT_MEAN,
    std: tuple[float, ...] = LATENT_STD,
    where: str = "the state dict",
    options: WanVAEOptions | None = None,
) -> WanVAE:
    """A codec from a state dict in either layout; ``UserError`` names missing, extra and mis-shaped keys."""
    if any(key.startswith(("encoder.downsamples", "decoder.upsamples")) for key in sd):
        sd = wan_vae_to_diffusers(sd)
    if "encoder.conv_in.weight" not in sd or "post_quant_conv.weight" not in sd:
        raise UserError(f"{where} holds no Wan VAE: its keys start with {named(sd)}")
    config = WanVAEConfig(base_dim=sd["encoder.conv_in.weight"].shape[0], z_dim=sd["post_quant_conv.weight"].shape[0])
    module = _autoencoder(config, "meta")
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    check_shapes(sd, shapes, where, f"a Wan VAE of width {config.base_dim}")
    module.load_state_dict(placed(sd, device, dtype), assign=True)
    return WanVAE(module.requires_grad_(False), mean, std, options)
