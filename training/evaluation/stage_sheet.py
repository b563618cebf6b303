"""One story through all stages as a picture: a row per stage, two frames a shot, captions above. Pixels only."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from shotstream.runtime.errors import UserError

_LINE, _LETTER, _GAP = 13, 6, 4
_INK, _DIM = (235, 235, 235), (150, 150, 150)
_MOMENTS = (0.4, 1.0)
"""Which frames of a shot are shown, as shares of its length."""

Shots = Sequence[NDArray[np.uint8]]


def write_stage_sheet(title: str, captions: Sequence[str], rows: Mapping[str, Shots], path: Path) -> None:
    """A PNG: `title` and the shot captions on top, then every row's shots, uint8 [F, H, W, 3], under its name.

    Rows may differ in size (renders are smaller): all are brought to the largest. Raises UserError when there is
    nothing to show.
    """
    if not rows:
        raise UserError("there are no frames for the contact sheet")
    height = max(shots[0].shape[1] for shots in rows.values())
    width = max(shots[0].shape[2] for shots in rows.values())
    across = len(_MOMENTS) * width + _GAP
    wrapped = [textwrap.wrap(caption, (across - _GAP) // _LETTER) for caption in captions]
    head = _LINE * (2 + max(len(lines) for lines in wrapped))
    size = (len(captions) * across - _GAP, head + len(rows) * (height + _LINE + _GAP) - _GAP)
    sheet = Image.new("RGB", size)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 1), title[: size[0] // _LETTER], fill=_INK)
    for k, lines in enumerate(wrapped):
        for i, line in enumerate(lines):
            draw.text((k * across + _GAP, _LINE * (i + 1) + 3), line, fill=_DIM)
    for r, (name, shots) in enumerate(rows.items()):
        top = head + r * (height + _LINE + _GAP)
        draw.text((_GAP, top), name, fill=_INK)
        for k, shot in enumerate(shots):
            for m, moment in enumerate(_MOMENTS):
                frame = Image.fromarray(shot[round(moment * (len(shot) - 1))]).resize((width, height))
                sheet.paste(frame, (k * across + m * width, top + _LINE))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
