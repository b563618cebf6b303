"""The command `bench engines`: several engines side by side. What is measured is in `runtime.bench.engines`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from shotstream.runtime.cli.engine_options import parsed_options, say_on
from shotstream.runtime.cli.play import Attention, Decoder, Device, Model, Threads, Weights


def engines(
    names: Annotated[
        list[str],
        typer.Argument(metavar="ENGINE[:NAME=VALUE,...]", help="Two or more, such as: eager onnx onnx:precision=int8."),
    ],
    model: Model = "tiny",
    shots: Annotated[
        int, typer.Option("--shots", min=1, max=1000, help="Shots that count, behind one that does not.")
    ] = 3,
    chunks: Annotated[int, typer.Option("--chunks", min=1, max=100, help="Chunks of each shot.")] = 3,
    device: Device = "cpu",
    weights: Weights = "default",
    attention: Attention = None,
    decoder: Decoder = None,
    threads: Threads = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every figure.")] = None,
) -> None:
    """Play one film on several engines in turns: times, and how far their frames are from the first one's."""
    from contextlib import ExitStack

    import torch
    from rich.console import Console

    from shotstream.runtime.bench.engines import lines, side_by_side
    from shotstream.runtime.bench.machine import machine_facts
    from shotstream.runtime.bench.text import machine_line
    from shotstream.runtime.errors import UserError
    from shotstream.runtime.runtime import Runtime, RuntimeOptions
    from shotstream.runtime.sinks.base import ensure_writable

    if len(set(names)) < max(2, len(names)):
        raise UserError("name two engines or more, none twice, such as: shotstream bench engines eager graph")
    if json_file is not None:
        ensure_writable(json_file.parent)
    if threads is not None:
        torch.set_num_threads(threads)
    given = RuntimeOptions(device=device, weights=weights, attention=attention, decoder=decoder)
    console = Console(stderr=True, highlight=False)
    with ExitStack() as stack:
        status = stack.enter_context(console.status("loading ..."))
        runtimes = {}
        for name in names:
            status.update(f"loading {model} for {name} ...")
            engine, _, options = name.partition(":")
            chosen = parsed_options(options.split(",") if options else [])
            runtime = Runtime(model, given, engine=engine, engine_options=chosen, say=say_on(console, status))
            runtimes[name] = stack.enter_context(runtime)
            runtime.warm_up()
        rows = side_by_side(
            runtimes,
            shots=shots,
            chunks=chunks,
            on_shot=lambda shot: status.update(f"shot {shot + 1} of {shots} ..." if shot >= 0 else "warming up ..."),
        )
        machine = machine_facts(runtime.device, None, None)
    typer.echo(f"{machine_line(machine)}; {torch.get_num_threads()} threads; {shots} x {chunks} chunks of {model}")
    for line in lines(rows):
        typer.echo(line)
    if json_file is not None:
        plain = {"machine": asdict(machine), "threads": torch.get_num_threads(), "rows": [asdict(row) for row in rows]}
        json_file.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        typer.echo(str(json_file))
