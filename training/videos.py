"""Prepared videos as a recipe names them: opened, checked against the model, and the codec that made their latents."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import ModelRequest
from shotstream.runtime.presets import hash_weights
from shotstream.runtime.runtime import assemble_registry
from shotstream.training.data.prepared import DatasetInfo
from shotstream.training.data.video_latents import VideoLatents
from shotstream.training.stages.given import Codec

_CODECS = {"tiny": "tiny-vae", "wan-1.3b": "wan-vae"}


def open_videos(folder: Path, config: DiTConfig) -> VideoLatents:
    """The prepared videos of a recipe; UserError if there are none or they were made for a model of other sizes."""
    if not str(folder) or str(folder) == ".":
        raise UserError("the recipe says source: videos, but not where they are; add videos: FOLDER")
    data = VideoLatents(folder)
    info = data.info
    made_for = {"channels": info.latent[0], "text_len": info.text[0], "text_dim": info.text[1]}
    for name, value in (made_for | {"context_frames": info.context}).items():
        if getattr(config, name) != value:
            raise UserError(
                f"{folder} was prepared for a model with {name} {value}, the recipe's has {getattr(config, name)}; "
                "prepare the videos for this model, or change the recipe's model"
            )
    return data


def load_codec(info: DatasetInfo, weights: str, device: torch.device) -> Codec:
    """The codec of prepared videos; UserError if these weights are not the ones they were encoded with."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    codec = assemble_registry().factory("decoder", _CODECS[info.model])(ModelRequest(device, dtype, weights))
    if hash_weights({"codec": codec}) != info.weights["codec"]:
        raise UserError(
            f"the videos were encoded with another codec than {weights!r}; name the weights that 'train prepare' used "
            "in the recipe's key codec"
        )
    if isinstance(codec, nn.Module):
        codec.eval().requires_grad_(False)
    return codec
