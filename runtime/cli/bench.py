"""The command `bench`: measures a model on this machine. What is measured, and how, is in `runtime.bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shotstream.runtime.cli.play import Attention, Device, Engine, Model, ModelChoice, Threads, Weights

NAME = "bench"


def mount(app: typer.Typer) -> None:
    """Add `bench`, a command that other rooms can add theirs to: `group` finds it."""
    commands = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
    commands.callback()(bench)
    app.add_typer(commands, name=NAME)


def group(app: typer.Typer) -> typer.Typer:
    """Where a room mounts a measurement of its own, to be run as `shotstream bench NAME`."""
    found = next(info.typer_instance for info in app.registered_groups if info.name == NAME)
    assert found is not None
    return found


def bench(
    context: typer.Context,
    model: Model = "tiny",
    shots: Annotated[int, typer.Option("--shots", min=1, max=10_000, help="Length of the story.")] = 5,
    chunks: Annotated[
        int | None, typer.Option("--chunks", min=1, max=100, help="Chunks of each shot; default: 7.")
    ] = None,
    device: Device = "cpu",
    weights: Weights = "default",
    engine: Engine = "eager",
    attention: Attention = None,
    threads: Threads = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
) -> None:
    """Measure speed, first-frame time, where a chunk's time goes, and memory, over a story."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    from shotstream.runtime.bench import measure, write_json
    from shotstream.runtime.sinks.base import ensure_writable

    console = Console(stderr=True)
    if json_file is not None:
        ensure_writable(json_file.parent)
    with console.status(f"loading {model} ..."):
        runtime = ModelChoice(model, device, weights, engine, attention, threads).load()
    with runtime, console.status("warming up ...") as status:

        def tell(shot: int) -> None:
            status.update(f"shot {shot + 1} of {shots} ...")

        report = measure(runtime, shots=shots, chunks=chunks, on_shot=tell)
    for line in report.lines():
        typer.echo(line)
    if json_file is not None:
        write_json(report, json_file)
        typer.echo(str(json_file))
