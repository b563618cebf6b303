"""Which graphs an export of a model consists of, and how each is specified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from shotstream.export.graphs.decoders import decoder_specs
from shotstream.export.graphs.segments import segment_spec
from shotstream.export.graphs.spec import OPSET, GraphSpec
from shotstream.export.graphs.step import step_spec
from shotstream.export.graphs.step_in_place import CONTEXT_IN_PLACE, STEP_IN_PLACE, step_in_place_spec
from shotstream.export.graphs.step_in_place import OPSET as IN_PLACE_OPSET
from shotstream.export.graphs.text import text_specs
from shotstream.export.segments.cut import TEXT as TEXT_SEGMENT
from shotstream.export.segments.cut import cut
from shotstream.runtime.config import TINY, WAN_1_3B, DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import ModelParts
from shotstream.runtime.presets import TINY_LATENT, hash_weights, load_transformer
from shotstream.runtime.wan import RandomTextEncoder, WanSizes

SEGMENTS, STEP, DECODER, TEXT = CONTENTS = ("segments", "step", "decoder", "text")
"""Kinds of graphs. Segments bear the names of `segments.cut.signatures`, others begin with their kind."""
IN_PLACE = STEP_IN_PLACE
"""A further kind, only made when named: for TensorRT, in an opset and thus a folder of its own."""

Specs = dict[str, Callable[[], GraphSpec]]


def graph_specs(parts: ModelParts, dtype: torch.dtype, wanted: Sequence[str] = CONTENTS) -> Specs:
    """Specifications by graph name, of the kinds wanted that the model has."""
    specs: Specs = {}
    transformer, latent_shape = parts.transformer, parts.latent_shape
    if SEGMENTS in wanted:
        for name, module in cut(transformer, latent_shape).items():
            specs[name] = partial(segment_spec, name, module, parts.config, latent_shape, dtype)
    if STEP in wanted:
        specs[STEP] = partial(step_spec, transformer, latent_shape, dtype)
    if IN_PLACE in wanted:
        in_place = partial(step_in_place_spec, transformer, latent_shape, dtype, attention="tensorrt")
        frames = parts.config.context_frames
        text = cut(transformer, latent_shape)[TEXT_SEGMENT]
        specs[TEXT_SEGMENT] = partial(segment_spec, TEXT_SEGMENT, text, parts.config, latent_shape, dtype)
        specs[CONTEXT_IN_PLACE] = partial(in_place, frames=frames, captions=frames)
        specs[STEP_IN_PLACE] = in_place
    if DECODER in wanted and parts.decoder is not None:
        specs |= decoder_specs(parts.decoder, latent_shape[1:])
    if TEXT in wanted and parts.text is not None and not isinstance(parts.text, RandomTextEncoder):
        specs |= text_specs(parts.text)
    return specs


def opset_of(wanted: Sequence[str], given: int | None) -> int:
    """The opset to export in; UserError if what is wanted does not exist in the one given."""
    least = IN_PLACE_OPSET if IN_PLACE in wanted else OPSET
    if given is not None and given < least:
        raise UserError(f"{', '.join(wanted)} needs --opset {least} or higher, not {given}")
    return least if given is None else given


def chosen_contents(given: str | None) -> tuple[str, ...]:
    """Kinds named on the command line, separated by commas; all if none were. UserError for one that does not exist."""
    if given is None:
        return CONTENTS
    names = tuple(name.strip() for name in given.split(",") if name.strip())
    for name in names or (given,):
        if name not in (*CONTENTS, IN_PLACE):
            raise UserError(f"an export has no {name!r}; it has {', '.join((*CONTENTS, IN_PLACE))}")
    if IN_PLACE in names and len(names) > 1:
        raise UserError(f"{IN_PLACE} needs a newer opset than the rest; give it an --out of its own: --only {IN_PLACE}")
    return names


def parts_of_file(path: Path, dtype: torch.dtype, latent_size: tuple[int, int] | None) -> ModelParts:
    """A transformer from one of our safetensors files, without decoder and text encoder.

    latent_size: height and width; None: that of the preset with the same configuration, or UserError.
    """
    transformer = load_transformer(path).to(dtype).requires_grad_(False).eval()
    config = transformer.config
    size = latent_size or _known_size(config)
    if size is None:
        raise UserError(f"{path} does not say how large its latents are; give --latent-size HEIGHTxWIDTH")
    config.tokens_per_frame(*size)
    nothing = cast(Any, None)
    hashed = hash_weights({"dit": transformer})
    return ModelParts(path.stem, config, transformer, nothing, nothing, hashed, (config.channels, *size), (0, 0))


def _known_size(config: DiTConfig) -> tuple[int, int] | None:
    sizes = {TINY: TINY_LATENT, WAN_1_3B: WanSizes().latent_size}
    shape = (config.dim, config.layers, config.channels)
    return next((size for known, size in sizes.items() if (known.dim, known.layers, known.channels) == shape), None)
