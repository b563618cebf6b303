"""The commands `doctor` and `plugins`: tables of what is here. What is found out, and how, is elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="As json on standard output.")]


def mount(app: typer.Typer) -> None:
    """Add `doctor` and `plugins`."""
    app.command("doctor")(doctor)
    app.command("plugins")(plugins)


def doctor(as_json: Json = False) -> None:
    """Show what is installed, which GPU there is, which engines will work, and why not the others."""
    import json

    from rich.console import Console
    from rich.table import Table

    from shotstream.runtime.doctor import examine
    from shotstream.runtime.runtime import assemble_registry

    checks = examine(assemble_registry())
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=1))
        return
    console = Console()
    marks = {True: "[green]yes[/]", False: "[yellow]no[/]", None: ""}
    table = Table(box=None, show_header=False, pad_edge=False)
    group = ""
    for check in checks:
        if check.group != group:
            table.add_row(f"[bold]{check.group}[/]", "", "")
            group = check.group
        table.add_row(f"  {check.name}", marks[check.ok], check.value.replace("[", r"\["))
    console.print(table)


def plugins(as_json: Json = False) -> None:
    """List the plugins: name, origin, state, and what each puts into which slot."""
    import json

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from shotstream.runtime.plugins import SLOTS
    from shotstream.runtime.runtime import assemble_registry

    registry = assemble_registry()
    states = registry.describe()
    if as_json:
        slots = {slot: registry.names(slot) for slot in SLOTS}
        typer.echo(json.dumps({"plugins": [asdict(state) for state in states], "slots": slots}, indent=1))
        return
    console = Console()
    table = Table(box=None, pad_edge=False)
    for column in ("plugin", "state", "provides", "hooks", "origin"):
        table.add_column(column, overflow="fold")
    for state in states:
        provides = ", ".join(f"{slot}:{name}" for slot, name in state.provides)
        shown = "[green]ready[/]" if state.state == "ready" else f"[red]{state.state}[/]: {escape(state.reason)}"
        table.add_row(state.name, shown, provides, ", ".join(state.hooks), escape(state.origin))
    console.print(table)
    console.print()
    table = Table("slot", "names", box=None, pad_edge=False)
    for slot in SLOTS:
        table.add_row(slot, ", ".join(registry.names(slot)) or "[dim]nothing yet[/]")
    console.print(table)
