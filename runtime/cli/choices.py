"""How the choices of a story are made on the command line: by --choose, by asking, or by taking the first option."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.prompt import Prompt

from shotstream.runtime.errors import UserError
from shotstream.runtime.storyline import Choice, Option, Story, StorySource


def named_options(source: StorySource, names: Sequence[str]) -> list[Option]:
    """The options that `names` (--choose, in order) mean, for the first choices of the story.

    Raises UserError for a name that the choice does not have, and for more names than there are choices."""
    choices = source.choices if isinstance(source, Story) else ()
    if len(names) > len(choices):
        has = f"has {len(choices)}" if choices else "has none"
        raise UserError(f"--choose was given {len(names)} times, but {source.name} {has}; give one per choice")
    return [_named(source.name, choice, name) for choice, name in zip(choices, names, strict=False)]


def _named(story: str, choice: Choice, name: str) -> Option:
    for option in choice.options:
        if option.name == name:
            return option
    there = [option.name for option in choice.options]
    raise UserError(
        f"{story}, line {choice.line}: there is no option '{name}'; \"{choice.question}\" has "
        f"{', '.join(there[:-1])} and {there[-1]}"
    )


def someone_to_ask() -> bool:
    """True when a person can read a question and answer it: both standard input and output are terminals."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def ask(choice: Choice) -> Option:
    """Ask in the terminal until an option is named, by its name or number; Enter and Ctrl-D take the first."""
    console = Console()
    by_answer: dict[str, Option] = {}
    console.print(choice.question, markup=False, highlight=False)
    for number, option in enumerate(choice.options, start=1):
        console.print(f"  {number}  {option.name}: {option.label}", markup=False, highlight=False)
        by_answer |= {option.name: option, str(number): option}
    first = choice.options[0]
    try:
        answer = Prompt.ask("choose", console=console, choices=list(by_answer), show_choices=False, default=first.name)
    except EOFError:
        console.print()
        return first
    return by_answer[answer]
