"""The command `parity`: reference vectors against our code. The checks are in `shotstream.runtime.parity`, and other
rooms add theirs through the slot `parity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def mount(app: typer.Typer) -> None:
    """Add `parity`."""
    app.command("parity")(parity)


def parity(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Recorded reference vectors (.pt).")],
    as_json: Annotated[bool, typer.Option("--json", help="As json on standard output instead of a table.")] = False,
    only: Annotated[str | None, typer.Option("--only", help="Only cases with this in their name.")] = None,
) -> None:
    """Compare every case of a vector file with our code; the exit code is 1 if any misses its bound."""
    from rich.console import Console

    from shotstream.runtime.parity import run_parity, runtime_groups
    from shotstream.runtime.runtime import assemble_registry

    registry = assemble_registry()
    groups = list(runtime_groups())
    for name in registry.names("parity"):
        groups += registry.factory("parity", name)()
    console = Console(stderr=True)
    with console.status("reading ...") as status:
        report = run_parity(file, groups, only=only, on_case=lambda case: status.update(f"{case} ..."))
    if as_json:
        typer.echo(report.to_json())
    else:
        report.render(Console())
    if report.exit_code:
        raise typer.Exit(report.exit_code)
