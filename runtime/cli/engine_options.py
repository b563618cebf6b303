"""The options --engine-option and --engine-fallback, which every command that makes a runtime has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

EngineOption = Annotated[
    list[str] | None,
    typer.Option("--engine-option", metavar="NAME=VALUE", help="For the engine, such as fp8=all; repeat for more."),
]
EngineFallback = Annotated[
    str | None,
    typer.Option(
        "--engine-fallback", metavar="NAME", help="Take this engine, with a warning, where --engine cannot start."
    ),
]


def parsed_options(given: Sequence[str]) -> dict[str, object]:
    """NAME=VALUE each, values as in yaml; UserError for anything else."""
    import yaml

    from shotstream.runtime.errors import UserError

    found: dict[str, object] = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals or not name.isidentifier():
            raise UserError(f"'{text}' is no option of an engine; write it as NAME=VALUE")
    return found


def say_on(console: Console, status: Status) -> Callable[[str], None]:
    """Shows what an engine says while it is made: in the status line, or as lines where there is no terminal."""

    def say(text: str) -> None:
        if console.is_terminal:
            status.update(text)
        else:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    return say
