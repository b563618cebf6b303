"""From graphs of an export to engines: their keys, and the ranges of their free sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from shotstream.export.artifact import Graph, Manifest
from shotstream.export.segment_graphs import CAPTIONS, FRAMES, most_frames
from shotstream.export.store_entry import EngineKey, Profile
from shotstream.export.trt.product import Product
from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError


def engine_key(manifest: Manifest, name: str, product: Product, targets: tuple[str, ...] = ()) -> EngineKey:
    """Key of one graph's engine. UserError if the manifest has no such graph, or its sizes are not known."""
    graph, source = manifest.graph(name), manifest.source
    return EngineKey(
        graph=name,
        weights_hash=source.weights_hash,
        graph_sha256=graph_hash(graph),
        profiles=profiles(name, graph, DiTConfig.from_dict(dict(source.config))),
        precision=source.precision,
        product=product.name,
        version=product.version,
        targets=tuple(sorted(targets)),
    )


def graph_hash(graph: Graph) -> str:
    """SHA-256 (hex) of all files of a graph together."""
    files = " ".join(f"{file}:{digest}" for file, digest in sorted(graph.sha256.items()))
    return hashlib.sha256(files.encode()).hexdigest()


def profiles(name: str, graph: Graph, config: DiTConfig) -> dict[str, Profile]:
    """Least, usual and largest shape of every input with free sizes."""
    ranges = {
        FRAMES: (1, config.chunk_frames, most_frames(config)),
        CAPTIONS: (1, 1, config.context_frames),
    }
    return {
        port.name: _profile(name, port.shape, ranges)
        for port in graph.inputs
        if any(isinstance(size, str) for size in port.shape)
    }


def _profile(name: str, shape: tuple[int | str, ...], ranges: Mapping[str, tuple[int, int, int]]) -> Profile:
    if unknown := [size for size in shape if isinstance(size, str) and size not in ranges]:
        raise UserError(f"the graph '{name}' has the free size {unknown[0]}, whose range is not known")
    least, usual, most = (tuple(ranges[s][i] if isinstance(s, str) else s for s in shape) for i in range(3))
    return least, usual, most
