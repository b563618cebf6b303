"""How well the cut finders do on true renders, whose cuts are known, and what a frame costs them.

python -m shotstream.training.evaluation.compare_cuts --stories 20
"""

from __future__ import annotations

import time
from typing import Annotated

import numpy as np
import torch
import typer

from shotstream.runtime.errors import UserError
from shotstream.runtime.runtime import assemble_registry
from shotstream.training.evaluation.axes import FilmTallies, cut_tallies, make_axes
from shotstream.training.evaluation.evaluate import evaluation_stories
from shotstream.training.evaluation.sources import renders_of


def main(
    stories: Annotated[int, typer.Option(min=2, help="Half of them held out.")] = 20,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Print precision, recall, F1 with 95 % intervals over stories, and milliseconds per frame, of every cut finder."""
    torch.set_num_threads(threads)
    films = [renders_of(story) for story in evaluation_stories(stories)]
    asked = [[int(start) for start in np.cumsum([len(shot) for shot in film])[:-1]] for film in films]
    frames = sum(len(shot) for film in films for shot in film)
    registry = assemble_registry()
    for name in registry.names("cuts"):
        try:
            find = registry.factory("cuts", name)(torch.device("cpu"))
        except UserError as error:
            typer.echo(f"{name}: {error}")
            continue
        tallies: list[FilmTallies] = []
        begin = time.perf_counter()
        for film, wanted in zip(films, asked, strict=True):
            tallies.append(cut_tallies(wanted, find(np.concatenate(film))))
        each = 1000 * (time.perf_counter() - begin) / frames
        axes = make_axes(name, name, [str(i) for i in range(stories)], tallies, {})
        figures = "  ".join(f"{k} {v.mean:.3f} [{v.low:.3f}, {v.high:.3f}]" for k, v in axes.scores.items())
        typer.echo(f"{name}: {figures}  {each:.1f} ms per frame")


if __name__ == "__main__":
    typer.run(main)
