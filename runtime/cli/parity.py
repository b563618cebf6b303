"""The command `parity`: reference vectors against our code. The checks are in `shotstream.runtime.parity`, and other
rooms add theirs through the slot `parity`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shotstream.runtime.cli.engine_options import EngineOption, parsed_options, say_on

if TYPE_CHECKING:
    from shotstream.runtime.parity import ParityReport


def mount(app: typer.Typer) -> None:
    """Add `parity`."""
    app.command("parity")(parity)


def parity(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Recorded reference vectors (.pt).")],
    as_json: Annotated[bool, typer.Option("--json", help="As json on standard output instead of a table.")] = False,
    only: Annotated[str | None, typer.Option("--only", help="Only cases with this in their name.")] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="eager: every case. Others: whole shots and stories, as they play them.")
    ] = "eager",
    engine_option: EngineOption = None,
    device: Annotated[str, typer.Option("--device", help="Not with eager: cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Not with eager: float32, bfloat16; default: each case's own.")
    ] = None,
    fp8: Annotated[
        str, typer.Option("--fp8", help="Not with eager: none, cache, linears or all; the same as --engine-option.")
    ] = "none",
) -> None:
    """Compare every case of a vector file with our code; the exit code is 1 if any misses its bound."""
    from rich.console import Console

    from shotstream.runtime.errors import UserError
    from shotstream.runtime.parity import run_parity, runtime_groups
    from shotstream.runtime.runtime import assemble_registry

    registry = assemble_registry()
    console = Console(stderr=True)
    with console.status("reading ...") as status:
        if engine != "eager":
            from shotstream.runtime.parity.engines import engine_parity

            options = parsed_options(engine_option or ()) | ({} if fp8 == "none" else {"fp8": fp8})
            if engine == "graph":
                options = {"exact_blocks": 0} | options  # the toy models have few blocks
            groups = [engine_parity(registry, engine, device, dtype, options, say_on(console, status)).group()]
        elif (device, dtype, fp8, engine_option) != ("cpu", None, "none", None):
            raise UserError("--device, --dtype, --fp8 and --engine-option go with another --engine than eager")
        else:
            groups = list(runtime_groups())
            for name in registry.names("parity"):
                groups += registry.factory("parity", name)()
        report = run_parity(
            file,
            groups,
            only=only,
            on_case=lambda case: status.update(f"{case} ..."),
            claimed_only=engine != "eager",
        )
    conclude(report, as_json=as_json)


def conclude(report: ParityReport, *, as_json: bool) -> None:
    """Print a report on standard output, as a table or as json; typer.Exit with code 1 if a check did not pass."""
    from rich.console import Console

    if as_json:
        typer.echo(report.to_json())
    else:
        report.render(Console())
    if report.exit_code:
        raise typer.Exit(report.exit_code)
