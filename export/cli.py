"""The commands `export onnx` and `export verify`, and where the others are mounted. The work is done elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shotstream.export.compact.command import compact
from shotstream.export.engine_store import command as engines_command

Model = Annotated[str, typer.Option("--model", help="A preset (tiny, wan-1.3b), or a .safetensors file of ours.")]
Weights = Annotated[str, typer.Option("--weights", help="Of a preset: default, random, or a folder.")]


def mount(app: typer.Typer) -> None:
    """Add `export` with its commands."""
    commands = typer.Typer(help="The model as ONNX graphs and as engines.", no_args_is_help=True, rich_markup_mode=None)
    commands.command("onnx")(onnx)
    commands.command("compact")(compact)
    engines_command.mount(commands)
    commands.command("verify")(verify)
    app.add_typer(commands, name="export")


def onnx(
    out: Annotated[Path, typer.Option("--out", help="Folder for manifest.json and the graphs.")],
    model: Model = "tiny",
    weights: Weights = "default",
    precision: Annotated[str, typer.Option("--precision", help="float32, float16 or bfloat16.")] = "float32",
    only: Annotated[
        str | None,
        typer.Option(
            "--only", help="Some of: segments,step,decoder,text (default: all that there are), or step_in_place."
        ),
    ] = None,
    opset: Annotated[
        int | None, typer.Option("--opset", min=20, max=25, help="Default: 20, which TensorRT before 10.14 reads.")
    ] = None,
    decoder: Annotated[str | None, typer.Option("--decoder", help="Instead of the model's own.")] = None,
    latent_size: Annotated[
        str | None, typer.Option("--latent-size", metavar="HxW", help="Of a file's model, in latents.")
    ] = None,
) -> None:
    """Write the model as ONNX graphs; interrupted, the same command goes on where it was."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from shotstream.export.exporting import dtype_of, export_graphs, source_of
    from shotstream.export.graphs.contents import chosen_contents, graph_specs, opset_of
    from shotstream.export.parts import load_parts

    wanted = chosen_contents(only)
    number = opset_of(wanted, opset)
    dtype = dtype_of(precision)
    console = Console(stderr=True)
    with console.status(f"loading {model} ..."):
        parts = load_parts(model, weights, dtype, decoder, latent_size)
    specs = graph_specs(parts, dtype, wanted)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("checking what is there", total=len(specs))

        def tell(name: str, done: int, total: int) -> None:
            progress.update(task, description=name, completed=done)
            if not console.is_terminal:
                console.print(f"{done + 1}/{total} {name}", highlight=False)

        manifest = export_graphs(out, source_of(parts, precision, number), specs, tell)
        progress.update(task, description="done", completed=len(specs))
    size = sum((out / file).stat().st_size for graph in manifest.graphs.values() for file in graph.sha256)
    console.print(f"{len(manifest.graphs)} graphs, {size / 1e6:.1f} MB, {precision}, opset {number}", highlight=False)
    typer.echo(str(out))


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where `shotstream export onnx` wrote.")],
    model: Annotated[str | None, typer.Option("--model", help="The file that was exported, if it was one.")] = None,
    weights: Weights = "default",
    latent_size: Annotated[str | None, typer.Option("--latent-size", metavar="HxW", help="As given to export.")] = None,
    shot: Annotated[
        bool | None, typer.Option("--shot/--no-shot", help="Also a shot by the engine onnx; default: for tiny only.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As json on standard output instead of a table.")] = False,
) -> None:
    """Compare every graph, and a shot through them, with the model in torch; the exit code is 1 beyond tolerance."""
    import torch
    from rich.console import Console

    from shotstream.export.exporting import dtype_of
    from shotstream.export.manifest import read_manifest
    from shotstream.export.parts import load_parts
    from shotstream.export.segments.cut import signatures
    from shotstream.export.verify import check_graphs, check_shot
    from shotstream.runtime.cli.parity import conclude
    from shotstream.runtime.parity import ParityReport, Row
    from shotstream.runtime.plugins import EngineRequest
    from shotstream.runtime.runtime import assemble_registry

    manifest = read_manifest(folder)
    source = manifest.source
    console, rows = Console(stderr=True), list[Row]()
    with console.status("loading ...") as status:
        parts = load_parts(model or source.model, weights, dtype_of(source.precision), None, latent_size)
        rows += check_graphs(folder, manifest, parts, lambda name: status.update(f"{name} ..."))
        wanted = source.model == "tiny" if shot is None else shot
        if wanted and source.precision == "float32" and set(signatures(parts.config)) <= set(manifest.graphs):
            status.update("a shot ...")
            options = {"folder": str(folder)}
            request = EngineRequest(parts, torch.device("cpu"), torch.float32, options=options)
            rows.append(check_shot(parts, assemble_registry().factory("engine", "onnx")(request)))
    conclude(ParityReport(str(folder), tuple(rows)), as_json=as_json)
