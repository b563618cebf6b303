"""From graphs of an export to engines: their keys, and the ranges of their free sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from shotstream.export.engine_store.entry import EngineKey, Profile
from shotstream.export.graphs.decoder_stream import FREE as LATENTS
from shotstream.export.graphs.segments import CAPTIONS, FRAMES, most_frames
from shotstream.export.graphs.step import CACHED
from shotstream.export.graphs.text import TOKENS
from shotstream.export.manifest import Graph, Manifest
from shotstream.export.trt.product import Product
from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError

_USUAL_TOKENS = 64
"""Of a caption."""


def engine_key(
    manifest: Manifest, name: str, product: Product, targets: tuple[str, ...] = (), plugins: str = ""
) -> EngineKey:
    """Key of one graph's engine. UserError if the manifest has no such graph, or its sizes are not known."""
    graph, source = manifest.graph(name), manifest.source
    return EngineKey(
        graph=name,
        weights_hash=source.weights_hash,
        graph_sha256=graph_hash(graph),
        profiles=profiles(name, graph, DiTConfig.from_dict(dict(source.config)), source.latent_shape),
        precision=source.precision,
        product=product.name,
        version=product.version,
        targets=tuple(sorted(targets)),
        plugins=plugins,
    )


def graph_hash(graph: Graph) -> str:
    """SHA-256 (hex) of all files of a graph together."""
    files = " ".join(f"{file}:{digest}" for file, digest in sorted(graph.sha256.items()))
    return hashlib.sha256(files.encode()).hexdigest()


def profiles(name: str, graph: Graph, config: DiTConfig, latent_shape: Sequence[int]) -> dict[str, Profile]:
    """Least, usual and largest shape of every input with free sizes."""
    chunk, tokens = config.chunk_frames, config.tokens_per_frame(latent_shape[1], latent_shape[2])
    held = (config.context_frames + config.local_frames) * tokens
    ranges = {
        FRAMES: (1, chunk, most_frames(config)),
        CAPTIONS: (1, 1, config.context_frames),
        CACHED: (0, held - chunk * tokens, held),
        LATENTS: (1, chunk, chunk),
        TOKENS: (1, min(_USUAL_TOKENS, config.text_len), config.text_len),
    }
    return {
        port.name: _profile(name, port.shape, ranges)
        for port in graph.inputs
        if any(isinstance(size, str) for size in port.shape)
    }


def _profile(name: str, shape: tuple[int | str, ...], ranges: Mapping[str, tuple[int, int, int]]) -> Profile:
    def size(text: int | str, bound: int) -> int:
        if isinstance(text, int):
            return text
        times, _, free = text.rpartition("*")  # such as 40*frames
        if free not in ranges:
            raise UserError(f"the graph '{name}' has the free size {free}, whose range is not known")
        return int(times or 1) * ranges[free][bound]

    least, usual, most = (tuple(size(text, bound) for text in shape) for bound in range(3))
    return least, usual, most
