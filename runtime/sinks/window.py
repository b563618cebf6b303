"""A preview window. The window is a process of its own, fed through a pipe, so that nothing it does can hold up or end
the film: a closed window ends the preview only. Run as a module, this file is that process.
"""

from __future__ import annotations

import base64
import logging
import subprocess
import sys
import threading
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from shotstream.runtime.errors import UserError
from shotstream.runtime.sinks.base import FilmChunk, FilmInfo
from shotstream.runtime.sinks.pace import Pacer, Picture

log = logging.getLogger(__name__)

_WINDOW_WIDTH = 1024  # the picture is enlarged by a whole number up to about this
_READY = b"ready\n"


def why_no_window() -> str | None:
    """None if a window can be opened here, else the reason. Opens and closes an invisible one to know."""
    try:
        import tkinter
    except ImportError:
        return "tkinter is not installed"
    try:
        tkinter.Tk(className="shotstream").destroy()
    except tkinter.TclError as error:
        return str(error)
    return None


class WindowSink:
    """Shows frames in a window at the film's speed. `target` is not used and there are no options."""

    def __init__(self, target: Path | None = None, options: Mapping[str, Any] | None = None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pacer: Pacer | None = None

    def open(self, info: FilmInfo) -> None:
        """Open the window; UserError if it does not come up."""
        command = [sys.executable, "-m", "shotstream.runtime.sinks.window", str(info.width), str(info.height)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        assert process.stdout is not None
        if process.stdout.readline() != _READY:
            process.kill()
            raise UserError("the preview window could not be opened; leave --live away or run without a display")
        self._process = process
        self._pacer = Pacer(info.frames_per_second, self._send)

    def _send(self, picture_HWC: Picture) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(picture_HWC.tobytes())
        self._process.stdin.flush()

    def write(self, chunk: FilmChunk) -> None:
        """Queue a chunk's frames for the window."""
        if self._pacer is not None:
            for picture_HWC in chunk.frames_FHWC:
                self._pacer.put(picture_HWC)

    def close(self, complete: bool = True) -> list[Path]:
        """Let the rest of a complete film be seen, then close the window; no files."""
        if self._pacer is not None:
            self._pacer.finish(wait_seconds=3.0 if complete else 0.0)
            self._pacer = None
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        return []


def show_pipe(width: int, height: int, source: IO[bytes]) -> None:
    """The window's own process: read raw RGB frames of `width` x `height` from `source` and show the newest."""
    import tkinter

    root = tkinter.Tk(className="shotstream")
    root.title("shotstream")
    zoom = max(1, _WINDOW_WIDTH // width)
    label = tkinter.Label(root, borderwidth=0, background="black")
    label.pack()
    sys.stdout.buffer.write(_READY)
    sys.stdout.buffer.flush()
    newest: list[bytes] = []
    ended = threading.Event()

    def read() -> None:
        while len(data := source.read(width * height * 3)) == width * height * 3:
            newest[:] = [data]
        ended.set()

    def show() -> None:
        if newest:
            picture_HWC = np.frombuffer(newest.pop(), np.uint8).reshape(height, width, 3)
            large = Image.fromarray(picture_HWC).resize((width * zoom, height * zoom), Image.Resampling.BICUBIC)
            buffer = BytesIO()
            large.save(buffer, format="PPM")
            photo = tkinter.PhotoImage(data=base64.b64encode(buffer.getvalue()))
            label.configure(image=photo)
            label.photo = photo  # type: ignore[attr-defined]  # Tk keeps no reference of its own
        if ended.is_set():
            root.destroy()
        else:
            root.after(10, show)

    threading.Thread(target=read, daemon=True).start()
    show()
    root.mainloop()


if __name__ == "__main__":
    show_pipe(int(sys.argv[1]), int(sys.argv[2]), sys.stdin.buffer)
