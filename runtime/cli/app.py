"""The Typer app: our commands, and those that other rooms mount through the slot `command`. No command lives here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from shotstream.runtime.cli import bench, info, parity, play, weights

if TYPE_CHECKING:
    from shotstream.runtime.cli.interrupts import Interrupts

PROGRAM = "shotstream"
_TYPERS_INTERRUPTED = 130  # Typer turns a KeyboardInterrupt into this result, and says nothing
OWN_COMMANDS = (play, bench, info, parity, weights)


@dataclass(frozen=True)
class Settings:
    """What every command may read from its context (`ctx.obj`)."""

    debug: bool
    interrupts: Interrupts


def call(arguments: Sequence[str], *, debug: bool, interrupts: Interrupts) -> int:
    """Parse and run; returns the exit code, raises for everything that fails."""
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    app = make_app()
    own = {info.name or str(getattr(info.callback, "__name__", "")) for info in app.registered_commands}
    if not own.intersection(arguments[:1]) and arguments[:1] != ["--version"]:
        mount_rooms(app)  # loads torch and every plugin, which our own commands may not need
    command = typer.main.get_command(app)
    result = command.main(
        args=list(arguments), prog_name=PROGRAM, standalone_mode=False, obj=Settings(debug, interrupts)
    )
    if interrupts.received and result == _TYPERS_INTERRUPTED:
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def make_app() -> typer.Typer:
    """The app with the runtime's own commands."""
    app = typer.Typer(
        name=PROGRAM,
        help="Streaming multi-shot video generation that a game can steer.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_common)
    for module in OWN_COMMANDS:
        module.mount(app)
    return app


def mount_rooms(app: typer.Typer) -> None:
    """Let every plugin's `command` factories add their commands."""
    from shotstream.runtime.runtime import assemble_registry

    registry = assemble_registry()
    for name in registry.names("command"):
        registry.factory("command", name)(app)


def _version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        typer.echo(f"{PROGRAM} {metadata.version(PROGRAM)}")
        raise typer.Exit


def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and log everything; works anywhere.")] = False,
) -> None:
    """The options before the command's name; --debug has been taken out of the arguments before."""
