"""The command ``shotstream bench attention``. What is measured, and how, is in `kernels.attention.bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def mount(app: typer.Typer) -> None:
    """Add it below the runtime's `bench`."""
    from shotstream.runtime.cli import bench

    bench.group(app).command("attention")(bench_attention)


def bench_attention(
    model: Annotated[
        str | None, typer.Option(help="Whose sizes: wan-1.3b or tiny; default: wan-1.3b on a GPU, tiny on a CPU.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=10_000, help="Calls, of whose times the median counts.")] = 20,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every figure to this file.")
    ] = None,
) -> None:
    """Compare all attentions that are there on a model's shapes: time, TFLOP/s, and error against float64."""
    from shotstream.runtime.sinks.base import ensure_writable

    if json_file is not None:
        ensure_writable(json_file.parent)
    from rich.console import Console

    with Console(stderr=True).status("measuring ..."):
        from shotstream.kernels.attention.bench import run

        report = run(model, repeats)
    for line in report.lines():
        typer.echo(line)
    if json_file is not None:
        report.write_json(json_file)
        typer.echo(str(json_file))
