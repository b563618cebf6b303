"""Which graphs an export of a model consists of, and how each is specified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

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
from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import ModelParts
from shotstream.runtime.wan import RandomTextEncoder

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
