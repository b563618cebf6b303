"""The film drawn in a terminal: two pixels per character (upper half block), 24-bit colour. The window is elsewhere."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from shotstream.runtime.sinks.base import FilmChunk, FilmInfo
from shotstream.runtime.sinks.pace import Pacer, Picture

_MAX_COLUMNS = 120  # enough to see what happens; more only costs the processor that makes the film
_STATUS_LINES = 2


class TerminalSink:
    """Draws frames on `stream` (standard output). In a terminal the picture stays in place, with one status line under
    it, at the film's speed; elsewhere (a pipe, a log) the first frame of every chunk is written once, below the other.
    `target` is not used. Options: `stream`."""

    def __init__(self, target: Path | None = None, options: Mapping[str, Any] | None = None) -> None:
        self._stream: TextIO = (options or {}).get("stream", sys.stdout)
        self._terminal = self._stream.isatty()
        self._pacer: Pacer | None = None
        self._status = ""
        self._drawn_rows = 0
        self._gone = False

    def open(self, info: FilmInfo) -> None:
        """Start drawing."""
        self._status = info.global_caption
        if self._terminal:
            self._pacer = Pacer(info.frames_per_second, self._draw_in_place)

    def write(self, chunk: FilmChunk) -> None:
        """Queue a chunk's frames (terminal) or write its first one (anything else)."""
        self._status = f"shot {chunk.shot + 1}: {chunk.caption}"
        if self._pacer is not None:
            for picture_HWC in chunk.frames_FHWC:
                self._pacer.put(picture_HWC)
        else:
            self._write(half_blocks(chunk.frames_FHWC[0], 64, 40) + "\n")

    def close(self, complete: bool = True) -> list[Path]:
        """Let the rest of a complete film be seen, then stop; no files."""
        if self._pacer is not None:
            self._pacer.finish(wait_seconds=3.0 if complete else 0.0)
            self._pacer = None
            self._write("\x1b[0m\n")
        return []

    def _write(self, text: str) -> None:
        """A reader that went away (`| head`) ends the drawing, not the film."""
        if self._gone:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._gone = True

    def _draw_in_place(self, picture_HWC: Picture) -> None:
        size = shutil.get_terminal_size()
        text = half_blocks(picture_HWC, min(size.columns, _MAX_COLUMNS), max(1, size.lines - _STATUS_LINES))
        up = f"\x1b[{self._drawn_rows}A\r" if self._drawn_rows else ""
        status = self._status[: max(0, size.columns - 1)]
        self._write(f"\x1b[?25l{up}{text}\n\x1b[2K{status}\r\x1b[?25h")
        self._drawn_rows = text.count("\n") + 1


def half_blocks(picture_HWC: Picture, columns: int, rows: int) -> str:
    """A picture as text of at most `columns` x `rows` characters, two square pixels in each, aspect kept."""
    height, width = picture_HWC.shape[:2]
    scale = min(columns / width, 2 * rows / height)
    size = (max(1, int(width * scale)), max(2, int(height * scale) // 2 * 2))
    small_HWC = np.asarray(Image.fromarray(picture_HWC).resize(size, Image.Resampling.BILINEAR))
    lines = []
    for top_WC, bottom_WC in zip(small_HWC[0::2].tolist(), small_HWC[1::2].tolist(), strict=True):
        cells = []
        before = None
        for top, bottom in zip(top_WC, bottom_WC, strict=True):
            colours = (*top, *bottom)
            if colours != before:
                cells.append("\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*colours))
                before = colours
            cells.append("▀")
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)
