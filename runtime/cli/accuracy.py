"""The command `bench accuracy`. What is measured is in `runtime.bench.accuracy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shotstream.runtime.cli.play import Device, Model, Threads, Weights


def bench_accuracy(
    model: Model = "tiny",
    shots: Annotated[int, typer.Option("--shots", min=1, max=100, help="Length of the story.")] = 5,
    chunks: Annotated[int, typer.Option("--chunks", min=1, max=100, help="Chunks of each shot.")] = 7,
    device: Device = "cpu",
    weights: Weights = "default",
    threads: Threads = None,
    by_layer: Annotated[bool, typer.Option("--layers/--no-layers", help="Also layer by layer in eight bits.")] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every figure to this file.")
    ] = None,
) -> None:
    """Compare films in 16 and 8 bits with the same film in float32: error of the latents by chunk, shot and layer."""
    import torch
    from rich.console import Console

    from shotstream.runtime.bench.accuracy import accuracy
    from shotstream.runtime.runtime import RuntimeOptions
    from shotstream.runtime.sinks.base import ensure_writable

    if json_file is not None:
        ensure_writable(json_file.parent)
    if threads is not None:
        torch.set_num_threads(threads)
    options = RuntimeOptions(device=device, weights=weights)
    with Console(stderr=True).status("playing ...") as status:
        report = accuracy(
            model,
            options,
            shots=shots,
            chunks=chunks,
            by_layer=by_layer,
            tell=lambda what: status.update(f"playing in {what} ..."),
        )
    for line in report.lines():
        typer.echo(line)
    if json_file is not None:
        report.write_json(json_file)
        typer.echo(str(json_file))
