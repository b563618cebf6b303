"""The command ``shotstream train prepare``: options, progress and the final tables. The work is in ``prepare``."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from shotstream.training.data.prepare import Report

_SHOWN = 30  # rows of a table; report.json has all


def prepare(
    folder: Annotated[Path, typer.Argument(help="Folder of videos or tar shards; or one csv, tar or video.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the prepared data; run again to go on.")],
    model: Annotated[str, typer.Option("--model", help="tiny or wan-1.3b.")] = "tiny",
    weights: Annotated[str, typer.Option("--weights", help="default, random, or a folder of weights.")] = "default",
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    shots: Annotated[str, typer.Option("--shots", help="given intervals, detect cuts, or auto.")] = "auto",
    caption: Annotated[str, typer.Option("--caption", help="For videos and shots without a caption.")] = "",
    frames: Annotated[int | None, typer.Option("--frames", help="Most frames of a clip, 4m + 1.")] = None,
    max_shots: Annotated[int, typer.Option("--max-shots", help="Detected shots told as one story.")] = 7,
    pace: Annotated[str, typer.Option("--pace", help="model: at its frame rate; reference: native frames.")] = "model",
    fit: Annotated[str, typer.Option("--fit", help="stretch to the model's size, or crop to its aspect.")] = "stretch",
) -> None:
    """Cut multi-shot videos into shots and encode pictures and captions once, as training reads them."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from shotstream.runtime.errors import UserError
    from shotstream.runtime.sinks.base import ensure_writable
    from shotstream.training.data.prepare import PrepareOptions, Report, prepare_videos
    from shotstream.training.data.video_model import load_video_model
    from shotstream.training.data.video_sources import open_source

    options = PrepareOptions(shots, caption, frames, max_shots, pace, fit)
    source = open_source(folder)
    ensure_writable(out)
    loaded = load_video_model(model, device, weights)
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    task = bar.add_task("videos", total=source.total)
    report = Report()

    def tell(name: str, what: str, done: bool) -> None:
        bar.update(task, description=f"{name[-40:]}: {what[:40]}", advance=int(done))
        if done and not console.is_terminal:
            console.print(f"{name}: {what}", markup=False, highlight=False, soft_wrap=True)

    try:
        with bar if console.is_terminal else nullcontext():
            prepare_videos(source, out, loaded, options, tell, report)
    finally:
        _show(report, console)
        with suppress(UserError):  # a full disk is being said already
            report.save(out / "report.json")
    if not report.usable:
        console.print(f"nothing in {folder} can be trained on; the reasons are above and in {out / 'report.json'}")
        raise typer.Exit(1)
    typer.echo(str(out))


def _show(report: Report, console: Console) -> None:
    """Tables of what was refused and what was done without, then the sums."""
    from rich.table import Table
    from rich.text import Text

    refused = [(each.name, each.reason) for each in report.refused]
    for title, column, rows in (("left out", "reason", refused), ("done without", "what", report.notes)):
        if rows:
            table = Table("video", column, title=title, title_justify="left")
            for row in rows[:_SHOWN]:
                table.add_row(*map(Text, row))
            if len(rows) > _SHOWN:
                table.add_row("...", f"{len(rows) - _SHOWN} more in report.json")
            console.print(table)
    console.print(
        f"{len(report.made)} videos prepared, {len(report.kept)} kept, {len(report.refused)} left out; "
        f"{report.shots} shots, {report.frames} frames in {report.seconds:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
