"""Whether a model's products may be eight-bit: the range of their inputs, and what rounding them does to its films.

Both are found by playing shots with the segments in torch, on a CPU if need be; eight bits are emulated there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from shotstream.export.files import json_of, writing
from shotstream.export.fp8.emulation import emulated, places, watched
from shotstream.export.fp8.products import PRODUCTS, Product, eight_bit_products
from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.runtime import Runtime
from shotstream.runtime.story import load_story
from shotstream.runtime.storyline import StoryShot

REPORT = "accuracy.json"
CHECKED_CHUNKS = (1, 3, 7)
"""After how many chunks of a shot the error is looked at: it grows, since chunks are made from chunks."""
LARGEST_LOSS = 0.15
"""Relative error of latents after the last of them, beyond which eight bits are refused."""
LAYER_SETS: Mapping[str, tuple[str, ...]] = {
    "self-attention": ("qkv", "o"),
    "cross-attention": ("cross_q", "cross_o"),
    "feed-forward": ("up", "down"),
    "all": PRODUCTS,
}


@dataclass(frozen=True)
class Shots:
    """What is played: shots of seven chunks each, one after another; the last one is looked at."""

    global_caption: str
    captions: Sequence[str]
    seed: int = 0


@dataclass(frozen=True)
class Accuracy:
    """Of one set of eight-bit products, beside the same film without.

    errors: relative error (root of mean squares) of the latents of the first 1, 3 and 7 chunks. psnr: of their pixel
    frames, dB.
    """

    products: int
    errors: Mapping[int, float]
    psnr: float


@dataclass(frozen=True)
class Report:
    """A calibration's result. amax: largest input by product, "block.kind". layer_sets: by name."""

    weights_hash: str
    exact_blocks: int
    amax: Mapping[str, float]
    layer_sets: Mapping[str, Accuracy]

    def loss(self) -> float:
        """Relative error after the last chunk with every product in eight bits."""
        return self.layer_sets["all"].errors[CHECKED_CHUNKS[-1]]

    def largest_inputs(self) -> dict[Product, float]:
        """`amax` by product."""
        split = {name: name.partition(".") for name in self.amax}
        return {(int(block), kind): self.amax[name] for name, (block, _, kind) in split.items()}


def calibrate(
    runtime: Runtime, shots: Shots, exact_blocks: int = 1, tell: Callable[[str], None] = lambda what: None
) -> Report:
    """Play the shots once as they are, watching, and once per layer set. runtime: of the engine `torch-segments`.

    UserError for a model that has no blocks but the exact ones at either end.
    """
    engine: Any = runtime.engine
    config: DiTConfig = runtime.parts.config
    wanted = eight_bit_products(config, exact_blocks)
    if not wanted:
        raise UserError(
            f"a model of {config.layers} blocks, {exact_blocks} at either end exact, has none for eight bits"
        )
    found = {product: place for product, place in places(engine.passes.runner.modules).items() if product in wanted}
    tell("as it is")
    with watched(found) as seen:
        exact = play(runtime, shots)
    amax = {product: float(most) for product, most in sorted(seen.items())}
    sets = {}
    for name, kinds in LAYER_SETS.items():
        tell(f"{name} in eight bits")
        some = {product: place for product, place in found.items() if product[1] in kinds}
        with emulated(some, amax):
            sets[name] = compare(exact, play(runtime, shots), len(some))
    named = {f"{block}.{kind}": most for (block, kind), most in amax.items()}
    return Report(runtime.parts.weights_hash, exact_blocks, named, sets)


Played = tuple[list[Tensor], np.ndarray]


def play(runtime: Runtime, shots: Shots) -> Played:
    """Latents and frames of the last shot, chunk by chunk."""
    engine: Any = runtime.engine
    real = engine.finish
    latents: list[Tensor] = []

    def noted(*given: Any) -> Tensor:
        latents.append(real(*given))
        return latents[-1]

    session = runtime.open(shots.global_caption, seed=shots.seed)
    engine.finish = noted
    try:
        for caption in shots.captions:
            latents.clear()
            session.begin_shot(caption, CHECKED_CHUNKS[-1])
            frames = [chunk.frames for chunk in session.chunks()]
    finally:
        del engine.finish
        session.close()
    return latents, np.stack([frame for chunk in frames for frame in chunk])


def compare(exact: Played, rounded: Played, products: int) -> Accuracy:
    """The second beside the first."""
    errors = {}
    for chunks in CHECKED_CHUNKS:
        a, b = (torch.cat(film[0][:chunks], dim=1).double() for film in (exact, rounded))
        errors[chunks] = float((b - a).norm() / a.norm())
    square = float(np.mean((exact[1].astype(np.float64) - rounded[1].astype(np.float64)) ** 2))
    return Accuracy(products, errors, float(10 * np.log10(255**2 / max(square, 1e-9))))


def shots_of(story: Path | None = None, count: int = 2) -> Shots:
    """The first shots of a story file; None: of the demo's, in the words that the embedded model knows.

    UserError for a file that is no story, or begins with a choice.
    """
    if story is None:
        with resources.as_file(resources.files("shotstream.runtime") / "stories" / "demo.yaml") as path:
            return shots_of(path, count)
    told = load_story(story)
    captions = [entry.caption for entry in told.entries if isinstance(entry, StoryShot)][:count]
    if not captions:
        raise UserError(f"{story} begins with no shot; a calibration plays the first {count}")
    return Shots(told.global_caption, captions)


def write_report(folder: Path, report: Report) -> None:
    """Into the folder of the graphs that are made with it. UserError if that cannot be written."""
    with writing(folder / REPORT):
        (folder / REPORT).write_bytes(json_of(report))


def read_report(folder: Path) -> Report | None:
    """The report in a folder; None if there is none. UserError if it cannot be read."""
    try:
        return msgspec.json.decode((folder / REPORT).read_bytes(), type=Report)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise UserError(f"{folder / REPORT} cannot be read: {error}; delete it and calibrate again") from error
