"""The model that a command of this room is about: a preset, or one of our safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from shotstream.runtime.config import TINY, WAN_1_3B, DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import ModelParts, ModelRequest
from shotstream.runtime.presets import TINY_LATENT, hash_weights, load_transformer
from shotstream.runtime.runtime import assemble_registry
from shotstream.runtime.wan import WanSizes


def load_parts(
    model: str, weights: str, dtype: torch.dtype, decoder: str | None = None, latent_size: str | None = None
) -> ModelParts:
    """A preset's parts on the CPU, or a file's transformer without decoder and text encoder.

    latent_size: of a file's model, as HEIGHTxWIDTH in latents; None: that of the preset with the same configuration.
    UserError if neither preset nor file is there, or the size is not known.
    """
    registry = assemble_registry()
    names = registry.names("model")
    if model in names:
        if latent_size is not None:
            raise UserError("--latent-size is for models given as a file; a preset has its own")
        request = ModelRequest(torch.device("cpu"), dtype, weights=weights, decoder=decoder)
        parts: ModelParts = registry.factory("model", model)(request)
        return parts
    path = Path(model)
    if path.suffix != ".safetensors":
        raise UserError(f"there is no model '{model}'; there is {', '.join(names)}, or give a .safetensors file")
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    return _of_file(path, dtype, None if latent_size is None else _size(latent_size))


def _of_file(path: Path, dtype: torch.dtype, latent_size: tuple[int, int] | None) -> ModelParts:
    transformer = load_transformer(path).to(dtype).requires_grad_(False).eval()
    config = transformer.config
    size = latent_size or _known_size(config)
    if size is None:
        raise UserError(f"{path} does not say how large its latents are; give --latent-size HEIGHTxWIDTH")
    config.tokens_per_frame(*size)  # UserError where the patches do not fit
    nothing = cast(Any, None)
    hashed = hash_weights({"dit": transformer})
    return ModelParts(path.stem, config, transformer, nothing, nothing, hashed, (config.channels, *size), (0, 0))


def _known_size(config: DiTConfig) -> tuple[int, int] | None:
    sizes = {TINY: TINY_LATENT, WAN_1_3B: WanSizes().latent_size}
    shape = (config.dim, config.layers, config.channels)
    return next((size for known, size in sizes.items() if (known.dim, known.layers, known.channels) == shape), None)


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(part) for part in text.lower().split("x"))
        if height < 1 or width < 1:
            raise ValueError
    except ValueError:
        raise UserError(f"--latent-size is HEIGHTxWIDTH, such as 60x104, not {text!r}") from None
    return height, width
