"""Prepared videos as a recipe names them: opened, checked against the model, and the codec that made their latents."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

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
    make = assemble_registry().factory("decoder", _CODECS[info.model])
    codec = make(ModelRequest(torch.device("cpu"), torch.float32, weights))
    # Videos are prepared in float32 on a CPU and in bfloat16 on a GPU.
    known = {hash_weights({"codec": each}) for each in (codec, copy.deepcopy(codec).bfloat16())}
    if info.weights["codec"] not in known:
        raise UserError(
            f"the videos were encoded with another codec than {weights!r}; name the weights that 'train prepare' used "
            "in the recipe's key codec"
        )
    if device.type == "cuda":
        codec = make(ModelRequest(device, torch.bfloat16, weights))
    return codec.eval().requires_grad_(False)
