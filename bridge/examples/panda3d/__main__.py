"""The way in: ``python -m shotstream.bridge.examples.panda3d``. Exit codes: 0 done, 2 something you can put right."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from shotstream.bridge.examples.panda3d.cinema import ANSWER_S, OWN_ANSWER_S, Cinema
from shotstream.bridge.examples.panda3d.serving import Server
from shotstream.runtime.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Play, and say in one sentence what is in the way of that."""
    asked = _arguments(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped then, too
    try:
        _play(asked)
    except UserError as error:
        sys.stderr.write(f"panda3d example: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="shotstream.bridge.examples.panda3d", description=__doc__.partition(".")[0])
    parser.add_argument("--connect", default="", metavar="ENDPOINT", help="a server that runs, tcp://127.0.0.1:5570; "
                        "without this one is started")  # fmt: skip
    parser.add_argument("--model", default="tiny", help="of the server that is started: tiny or mock")
    parser.add_argument("--size", default="", help="of mock's pictures, WIDTHxHEIGHT")
    parser.add_argument("--chunk-s", type=float, default=0.0, help="seconds that mock takes for a chunk")
    parser.add_argument("--seed", type=int, help="of the film; without one every film is another")
    parser.add_argument("--window", default="1280x720", help="its size, WIDTHxHEIGHT")
    parser.add_argument("--script", type=Path, metavar="DIR", help="no window: play a fixed sequence of keys, write "
                        "pictures and report.json into DIR")  # fmt: skip
    return parser.parse_args(arguments)


def _play(asked: argparse.Namespace) -> None:
    base = _open_window(asked.window, headless=asked.script is not None)
    from shotstream.bridge.examples.panda3d.game import Game
    from shotstream.bridge.examples.panda3d.script import Script

    with ExitStack() as stack:
        server = None if asked.connect else stack.enter_context(Server(asked.model, asked.size, asked.chunk_s))
        game = Game(base, time.monotonic())
        stack.callback(game.close)
        base.accept("escape", sys.exit)
        script = Script(game, asked.script) if asked.script is not None else None
        running = True
        while running:
            now = time.monotonic()
            if server is not None:
                server.check()
            endpoint = asked.connect or (server.endpoint if server is not None else "")
            if game.cinema is None and endpoint:
                game.cinema = Cinema(endpoint, now, ANSWER_S if asked.connect else OWN_ANSWER_S, asked.seed)
            game.update(now)
            running = script is None or script.step(now)
            base.taskMgr.step()


def _open_window(size: str, headless: bool) -> Any:
    """Panda3D with a window, or without one. Raises `UserError` where it, or a display, is missing."""
    width, cross, height = size.partition("x")
    if not cross or not width.isdigit() or not height.isdigit() or min(int(width), int(height)) < 64:
        raise UserError(f"--window {size!r} is no size; write it as 1280x720")
    try:
        from direct.showbase.ShowBase import ShowBase
        from panda3d.core import loadPrcFileData
    except ImportError:
        raise UserError("Panda3D is not installed; it comes with: pip install 'shotstream[panda3d]'") from None
    settings = [
        "window-title ShotStream: the drive-in", f"win-size {width} {height}", "audio-library-name null",
        "framebuffer-multisample 1", "multisamples 4", "notify-level error", "text-minfilter linear_mipmap_linear",
        "print-pipe-types false",
    ]  # fmt: skip
    if headless:
        settings += ["load-display p3headlessgl", "window-type offscreen", "clock-mode limited", "clock-frame-rate 20"]
    else:
        settings += ["sync-video 1"]
    loadPrcFileData("", "\n".join(settings))
    try:
        base = ShowBase()
    except Exception as error:  # Panda3D has nothing narrower than Exception for this
        missing = "EGL (Debian: libegl1 libgl1 libgl1-mesa-dri)" if headless else "a display; --script DIR needs none"
        raise UserError(f"Panda3D cannot open anything to draw on, it needs {missing} [{error}]") from None
    from panda3d.core import AntialiasAttrib

    base.render.setAntialias(AntialiasAttrib.MMultisample)
    return base


if __name__ == "__main__":
    sys.exit(main())
