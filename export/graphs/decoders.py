"""The streaming decoders as specifications of ONNX graphs. What graphs take and give is said in `decoder_stream`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from shotstream.export.graphs.decoder_stream import FIRST, STEP, start_spec, stream_spec
from shotstream.export.graphs.spec import GraphSpec
from shotstream.export.graphs.taehv import TaehvGraph
from shotstream.export.graphs.tiny_vae import TinyVAEGraph
from shotstream.export.graphs.wan_vae import WanVAEGraph
from shotstream.runtime.decoders.taehv import Taehv
from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.decoders.wan_vae import WanVAE
from shotstream.runtime.errors import UserError

MOST_LATENTS = 3
"""Of a call, if nobody says: a chunk's."""
_NAMES = {TinyVAE: "tiny-vae", Taehv: "taehv", WanVAE: "wan-vae"}


def decoder_name(decoder: Any) -> str:
    """Its name in the slot `decoder`; UserError for a decoder that has no graphs."""
    for kind, name in _NAMES.items():
        if isinstance(decoder, kind):
            return name
    raise UserError(f"the decoder {type(decoder).__name__} cannot be exported; {', '.join(_NAMES.values())} can")


def latent_channels(decoder: Any) -> int:
    """Channels of the latents it reads."""
    return int(decoder.config.latent_channels if isinstance(decoder, TinyVAE) else decoder.latent_channels)


def decoder_specs(
    decoder: Any, latent_size: tuple[int, int], most_latents: int = MOST_LATENTS
) -> dict[str, Callable[[], GraphSpec]]:
    """A decoder's graphs by name, in the dtype of its weights, for latents of this height and width.

    most_latents: of a call of the step. UserError for a decoder that has no graphs.
    """
    decoder_name(decoder)
    dtype: torch.dtype = next(decoder.parameters()).dtype
    shape = (latent_channels(decoder), *latent_size)
    if isinstance(decoder, WanVAE):
        first, step = (WanVAEGraph(decoder, first=first).eval() for first in (True, False))
        return {
            FIRST: partial(start_spec, first, shape, dtype),
            STEP: partial(stream_spec, step, shape, dtype, most_latents),
        }
    graph = TaehvGraph(decoder) if isinstance(decoder, Taehv) else TinyVAEGraph(decoder)
    return {STEP: partial(stream_spec, graph.eval(), shape, dtype, most_latents)}
