"""What preparing videos needs of a model: codec, text encoder and sizes, without the transformer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from shotstream.runtime.config import TINY, WAN_1_3B, DiTConfig
from shotstream.runtime.decoders.common import TIME_FACTOR
from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import ModelRequest, TextEncoder
from shotstream.runtime.presets import TINY_LATENT, hash_weights
from shotstream.runtime.runtime import assemble_registry, checked_device
from shotstream.runtime.wan import WanSizes


class Codec(Protocol):
    """Pixels in [-1, 1] to latents."""

    def encode(self, video_BTCHW: Tensor) -> Tensor:
        """Latents ``[B, 1 + m, C, h, w]`` of clips of 4m + 1 frames."""
        ...

    def encode_frames(self, frames_NCHW: Tensor) -> Tensor:
        """Latents ``[N, C, h, w]`` of frames, every one encoded alone."""
        ...


@dataclass(frozen=True)
class VideoModel:
    """``frames``: pixel frames of a clip unless asked otherwise, 4m + 1. ``weights``: hashes by part."""

    name: str
    config: DiTConfig
    codec: Codec
    text: TextEncoder
    frame_size: tuple[int, int]
    latent_size: tuple[int, int]
    frames: int
    device: torch.device
    weights: dict[str, str]
    fps: int = 16

    @property
    def shortest(self) -> int:
        """Pixel frames of the shortest shot that can be learnt: one chunk."""
        return 1 + TIME_FACTOR * (self.config.chunk_frames - 1)


def load_video_model(name: str, device: str = "cpu", weights: str | Path = "default") -> VideoModel:
    """`tiny` or `wan-1.3b`, weights as for a runtime: "default", "random" or a folder. UserError for another name.

    The number format is the runtime's: float32 on a CPU, bfloat16 on a GPU.
    """
    wan = WanSizes()
    # preset: configuration, codec, text encoder, frame size, latent size, frames of a clip
    known = {
        "tiny": (TINY, "tiny-vae", "tiny", (16 * TINY_LATENT[0], 16 * TINY_LATENT[1]), TINY_LATENT, 33),
        "wan-1.3b": (WAN_1_3B, "wan-vae", "umt5-xxl", wan.frame_size, wan.latent_size, 81),
    }
    if name not in known:
        raise UserError(f"videos are prepared for {' or '.join(known)}, not for {name!r}")
    config, codec_name, text_name, frame_size, latent_size, frames = known[name]
    place = checked_device(device)
    request = ModelRequest(place, torch.bfloat16 if place.type == "cuda" else torch.float32, weights)
    registry = assemble_registry()
    codec, text = registry.factory("decoder", codec_name)(request), registry.factory("text", text_name)(request)
    hashes = {"codec": hash_weights({"codec": codec})}
    if isinstance(text, nn.Module):  # umT5 comes in one version, and reading its 11 GB once more takes minutes
        hashes["text"] = hash_weights({"text": text})
    return VideoModel(name, config, codec, text, frame_size, latent_size, frames, place, hashes)
