"""The command `bench`, and those below it. What is measured is in `runtime.bench`.

Other rooms add measurements of their own (`group`). They are looked for only when one is asked for by name: finding
them loads torch and every plugin.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.core import TyperGroup

from shotstream.runtime.cli.accuracy import bench_accuracy
from shotstream.runtime.cli.bench_engines import engines
from shotstream.runtime.cli.engine_options import EngineFallback, EngineOption, parsed_options, say_on
from shotstream.runtime.cli.play import Attention, Decoder, Device, Engine, Model, ModelChoice, Threads, Weights

if TYPE_CHECKING:
    from shotstream.runtime.runtime import RuntimeOptions

NAME = "bench"
_DTYPES = ("float32", "bfloat16", "float16")
_EPILOG = "Other rooms measure too: shotstream bench attention --help, shotstream bench bridge --help."

Report = Annotated[Path, typer.Argument(metavar="A.json", help="Written by: shotstream bench --json FILE.")]


@dataclass(frozen=True)
class _BenchModel(ModelChoice):
    """Which runtime to make, with all that can be chosen of it."""

    dtype: str | None = None
    ops: str | None = None
    run_ahead: bool | None = None

    def options(self) -> RuntimeOptions:
        """For `Runtime`; sets torch's threads. UserError for a number format or an engine's option that is none."""
        import torch

        from shotstream.runtime.errors import UserError
        from shotstream.runtime.runtime import RuntimeOptions

        if self.dtype is not None and self.dtype not in _DTYPES:
            raise UserError(f"there is no number format '{self.dtype}' here; use {', '.join(_DTYPES)}")
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return RuntimeOptions(
            device=self.device,
            dtype=None if self.dtype is None else getattr(torch, self.dtype),
            engine=self.engine,
            attention=self.attention,
            ops=self.ops,
            engine_options=parsed_options(self.engine_options),
            engine_fallback=self.engine_fallback,
            run_ahead=self.run_ahead,
            decoder=self.decoder,
            weights=self.weights,
        )


class _BenchGroup(TyperGroup):
    """`bench` itself, which is a command, and the commands below it."""

    app: typer.Typer
    below: typer.Typer

    def __init__(self, **attributes: Any) -> None:
        super().__init__(invoke_without_command=True, subcommand_metavar="[compare|plot|accuracy|...]", **attributes)
        self._fill()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of ours, or, once the rooms have been asked, one of theirs."""
        if cmd_name not in self.commands:
            from shotstream.runtime.cli.app import mount_rooms

            mount_rooms(self.app)
            self._fill()
        return super().get_command(ctx, cmd_name)

    def _fill(self) -> None:
        self.commands = dict(cast(Any, typer.main.get_group(self.below)).commands)


def mount(app: typer.Typer) -> None:
    """Add `bench`, a command that other rooms can add theirs to: `group` finds it."""
    below = typer.Typer(rich_markup_mode=None)
    below.command("compare")(compare)
    below.command("plot")(plot)
    below.command("engines")(engines)
    below.command("accuracy")(bench_accuracy)
    cls = type("BenchGroup", (_BenchGroup,), {"app": app, "below": below})
    # As a command and not as a group: the app asks the rooms for their commands only where it has none of that name.
    app.command(NAME, cls=cast(Any, cls), epilog=_EPILOG)(bench)


def group(app: typer.Typer) -> typer.Typer:
    """Where a room mounts a measurement of its own, to be run as `shotstream bench NAME`."""
    found: Any = next(info.cls for info in app.registered_commands if info.name == NAME)
    return found.below


