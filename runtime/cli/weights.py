"""The commands `fetch` and `convert`: weights by revision and hash, and between the layouts they come in. The work is
done in `shotstream.runtime.fetch` and `shotstream.runtime.convert`; here it gets its options and its display.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def mount(app: typer.Typer) -> None:
    """Add `fetch` and `convert`."""
    app.command("fetch")(fetch)
    app.command("convert")(convert)


def fetch(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model whose files are wanted, such as wan-1.3b.")],
    source: Annotated[str, typer.Option("--from", help="hub, or a local folder that holds the files.")] = "hub",
    to: Annotated[Path | None, typer.Option("--to", help="Where to; default: the folder the model looks in.")] = None,
    training: Annotated[bool, typer.Option("--training", help="Also files that only training needs.")] = False,
) -> None:
    """Bring a model's files here, pinned by revision and checked by hash; goes on where it was interrupted."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

    from shotstream.runtime import fetch as fetching

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    tasks: dict[tuple[str, str], TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def tell(action: str, name: str, done: int, total: int) -> None:
            key = (action, name)
            if key not in tasks:
                tasks[key] = progress.add_task(f"{action} {name}", total=total or None)
            progress.update(tasks[key], completed=done, total=total or None)

        report = fetching.fetch(model, source, to, optional=training, progress=tell)
    for file in report.files:
        console.print(
            f"{file.action:10} {file.target}  {file.bytes / 1e6:.1f} MB  sha256 {file.sha256[:16]}"
            + ("" if file.pinned else "  (hash not pinned)"),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if report.not_pinned:
        console.print(
            "no published hash is known for " + ", ".join(report.not_pinned) + "; what came is recorded and compared "
            "from now on",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    typer.echo(str(report.folder))


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A checkpoint file, or a folder of them.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Where to write: a file, or a folder.")],
    to: Annotated[str, typer.Option("--to", help="wan, diffusers, shotstream-pt or shotstream (our safetensors).")],
    role: Annotated[str, typer.Option("--role", help="Which network of a training checkpoint.")] = "generator",
    base: Annotated[Path | None, typer.Option("--base", help="The checkpoint that a LoRA-only SOURCE adapts.")] = None,
    lora_scale: Annotated[float, typer.Option("--lora-scale", help="Strength of the adapters when merged.")] = 1.0,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16; default: as it is.")
    ] = None,
) -> None:
    """Rewrite a transformer checkpoint in another layout, and check what was written by reading it back."""
    from rich.console import Console

    from shotstream.runtime import convert as converting

    console = Console(stderr=True)
    with console.status("reading ...") as status:
        report = converting.convert(
            source,
            target,
            to,
            role=role,
            base=base,
            lora_scale=lora_scale,
            dtype=dtype,
            progress=lambda what, done, steps: status.update(f"{what} ..."),
        )
    console.print(
        f"{report.source_layout} -> {report.layout}: {report.tensors} tensors, {report.parameters} parameters, "
        f"{report.dtype}, sha256 of the tensors {report.sha256[:16]}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    typer.echo(str(report.path))
