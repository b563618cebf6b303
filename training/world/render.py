"""Renders a shot of a story to frames. The scene depends on the story alone, never on the resolution asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .camera import ZOOM, camera_for
from .figures import paint_character, pose_for
from .raster import Canvas
from .scenery import paint_scenery
from .story import Story

SPEED_BUDGET = 0.9  # pixels per frame at 80 rows for what moves by itself
SPEED_BUDGET_MOVING_CAMERA = 0.45


def render_shot(story: Story, k: int, frames: int | Sequence[int] = 33, height: int = 80,
                width: int = 128) -> NDArray[np.uint8]:
    """Frames of shot k (zero-based), uint8 [F, H, W, 3].

    `frames` is a count or the frame numbers wanted, in any order; 16 frames are a second. Any height and width
    of the aspect 10:16 show the same scene.
    """
    numbers = np.arange(frames) if isinstance(frames, int) else np.asarray(list(frames))
    canvas = Canvas(len(numbers), height, width)
    paint_shot(canvas, story, k, numbers.astype(np.float64))
    return canvas.to_uint8()


def paint_shot(canvas: Canvas, story: Story, k: int, t: NDArray[np.float64]) -> None:
    """Paints shot k at the frame numbers t [F] onto a canvas of as many frames."""
    shot = story.shots[k]
    camera = camera_for(story, shot, t, canvas.height, canvas.width)
    paint_scenery(canvas, story.background, camera)
    stage = camera.layer(1.0)
    budget = SPEED_BUDGET_MOVING_CAMERA if camera.moving else SPEED_BUDGET
    # Who stands still is painted first: as long as nothing moved, one picture serves all frames.
    order = sorted(range(len(shot.cast)), key=lambda i: shot.actions[i] != "stands still")
    for i in order:
        who = story.characters[shot.cast[i]]
        pose = pose_for(shot.actions[i], t, 80 * ZOOM[shot.size], (shot.blink + 0.37 * i) % 1.0, budget, len(shot.cast))
        paint_character(canvas, who, stage, pose, story.background.time)
