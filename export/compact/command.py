"""The command `export compact`: a model's eight-bit graphs without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compact(
    out: Annotated[Path, typer.Option("--out", help="Folder for compact.json and the graphs.")],
    model: Annotated[str, typer.Option("--model", help="A preset whose decoder is tiny-vae.")] = "tiny",
    weights: Annotated[str, typer.Option("--weights", help="Of the preset: default, random, or a folder.")] = "default",
) -> None:
    """Write eight-bit graphs without weights, as they come with the package; takes some twenty seconds."""
    import torch
    from rich.console import Console

    from shotstream.export.compact.building import build_compact
    from shotstream.export.compact.loading import total_bytes
    from shotstream.export.parts import load_parts

    console = Console(stderr=True)
    with console.status("loading ...") as status:
        parts = load_parts(model, weights, torch.float32)
        made = build_compact(parts, out, lambda name: status.update(f"{name} ..."))
    count = len(made.segments) + 1
    console.print(f"{count} graphs without weights, {total_bytes(out, made) / 1e3:.0f} kB", highlight=False)
    typer.echo(str(out))
