"""The commands ``shotstream train STAGE | all | merge | prepare``: options and display."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from shotstream.training.data.prepare_command import prepare

STAGE_HELP = {
    "vae": "Train the codec.",
    "text": "Train the text encoder.",
    "latents": "Encode the stories to train on.",
    "teacher": "Train the bidirectional teacher.",
    "ode": "Make trajectories of the teacher, and the causal student from them.",
    "intra": "Distil the student behind true history.",
    "inter": "Distil the student behind its own history.",
    "continuation": "Teach the student how a shot goes on, from true clips.",
    "perceptual": "Train the network through whose eyes coupled compares pictures.",
    "coupled": "Teach the student true shots from noise that knows what captions leave open.",
    "decoder": "Train the codec's decoder further.",
    "export": "Write the weights that the runtime loads.",
    "all": "Run all stages, one after the other.",
}

RecipeName = Annotated[str, typer.Option("--recipe", help="Shipped recipe by name, or a yaml file.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run; default runs/RECIPE.")]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
Minutes = Annotated[float | None, typer.Option("--minutes", help="Stop after this time; run again to go on.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Stop after so many steps; run again to go on.")]
Explain = Annotated[bool, typer.Option("--explain", help="Print the recipe in full and what it costs, and stop.")]
Processes = Annotated[int | None, typer.Option("--processes", min=1, help="With --explain: estimate for so many.")]


def mount(app: typer.Typer) -> None:
    """Add the group ``train``."""
    group = typer.Typer(
        help="Train a model stage by stage; a killed stage goes on where its last checkpoint was. On several "
        "processes: torchrun --nproc-per-node N --no-python shotstream train STAGE ...",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for stage, text in STAGE_HELP.items():
        group.command(stage, help=text)(_command(stage))
    group.command("merge")(merge)
    group.command("prepare")(prepare)
    app.add_typer(group, name="train")


def _command(stage: str) -> Callable[..., None]:
    def command(
        recipe: RecipeName = "tiny",
        out: Out = None,
        device: Device = "cpu",
        minutes: Minutes = None,
        steps: Steps = None,
        explain: Explain = False,
        processes: Processes = None,
    ) -> None:
        if explain:
            _explain(stage, recipe, device, processes)
        else:
            _train(stage, recipe, out, device, {"minutes": minutes, "steps": steps})

    return command


def _explain(stage: str, recipe: str, device: str, processes: int | None) -> None:
    import os

    import torch

    from shotstream.training.distributed.launch import Team
    from shotstream.training.plan import explain_plans
    from shotstream.training.recipe import explain, load_recipe

    chosen = load_recipe(recipe)
    team = Team(size=processes or int(os.environ.get("WORLD_SIZE", 1)), device=torch.device(device))
    if os.environ.get("RANK", "0") == "0":
        stages = chosen.stages if stage == "all" else (stage,)
        typer.echo(explain(chosen) + explain_plans(chosen, stages, team), nl=False)


def _train(stage: str, recipe: str, out: Path | None, device: str, limits: dict[str, Any]) -> None:
    from rich.console import Console

    from shotstream.runtime.sinks.base import ensure_writable
    from shotstream.training.distributed.launch import team_of
    from shotstream.training.pipeline import Pipeline
    from shotstream.training.recipe import load_recipe

    console = Console(stderr=True)
    with team_of(device) as team:
        chosen = load_recipe(recipe)
        folder = out or Path("runs") / chosen.name
        if team.first:
            ensure_writable(folder)
        console.quiet = not team.first

        def tell(name: str, done: int, total: int, figures: dict[str, Any]) -> None:
            shown = "  ".join(f"{k} {v:g}" for k, v in figures.items() if k != "step")
            console.print(f"{name} {done}/{total}  {shown}", highlight=False, soft_wrap=True)

        pipeline = Pipeline(chosen, folder, progress=tell, team=team, **limits)
        for name in chosen.stages if stage == "all" else (stage,):
            console.print(f"stage {name} in {folder}", highlight=False, soft_wrap=True)
            if not pipeline.run(name):
                console.print(f"stage {name} is not finished; the same command goes on with it")
                return
    if team.first:
        typer.echo(str(folder))


def merge(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="The transformer that was adapted, in any layout.")],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Its LoRA adapters: inter/lora.safetensors")],
    out: Annotated[Path, typer.Option("--out", help="The merged weights: a safetensors file.")],
    scale: Annotated[float, typer.Option("--scale", help="Strength of the adapters; 1 as they were trained.")] = 1.0,
) -> None:
    """Merge LoRA adapters into the weights they were trained on."""
    from rich.console import Console

    from shotstream.runtime.convert import convert

    report = convert(adapter, out, "shotstream", base=base, lora_scale=scale)
    Console(stderr=True).print(
        f"{report.tensors} tensors, {report.parameters:,} parameters, {report.dtype}", highlight=False, soft_wrap=True
    )
    typer.echo(str(report.path))