def bench(
    context: typer.Context,
    model: Model = "tiny",
    shots: Annotated[
        int, typer.Option("--shots", min=1, max=10_000, help="Length of the story; 100 for a true p99.")
    ] = 5,
    chunks: Annotated[
        int | None, typer.Option("--chunks", min=1, max=100, help="Chunks of each shot; default: 7.")
    ] = None,
    warm_up: Annotated[
        int, typer.Option("--warm-up", min=0, max=1000, metavar="SHOTS", help="Shots before that are not counted.")
    ] = 2,
    device: Device = "cpu",
    dtype: Annotated[
        str | None, typer.Option("--dtype", help=f"{', '.join(_DTYPES)}; default: float32 on a CPU, else bfloat16.")
    ] = None,
    weights: Weights = "default",
    decoder: Decoder = None,
    engine: Engine = "eager",
    engine_option: EngineOption = None,
    engine_fallback: EngineFallback = None,
    attention: Attention = None,
    ops: Annotated[str | None, typer.Option("--ops", help="The small operations of the engine graph.")] = None,
    run_ahead: Annotated[
        bool | None,
        typer.Option(
            "--run-ahead/--no-run-ahead", help="Begin a chunk while the one before is decoded; default: on a GPU."
        ),
    ] = None,
    threads: Threads = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every figure and every sample.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw the times and where they go.")
    ] = None,
) -> None:
    """Measure chunk times by position, misses, where the time goes, and memory beside its plan, over a story."""
    if context.invoked_subcommand is not None:
        return
    _check_targets(json_file, picture)
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with console.status("starting ..."):
        from shotstream.runtime.bench.measure import measure
        from shotstream.runtime.bench.plans import watch_memory
        from shotstream.runtime.bench.report import write_json
        from shotstream.runtime.bench.text import lines
        from shotstream.runtime.runtime import Runtime

        asked = _BenchModel(
            model, device, weights, engine, attention, threads, decoder, engine_option or (), engine_fallback,
            dtype, ops, run_ahead,
        )  # fmt: skip
        options = asked.options()
        watch = watch_memory(model, options)
    if watch.plan is not None:
        console.print(f"memory plan of {model}: {watch.plan.sentence()}", soft_wrap=True)
    with (
        console.status(f"loading {model} ...") as status,
        Runtime(model, options, say=say_on(console, status)) as runtime,
    ):

        def tell(shot: int) -> None:
            status.update(f"shot {shot + 1} of {shots} ..." if shot >= 0 else "warming up ...")

        report = measure(runtime, shots=shots, chunks=chunks, warm_up=warm_up, memory=watch, on_shot=tell)
    for line in lines(report):
        typer.echo(line)
    if json_file is not None:
        write_json(report, json_file)
        typer.echo(str(json_file))
    if picture is not None:
        from shotstream.runtime.bench.plot import write_plot

        write_plot(report, picture)
        typer.echo(str(picture))


def compare(
    before: Report,
    after: Annotated[Path, typer.Argument(metavar="B.json", help="Likewise.")],
    fail_above: Annotated[
        float | None,
        typer.Option(
            "--fail-above", min=0, metavar="PERCENT",
            help="Exit code 1 if chunks at any position became slower by more than this, beyond doubt.",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Hold two measurements side by side: times by position with intervals, parts, and what else differs."""
    from shotstream.runtime.bench.compare import compare as hold
    from shotstream.runtime.bench.compare import lines
    from shotstream.runtime.bench.report import read_json

    found = hold(read_json(before), read_json(after))
    for line in lines(found, fail_above):
        typer.echo(line)
    if fail_above is not None and found.slower_than(fail_above):
        raise typer.Exit(1)


def plot(
    report: Report, picture: Annotated[Path, typer.Argument(metavar="FILE.png", help="The picture to write.")]
) -> None:
    """Draw a measurement that was made before, or elsewhere."""
    from shotstream.runtime.bench.report import read_json

    _check_targets(None, picture)
    found = read_json(report)
    from shotstream.runtime.bench.plot import write_plot

    write_plot(found, picture)
    typer.echo(str(picture))


def _check_targets(json_file: Path | None, picture: Path | None) -> None:
    """What would otherwise be found out after the measurement."""
    from shotstream.runtime.errors import UserError
    from shotstream.runtime.sinks.base import ensure_writable

    for path in (json_file, picture):
        if path is not None:
            ensure_writable(path.parent)
            if path.is_dir():
                raise UserError(f"{path} is a folder; give the name of a file")
    if picture is not None:
        from shotstream.runtime.bench.plot import check_plot

        check_plot(picture)
