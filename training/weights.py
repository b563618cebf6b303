"""Weights that leave training: safetensors with the configuration as json in the metadata. No optimizer state."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.state_dicts import FORMAT, content_hash, write_safetensors
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.plugins import ModelRequest
from shotstream.runtime.presets import weights_file
from shotstream.runtime.sinks.base import replace_file
from shotstream.runtime.text.tiny import TinyTextConfig, TinyTextEncoder


def save_weights(
    weights: nn.Module | Mapping[str, Tensor], config_json: str, path: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write a module's state dict, or one by itself, in ``dtype`` with its configuration; atomic."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in state.items()}
    metadata = {"format": FORMAT, "config": config_json, "sha256": content_hash(tensors)}
    write_safetensors(path, tensors, metadata)


def _read(path: Path, made_by: str) -> tuple[dict[str, Tensor], str]:
    if not path.exists():
        raise UserError(f"{path} does not exist; run 'shotstream train {made_by}' first")
    try:
        with safe_open(path, "pt") as file:
            config = (file.metadata() or {}).get("config", "")
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118  (not a mapping)
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); run 'shotstream train {made_by}' again"
        ) from error
    if not config:
        raise UserError(f"{path} carries no configuration; it was not written by 'shotstream train {made_by}'")
    return tensors, config


log = logging.getLogger(__name__)

STARTED = {"vae": "vae", "text": "text", "inter": "dit"}
"""In whose places a model's weights stand in a run that goes on with them: parts by stage."""


def weights_of(weights: str, part: str) -> Path:
    """A part's file of "default", the weights that are shipped, or of a folder. UserError if it is not there."""
    return weights_file(ModelRequest(torch.device("cpu"), torch.float32, weights), part)


def begin_with(weights: str, run: Path, without: str = "") -> None:
    """Put a model's codec, text encoder and student where a run expects what its first stages have made; once.

    weights: "default", those that are shipped, or a folder. without: the stage that the run does itself. A run that
    began with others keeps them, and says so. Raises UserError if they are not there.
    """
    for stage, part in STARTED.items():
        if stage == without:
            continue
        there, place = weights_of(weights, part), run / stage / f"{part}.safetensors"
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            replace_file(place, there.read_bytes())
        elif place.read_bytes() != there.read_bytes():
            log.warning("%s goes on with its own %s, which is not that of %s", run, place.relative_to(run), weights)


def trained_codec(run: Path) -> Path:
    """The codec of a run's folder as it is shipped: with the decoder that was trained further, if there is one."""
    further = run / "decoder" / "vae.safetensors"
    return further if further.exists() else run / "vae" / "vae.safetensors"


def load_dit_weights(path: Path, made_by: str) -> Transformer:
    """A transformer written by the stage ``made_by``."""
    tensors, config = _read(path, made_by)
    model = Transformer(DiTConfig.from_json(config))
    model.load_state_dict(tensors)
    return model


def load_text_weights(path: Path, made_by: str = "text") -> TinyTextEncoder:
    """The text encoder written by the text stage."""
    tensors, config = _read(path, made_by)
    text = TinyTextEncoder(TinyTextConfig.from_json(config))
    text.load_state_dict(tensors)
    return text.eval()
