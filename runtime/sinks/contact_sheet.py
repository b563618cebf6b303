"""The film on one page: a row per shot, a few frames spread over it, its caption underneath; above it, what was chosen
and the global caption of a new scene. A picture, not a video.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from shotstream.runtime.errors import UserError
from shotstream.runtime.sinks.base import FilmChunk, FilmInfo, replace_file, shot_frames

_TILE_WIDTH = 256  # at most; smaller films keep their own size
_GAP = 8
_FONT_SIZE = 16
_MAX_ROWS = 100  # an endless film must not make an endless picture
_PAPER, _INK, _FAINT = (250, 249, 245), (32, 32, 36), (120, 118, 112)


@dataclass
class _Row:
    shot: int
    caption: str
    wanted: frozenset[int]
    before: tuple[str, ...]
    """Lines above the tiles."""
    tiles: list[Image.Image] = field(default_factory=list)
    seen: int = 0


class ContactSheetSink:
    """Writes `target` (PNG) on close. Options: `columns`, frames per shot, 1..12, default 5."""

    def __init__(self, target: Path, options: Mapping[str, Any] | None = None) -> None:
        self.target = target
        self._columns = int((options or {}).get("columns", 5))
        if not 1 <= self._columns <= 12:
            raise UserError(f"a contact sheet has 1 to 12 columns, not {self._columns}")
        self._info: FilmInfo | None = None
        self._rows: list[_Row] = []
        self._left_out = 0
        self._written = False

    def open(self, info: FilmInfo) -> None:
        """Remember the film's facts; nothing is written before `close`."""
        self._info = info

    def write(self, chunk: FilmChunk) -> None:
        """Keep the frames that the sheet will show, scaled down; all others are let go."""
        if not self._rows or self._rows[-1].shot != chunk.shot:
            if len(self._rows) >= _MAX_ROWS:
                self._left_out += chunk.index == 0
                return
            wanted = _spread(self._columns, shot_frames(chunk.chunks))
            before = [f"{taken.question} {taken.label}" for taken in chunk.taken]
            before += [chunk.scene.global_caption] if chunk.scene is not None else []
            self._rows.append(_Row(chunk.shot, chunk.caption, wanted, tuple(before)))
        row = self._rows[-1]
        for offset, picture_HWC in enumerate(chunk.frames_FHWC):
            number = row.seen + offset
            if number in row.wanted:
                row.tiles.append(self._tile(Image.fromarray(picture_HWC)))
        row.seen += len(chunk.frames_FHWC)

    def _tile(self, picture: Image.Image) -> Image.Image:
        if picture.width <= _TILE_WIDTH:
            return picture.copy()
        height = round(picture.height * _TILE_WIDTH / picture.width)
        return picture.resize((_TILE_WIDTH, height), Image.Resampling.LANCZOS)

    def close(self, complete: bool = True) -> list[Path]:
        """Draw and write the sheet; a film without frames leaves no file."""
        if self._rows and self._info is not None and not self._written:
            buffer = BytesIO()
            self._draw(self._info).save(buffer, format="PNG")
            replace_file(self.target, buffer.getvalue())
            self._written = True
        return [self.target] if self._written else []

    def _draw(self, info: FilmInfo) -> Image.Image:
        tile_width, tile_height = self._rows[0].tiles[0].size
        width = self._columns * (tile_width + _GAP) + _GAP
        font = ImageFont.load_default(size=_FONT_SIZE)
        line_height = round(_FONT_SIZE * 1.35)
        texts: list[tuple[int, list[str], tuple[int, int, int]]] = []
        y = _GAP

        def write(text: str, ink: tuple[int, int, int]) -> None:
            nonlocal y
            texts.append((y + _GAP // 2, wrap(text, font, width - 2 * _GAP), ink))
            y += len(texts[-1][1]) * line_height + 2 * _GAP

        write(info.global_caption, _FAINT)
        tops = []
        for row in self._rows:
            for text in row.before:
                write(text, _FAINT)
            tops.append(y)
            y += tile_height
            write(f"{row.shot + 1}. {row.caption}", _INK)
        if self._left_out:
            write(f"and {self._left_out} more shots", _FAINT)
        page = Image.new("RGB", (width, y), _PAPER)
        draw = ImageDraw.Draw(page)
        for top, row in zip(tops, self._rows, strict=True):
            for column, tile in enumerate(row.tiles):
                page.paste(tile, (_GAP + column * (tile_width + _GAP), top))
        for top, lines, ink in texts:
            for index, line in enumerate(lines):
                draw.text((_GAP, top + index * line_height), line, font=font, fill=ink)
        return page


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break `text` into lines of at most `width` pixels; a single word that is wider is broken inside."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        while font.getlength(word) > width and len(word) > 1:
            cut = max(1, int(len(word) * width / font.getlength(word)) - 1)
            lines += [line] if line else []
            lines.append(word[:cut])
            line, word = "", word[cut:]
        if line and font.getlength(f"{line} {word}") > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [*lines, line] if line or not lines else lines


def _spread(count: int, frames: int) -> frozenset[int]:
    """`count` frame numbers from the first to the last, evenly; fewer if the shot has fewer frames."""
    if count == 1:
        return frozenset({frames // 2})
    return frozenset(round(index * (frames - 1) / (count - 1)) for index in range(count))
