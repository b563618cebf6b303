"""The command `evaluate`: scores a model of the story world. What is measured, and how, is in `training.evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shotstream.runtime.cli.play import Device, Engine, Model, ModelChoice, Threads, Weights


def mount(app: typer.Typer) -> None:
    """Add `evaluate`."""
    app.command("evaluate")(evaluate)


def evaluate(
    model: Model = "tiny",
    stories: Annotated[int, typer.Option("--stories", min=2, max=10_000, help="Half of them held out.")] = 40,
    seed: Annotated[int, typer.Option("--seed", min=0, max=9, help="Another seed: other stories.")] = 0,
    chunks: Annotated[int, typer.Option("--chunks", min=1, max=20, help="Chunks of each shot.")] = 3,
    device: Device = "cpu",
    weights: Weights = "default",
    engine: Engine = "eager",
    threads: Threads = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
) -> None:
    """Measure what a model shows against what was asked, beside the ceilings: true renders, and its own codec."""
    from rich.console import Console

    from shotstream.runtime.sinks.base import ensure_writable
    from shotstream.training.evaluate import evaluate_model

    console = Console(stderr=True)
    if json_file is not None:
        ensure_writable(json_file.parent)
    with console.status(f"loading {model} ..."):
        runtime = ModelChoice(model, device, weights, engine, None, threads).load()
    with runtime, console.status("reading stories ...") as status:

        def tell(done: int, of: int) -> None:
            status.update(f"story {done} of {of} ...")

        report = evaluate_model(runtime, stories, seed, chunks=chunks, progress=tell)
    for line in report.lines():
        typer.echo(line)
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
        typer.echo(str(json_file))
