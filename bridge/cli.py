"""The bridge's commands: ``serve``. Mounted by the plugin, so that the runtime's command line knows nothing of it."""

from __future__ import annotations

import signal
from typing import Annotated, Any

import typer
from rich.console import Console

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
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of the model process; 0: as torch likes.")] = 0,
    chunk_s: Annotated[float, typer.Option(min=0, help="mock: seconds a chunk.")] = 0.5,
    jitter_s: Annotated[float, typer.Option(min=0, help="mock: give or take.")] = 0.05,
    size: Annotated[str, typer.Option(help="mock: WIDTHxHEIGHT.")] = "832x480",
) -> None:
    """Serve films to game engines until interrupted."""
    from shotstream.bridge.model.options import MockOptions, WorkerOptions
    from shotstream.bridge.server.start import check_bind, directors, make_gateway, usual_director

    check_bind(bind, secure=False)
    width, height = _size(size)
    mock = MockOptions(width, height, chunk_s=chunk_s, jitter_s=jitter_s)
    options = WorkerOptions(model, device, weights, threads, mock)
    console = Console(stderr=True, highlight=False)
    gateway = make_gateway(
        options, bind, sessions=sessions, token=token, words=directors(director),
        default_words=usual_director(model, director),
    )  # fmt: skip
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: gateway.stop())
    console.print(f"listening on {gateway.endpoint}, {sessions} sessions at most")
    console.print(f'connect:  shotstream.bridge.Client("{gateway.endpoint}")')
    gateway.run(console.print)
    if gateway.failure:
        raise UserError(gateway.failure)
    console.print("stopped")


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.partition("x")
    if not cross or not width.isdigit() or not height.isdigit() or min(int(width), int(height)) < 32:
        raise UserError(f"--size {text!r} is no size; write it as 832x480, 32 pixels at least")
    return int(width), int(height)


class BridgePlugin:
    """Mounts the bridge's commands."""

    name = "bridge"

    def build(self, registry: Registry) -> None:
        """Register the commands."""
        registry.register("command", "bridge", _mount)


def _mount(app: Any) -> None:
    app.command()(serve)


plugin = BridgePlugin()
