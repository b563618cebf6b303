"""The command ``shotstream train`` and the plugin that mounts it. Stages and recipes live elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shotstream.runtime.parity import CaseGroup
    from shotstream.runtime.plugins import Registry


class TrainingPlugin:
    """Mounts the training room's commands and its part of the parity check."""

    name = "training"

    def build(self, registry: Registry) -> None:
        """Register the commands ``train``, ``evaluate`` and ``table`` and the parity groups of the training stages."""
        from shotstream.training.evaluation import plugin as evaluation_slots

        registry.register("command", "train", mount)
        registry.register("command", "evaluate", _mount_evaluate)
        registry.register("command", "table", _mount_table)
        registry.register("parity", "training", _parity_groups)
        evaluation_slots.register(registry)


def _mount_evaluate(app: typer.Typer) -> None:
    from shotstream.training.evaluation import command as evaluate_command

    evaluate_command.mount(app)


def _mount_table(app: typer.Typer) -> None:
    from shotstream.training.table import command

    command.mount(app)


def _parity_groups() -> list[CaseGroup]:
    from shotstream.training.method import parity_cases

    return parity_cases.parity_groups()


plugin = TrainingPlugin()
"""Entry point ``shotstream.plugins``."""


def mount(app: typer.Typer) -> None:
    """Add ``train`` to the command line."""
    app.command("train")(train)


def train(
    stage: Annotated[str, typer.Argument(help="vae, text, latents, teacher, ode, intra, inter, decoder, export, all")],
    recipe: Annotated[str, typer.Option("--recipe", help="Shipped recipe by name, or a yaml file.")] = "tiny",
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run; default runs/RECIPE.")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Stop after this time; run again to go on.")
    ] = None,
    explain_only: Annotated[bool, typer.Option("--explain", help="Print the recipe in full and stop.")] = False,
) -> None:
    """Train a model of the story world, stage by stage; a killed stage goes on where its last checkpoint was."""
    from shotstream.training.recipe import STAGES, explain, load_recipe

    chosen = load_recipe(recipe)
    if explain_only:
        typer.echo(explain(chosen))
        return
    from rich.console import Console

    from shotstream.runtime.errors import UserError
    from shotstream.runtime.sinks.base import ensure_writable
    from shotstream.training.pipeline import Pipeline

    if stage not in (*STAGES, "all"):
        raise UserError(f"there is no stage {stage!r}; stages are {', '.join(STAGES)} and all")
    folder = out or Path("runs") / chosen.name
    ensure_writable(folder)
    console = Console(stderr=True)

    def tell(name: str, done: int, total: int, figures: dict[str, Any]) -> None:
        shown = "  ".join(f"{k} {v:g}" for k, v in figures.items() if k != "step")
        console.print(f"{name} {done}/{total}  {shown}", highlight=False, soft_wrap=True)

    pipeline = Pipeline(chosen, folder, device, minutes, tell)
    for name in STAGES if stage == "all" else (stage,):
        console.print(f"stage {name} in {folder}")
        if not pipeline.run(name):
            console.print(f"stage {name} is not finished; the same command goes on with it")
            return
    typer.echo(str(folder))
