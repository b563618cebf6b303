"""What fewer bits cost: a film in several precisions against the same film in float32, latents against latents.

Nothing is corrected on the way: every step, chunk and shot starts from what its own precision made before. So the
figures hold rounding and all that it sets off; two samplers that differ by a rounding drift apart with time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shotstream.runtime.bench.measure import BENCH_STORY
from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.engine import GraphEngine
from shotstream.runtime.graph.passes import FusedTransformer
from shotstream.runtime.runtime import Runtime, RuntimeOptions
from shotstream.runtime.sinks.base import replace_file
from shotstream.runtime.storyline import Story, StoryShot

VARIANTS: dict[str, tuple[torch.dtype, str]] = {
    "float32, fp8 cache": (torch.float32, "cache"),
    "float32, fp8 linears": (torch.float32, "linears"),
    "float32, fp8 all": (torch.float32, "all"),
    "bfloat16": (torch.bfloat16, "none"),
    "bfloat16, fp8 all": (torch.bfloat16, "all"),
}


@dataclass(frozen=True)
class FilmError:
    """|latents - float32's| / |float32's| (root mean squares) of one precision's film.

    by_chunk: of the first shot's chunks, in order. by_shot: each shot's latents as one.
    """

    label: str
    by_chunk: tuple[float, ...]
    by_shot: tuple[float, ...]


@dataclass(frozen=True)
class AccuracyReport:
    """All films, and the first chunk's error with one layer's products in eight bits, by layer."""

    model: str
    device: str
    torch: str
    films: tuple[FilmError, ...]
    by_layer: tuple[float, ...] = ()

    def lines(self) -> list[str]:
        """For people."""
        chunks = len(self.films[0].by_chunk)
        marks = sorted({1, min(3, chunks), chunks})
        head = [f"chunk {mark}" for mark in marks] + [f"shot {i + 1}" for i in range(len(self.films[0].by_shot))]
        width = max(len(film.label) for film in self.films)
        made = [f"{self.model} on {self.device}, torch {self.torch}: error of the latents against float32"]
        made.append(" " * width + "".join(f"{name:>10}" for name in head))
        for film in self.films:
            figures = [film.by_chunk[mark - 1] for mark in marks] + list(film.by_shot)
            made.append(f"{film.label:<{width}}" + "".join(f"{figure:>10.1e}" for figure in figures))
        if self.by_layer:
            made.append("first chunk, products of one layer in eight bits, by layer:")
            made.append(" ".join(f"{error:.1e}" for error in self.by_layer))
        return made

    def write_json(self, path: Path) -> None:
        """Every figure."""
        replace_file(path, json.dumps(asdict(self), indent=1).encode())


class _Noted:
    """An engine, with a record of the latents it makes."""

    def __init__(self, engine: GraphEngine) -> None:
        self._engine = engine
        self.latents: list[Tensor] = []

    def finish(self, *arguments: Any) -> Tensor:
        """As the engine's."""
        made = self._engine.finish(*arguments)
        self.latents.append(made.double().cpu())
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def accuracy(
    model: str,
    options: RuntimeOptions,
    *,
    shots: int = 5,
    chunks: int = 7,
    by_layer: bool = True,
    story: Story = BENCH_STORY,
    tell: Callable[[str], None] = lambda what: None,
) -> AccuracyReport:
    """Play a story in every precision, by the engine `graph`. options: device, weights and the like.

    by_layer: also one chunk per layer. UserError as of `Runtime`, and for options that the comparison sets itself.
    """
    if options.engine_options or options.dtype is not None:
        raise UserError("precisions are what is compared; leave the number format and the engine's options away")

    def film(dtype: torch.dtype, fp8: str, shots: int, chunks: int, layer: int | None = None) -> list[Tensor]:
        runtime = Runtime(model, options, engine="graph", dtype=dtype, engine_options={"fp8": fp8})
        with runtime:
            engine = runtime.engine
            assert isinstance(engine, GraphEngine)
            if layer is not None:
                eight_bit = [i == layer for i in range(runtime.parts.config.layers)]
                size = runtime.parts.latent_shape[1:]
                engine.passes = FusedTransformer(engine.model, engine.ops, engine.attention, size, eight_bit)
            noted: Any = _Noted(engine)
            runtime.engine = noted
            with runtime.open(story.global_caption, seed=0) as session:
                for number in range(shots):
                    session.begin_shot(captions[number % len(captions)], chunks)
                    for _ in session.chunks():
                        pass
        latents: list[Tensor] = noted.latents
        return latents

    captions = [shot.caption for shot in story.entries if isinstance(shot, StoryShot)]
    tell("float32")
    exact = film(torch.float32, "none", shots, chunks)
    films = []
    for label, (dtype, fp8) in VARIANTS.items():
        tell(label)
        films.append(_film_error(label, film(dtype, fp8, shots, chunks), exact, chunks))
    layers: list[float] = []
    if by_layer:
        with Runtime(model, options) as runtime:
            count = runtime.parts.config.layers
        for layer in range(count):
            tell(f"layer {layer + 1} of {count}")
            layers.append(_error(film(torch.float32, "none", 1, 1, layer), exact[:1]))
    return AccuracyReport(model, options.device, torch.__version__, tuple(films), tuple(layers))


def _film_error(label: str, made: Sequence[Tensor], exact: Sequence[Tensor], chunks: int) -> FilmError:
    by_chunk = tuple(_error([a], [b]) for a, b in zip(made[:chunks], exact[:chunks], strict=True))
    starts = range(0, len(exact), chunks)
    by_shot = tuple(_error(made[start : start + chunks], exact[start : start + chunks]) for start in starts)
    return FilmError(label, by_chunk, by_shot)


def _error(made: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    a, b = torch.cat(list(made)), torch.cat(list(exact))
    return float((a - b).norm() / b.norm())
