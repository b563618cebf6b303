"""The bridge's commands: ``serve``. Mounted by the plugin, so that the runtime's command line knows nothing of it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from shotstream.runtime.cli import bench
from shotstream.runtime.cli.engine_options import EngineFallback, EngineOption, parsed_options
from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import Registry


def serve(
    model: Annotated[str, typer.Option(help="A model of the runtime, or mock: labelled pictures.")] = "tiny",
    bind: Annotated[str, typer.Option(help="Where to listen; port 0 picks a free one.")] = "tcp://127.0.0.1:5570",
    sessions: Annotated[int, typer.Option(min=1, max=64, help="Films at the same time.")] = 4,
    token: Annotated[str, typer.Option(help="What clients must bring; empty admits every local client.")] = "",
    director: Annotated[str, typer.Option(help="An event map of your own, a yaml file.")] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    weights: Annotated[str, typer.Option(help="default, random, or a folder.")] = "default",
    engine: Annotated[str, typer.Option(help="What executes the steps, as in: shotstream play.")] = "eager",
    engine_option: EngineOption = None,
    engine_fallback: EngineFallback = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of the model process; 0: as torch likes.")] = 0,
    curve_keys: Annotated[
        Path | None, typer.Option(help="Folder of keys (see: shotstream keys); needed beyond this machine.")
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Write what was made, for: shotstream replay FILE.")] = None,
    chunk_s: Annotated[float, typer.Option(min=0, help="mock: seconds a chunk.")] = 0.5,
    jitter_s: Annotated[float, typer.Option(min=0, help="mock: give or take.")] = 0.05,
    size: Annotated[str, typer.Option(help="mock: WIDTHxHEIGHT.")] = "832x480",
) -> None:
    """Serve films to game engines until interrupted."""
    from shotstream.bridge.model.options import MockOptions, WorkerOptions
    from shotstream.bridge.server.start import check_bind, check_model, directors, make_gateway, usual_director

    check_bind(bind, secure=curve_keys is not None)
    check_model(model)
    width, height = _size(size)
    mock = MockOptions(width, height, chunk_s=chunk_s, jitter_s=jitter_s)
    options = WorkerOptions(
        model, device, weights, threads, mock=mock, engine=engine,
        engine_options=parsed_options(engine_option or ()), engine_fallback=engine_fallback,
    )  # fmt: skip
    console = Console(stderr=True, highlight=False)
    gateway = make_gateway(
        options, bind, sessions=sessions, token=token, words=directors(director),
        default_words=usual_director(model, director), curve_keys=curve_keys, record=record,
    )  # fmt: skip
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: gateway.stop())
    console.print(f"listening on {gateway.endpoint}, {sessions} sessions at most")
    console.print(f'connect:  shotstream.bridge.Client("{gateway.endpoint}")')
    gateway.run(console.print)
    if gateway.failure:
        raise UserError(gateway.failure)
    console.print("stopped")


def keys(
    folder: Annotated[Path, typer.Argument(help="Where the keys lie; made if it is not there.")],
    client: Annotated[list[str] | None, typer.Option(help="Also make keys for this client; may be repeated.")] = None,
) -> None:
    """Make the server's keys, and one pair for every client that may come."""
    from shotstream.bridge.server.keys import make_client_keys, make_server_keys

    typer.echo(f"{make_server_keys(folder)}  (public: give it to every client)")
    for name in client or ():
        typer.echo(f"{make_client_keys(folder, name)}  (secret: move it to {name})")


def replay(
    file: Annotated[Path, typer.Argument(help="A recording of: shotstream serve --record FILE.")],
    out: Annotated[Path | None, typer.Option(help="Folder for an MP4 of every session.")] = None,
) -> None:
    """Make the films of a recording again and compare every frame; exit code 1 if one differs."""
    from shotstream.bridge.replay import replay as make_again

    console = Console(stderr=True, highlight=False)
    found = make_again(file, out, console.print)
    for path in found.films:
        typer.echo(str(path))
    for film, shot, chunk in found.differing:
        typer.echo(f"differs: film {film}, shot {shot}, chunk {chunk}")
    same = found.chunks - len(found.differing)
    typer.echo(
        f"{same} of {found.chunks} chunks are bit for bit the same; {sum(found.frames.values())} frames were shown"
    )
    if found.differing:
        raise typer.Exit(1)


def bench_bridge(
    runs: Annotated[int, typer.Option(min=1, max=100, help="How often everything is measured.")] = 3,
    soak: Annotated[
        float, typer.Option(min=0, help="Instead: let four players loose for so many minutes, and check everything.")
    ] = 0.0,
    model: Annotated[str, typer.Option(help="Another than mock: only how soon a player sees what he did.")] = "mock",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
) -> None:
    """Measure the bridge: its way of a frame beside bare sockets, and how soon a player sees what he did."""
    from shotstream.bridge import bench as measurement
    from shotstream.bridge.soak import soak as let_loose
    from shotstream.runtime.sinks.base import ensure_writable

    if json_file is not None:
        ensure_writable(json_file.parent)
    console = Console(stderr=True, highlight=False)
    if not soak:
        if model == "mock":
            report = measurement.measure(runs, console)
            measurement.show(report, Console(highlight=False))
        else:
            report = measurement.measure_model(model, runs)
            measurement.show_steering(report, Console(highlight=False))
        if json_file is not None:
            measurement.write_json(report, json_file)
        return
    with console.status("players ...") as status:
        soaked = let_loose(soak, status.update)
    typer.echo(
        f"{soak:g} minutes: {soaked.frames} frames, {sum(soaked.requests.values())} requests, {soaked.reconnects} "
        f"reconnects, the server grew by {soaked.grown_mb:.1f} MiB"
    )
    for sentence in soaked.wrong:
        typer.echo(f"wrong: {sentence}")
    if json_file is not None:
        measurement.write_json(soaked, json_file)
    if soaked.wrong:
        raise typer.Exit(1)


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.partition("x")
    if not cross or not width.isdigit() or not height.isdigit() or min(int(width), int(height)) < 32:
        raise UserError(f"--size {text!r} is no size; write it as 832x480, 32 pixels at least")
    if max(int(width), int(height)) > 4096:
        raise UserError(f"--size {text!r} is too large; 4096 pixels a side are the most")
    return int(width), int(height)


class BridgePlugin:
    """Mounts the bridge's commands."""

    name = "bridge"

    def build(self, registry: Registry) -> None:
        """Register the commands."""
        registry.register("command", "bridge", _mount)


def _mount(app: Any) -> None:
    for command in (serve, replay, keys):
        app.command()(command)
    bench.group(app).command("bridge")(bench_bridge)


plugin = BridgePlugin()
