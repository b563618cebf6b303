"""The command `table`: rival methods and ablations on the story world, at equal size and training budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shotstream.runtime.errors import UserError


def mount(app: typer.Typer) -> None:
    """Add `table`."""
    app.command("table")(table)


def table(
    rows: Annotated[list[str] | None, typer.Argument(help="Rows to make, by name; default: all of them.")] = None,
    run: Annotated[Path, typer.Option("--run", help="A training run with teacher, ode, text, vae, latents.")] = Path(
        "runs/tiny"
    ),
    recipe: Annotated[str, typer.Option("--recipe", help="The recipe of that run, by name or as a file.")] = "tiny",
    out: Annotated[Path, typer.Option("--out", help="Folder of the table; finished rows in it are kept.")] = Path(
        "runs/table"
    ),
    tflop: Annotated[float, typer.Option("--tflop", min=0.1, help="Training budget of every row.")] = 15.0,
    stories: Annotated[int, typer.Option("--stories", min=2, help="Stories to score, half of them held out.")] = 12,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Processor threads.")] = None,
    clock: Annotated[bool, typer.Option("--clock", help="Measure the speed of all finished rows again.")] = False,
    list_rows: Annotated[bool, typer.Option("--list", help="Print the rows and stop.")] = False,
    report_only: Annotated[bool, typer.Option("--report", help="Print the table of finished rows and stop.")] = False,
) -> None:
    """Train rival methods and ablations under one budget, and score them on the same stories."""
    from shotstream.training.table.methods import METHODS

    if list_rows:
        for name, method in METHODS.items():
            typer.echo(f"{name:16}{method.title}" + (f" (as in {method.like})" if method.like else ""))
        return
    names = rows or list(METHODS)
    for name in names:
        if name not in METHODS:
            raise UserError(f"there is no row {name!r} in the table; rows are {', '.join(METHODS)}")

    import torch
    from rich.console import Console

    from shotstream.runtime.sinks.base import ensure_writable
    from shotstream.training.recipe import load_recipe
    from shotstream.training.table.report import table_lines, write_plot
    from shotstream.training.table.rows import TableSettings, finished, load_parts, make_row, time_row
    from shotstream.training.table.train import TrainSettings

    if threads is not None:
        torch.set_num_threads(threads)
    settings = TableSettings(TrainSettings(tflop=tflop), stories=stories)
    ensure_writable(out)
    there = finished(out, names, settings)
    work = there if clock else [name for name in names if name not in there]
    if work and not report_only:
        with Console(stderr=True).status("loading ...") as status:
            parts = load_parts(run, load_recipe(recipe), device)
            for name in work:
                (time_row if clock else make_row)(name, parts, settings, out, status.update)
    results = finished(out, list(METHODS), settings)
    if not results:
        raise UserError(f"{out} holds no finished row yet")
    for line in table_lines(results):
        typer.echo(line)
    write_plot(results, out / "table.png")
    typer.echo(str(out / "table.png"))
