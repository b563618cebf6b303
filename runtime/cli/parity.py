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
    engine: Annotated[
        str, typer.Option("--engine", help="eager: every case. graph: whole shots through its fused passes.")
    ] = "eager",
    device: Annotated[str, typer.Option("--device", help="With --engine graph: cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="With --engine graph: float32, bfloat16; default: each case's own.")
    ] = None,
    fp8: Annotated[str, typer.Option("--fp8", help="With --engine graph: none, cache, linears or all.")] = "none",
) -> None:
    """Compare every case of a vector file with our code; the exit code is 1 if any misses its bound."""
    from rich.console import Console

    from shotstream.runtime.errors import UserError
    from shotstream.runtime.parity import run_parity, runtime_groups
    from shotstream.runtime.runtime import assemble_registry

    registry = assemble_registry()
    if engine == "graph":
        from shotstream.runtime.parity.graph import graph_parity

        groups = [graph_parity(registry, device, dtype, fp8).group()]
    elif engine != "eager":
        raise UserError(f"vectors are checked with the engine eager or graph, not '{engine}'")
    elif (device, dtype, fp8) != ("cpu", None, "none"):
        raise UserError("--device, --dtype and --fp8 go with --engine graph")
    else:
        groups = list(runtime_groups())
        for name in registry.names("parity"):
            groups += registry.factory("parity", name)()
    console = Console(stderr=True)
    with console.status("reading ...") as status:
        report = run_parity(
            file,
            groups,
            only=only,
            on_case=lambda case: status.update(f"{case} ..."),
            claimed_only=engine == "graph",
        )
    if as_json:
        typer.echo(report.to_json())
    else:
        report.render(Console())
    if report.exit_code:
        raise typer.Exit(report.exit_code)
