"""Contact sheets of training: rows of frames with a caption line, one PNG a sheet. Pixels only, no models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from shotstream.training.data.stories import TrainingStories

_CAPTION = 14


def shown(stories: TrainingStories, most: int) -> list[tuple[int, int]]:
    """Up to ``most`` stories with history, and of each a shot behind another one."""
    found: list[tuple[int, int]] = []
    for story in range(len(stories)):
        if len(found) < most and stories.shots(story) > 1:
            found.append((story, 1 + len(found) % (stories.shots(story) - 1)))
    return found


def to_uint8(video: Tensor) -> np.ndarray:
    """Pixels in [-1, 1] ``[..., 3, H, W]`` to uint8 ``[..., H, W, 3]``."""
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()


def write_sheet(rows: Sequence[tuple[str, Sequence[np.ndarray]]], path: Path) -> None:
    """One row per entry: its caption above its frames (uint8 ``[H, W, 3]``, all of one size); no rows, no sheet."""
    if not rows:
        return
    height, width = rows[0][1][0].shape[:2]
    columns = max(len(frames) for _, frames in rows)
    sheet = Image.new("RGB", (columns * width, len(rows) * (height + _CAPTION)))
    draw = ImageDraw.Draw(sheet)
    for r, (caption, frames) in enumerate(rows):
        top = r * (height + _CAPTION)
        draw.text((3, top + 1), caption[: columns * width // 6], fill=(235, 235, 235))
        for c, frame in enumerate(frames):
            sheet.paste(Image.fromarray(frame), (c * width, top + _CAPTION))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def write_bars(scores: dict[str, dict[str, float]], path: Path) -> None:
    """Shares of right answers as bars: one row per question of the first score, one bar per score."""
    slots = list(next(iter(scores.values())))
    image = Image.new("RGB", (640, 20 + 34 * len(slots)), "white")
    draw = ImageDraw.Draw(image)
    for row, slot in enumerate(slots):
        draw.text((8, 12 + 34 * row), slot, fill="black")
        for i, (wording, shares) in enumerate(scores.items()):
            share, y = shares.get(slot, 0.0), 12 + 34 * row + 14 * i
            draw.rectangle((120, y, 120 + 380 * share, y + 10), fill=((70, 120, 190), (230, 140, 60))[i % 2])
            draw.text((510, y - 1), f"{share:.3f} {wording}", fill="black")
    image.save(path)
