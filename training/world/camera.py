"""Where the camera stands in a shot and how world units become pixels, layer by layer.

Lengths are world units (1 = the usual height of a character) and frame heights; speeds are frame heights per
frame, kept under 1/80 so that nothing moves by more than a pixel per frame at 80x128: the video VAE folds four
frames into one latent and smears whatever is faster.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .raster import Value
from .story import Shot, Story

ZOOM = {"wide": 0.42, "medium": 0.62, "close-up": 1.1}  # frame heights per world unit
HORIZON = {"wide": 0.60, "medium": 0.60, "close-up": 0.62}  # share of the frame height
FEET = {"wide": 0.87, "medium": 0.925, "close-up": 1.27}
SIDE = {"wide": 0.62, "medium": 0.45, "close-up": 0.2}  # world units from the centre, for one character
SIDE_BOTH = {"wide": 0.5, "medium": 0.2, "close-up": 0.0}
ANCHOR = 0.42  # a push in grows around this height of the frame

PAN_SPEED = 0.4 / 80
PAN_LIMIT = 0.30  # frame heights, then the camera rests
PUSH_SPEED = 0.0045  # relative growth per frame
PUSH_LIMIT = {"wide": 1.2, "medium": 1.16, "close-up": 1.1}


@dataclass(frozen=True)
class Layer:
    """One depth: `x` and `y` map world units to pixels, `s` is pixels per world unit."""

    s: Value
    base: Value  # pixel row of the layer's ground line
    centre: float  # pixel column of the frame's centre
    offset: Value  # camera x as this layer sees it, in world units

    def x(self, world: Value) -> Value:
        return self.centre + (world - self.offset) * self.s

    def y(self, above: Value) -> Value:
        return self.base - above * self.s


@dataclass(frozen=True)
class Camera:
    """The camera of one shot over the requested frames. All values are floats or [F]."""

    height: int
    width: int
    zoom: Value
    growth: Value  # of the push in; 1 without
    x: Value
    horizon: Value
    feet: Value

    @property
    def moving(self) -> bool:
        return isinstance(self.x, np.ndarray) or isinstance(self.zoom, np.ndarray)

    def layer(self, depth: float) -> Layer:
        """`depth` 1 is the stage where the characters stand, 0 infinitely far away."""
        follow = depth**2 if depth < 1 else 1.0
        wide = ZOOM["wide"]
        scale = wide * (self.zoom / wide) ** depth * (0.9 + 0.1 * depth)
        base = self.horizon + (self.feet - self.horizon) * _ground_share(depth)
        return Layer(scale * self.height, base * self.height, self.width / 2, self.x * follow)


def _ground_share(depth: float) -> float:
    """How far below the horizon things at this depth stand, as a share of the way to the characters' feet."""
    return max(0.0, (depth - 0.4) / 0.6) ** 2


def camera_for(story: Story, shot: Shot, frames: NDArray[np.float64], height: int, width: int) -> Camera:
    """Places the camera of `shot`; `frames` are the frame numbers to draw, [F]."""
    zoom0 = ZOOM[shot.size]
    homes = [story.characters[i].home_x for i in shot.cast]
    side = (SIDE if len(homes) == 1 else SIDE_BOTH)[shot.size]
    x0 = sum(homes) / len(homes) - shot.side * side
    x: Value = x0
    growth: Value = 1.0
    if shot.camera.startswith("pan"):
        direction = 1.0 if shot.camera == "pan right" else -1.0
        travel = np.minimum(frames * PAN_SPEED, PAN_LIMIT)
        # Half the way before, half after the composed picture, so that the cast stays inside the frame.
        x = x0 * 0.55 + (sum(homes) / len(homes)) * 0.45 + direction * (travel - PAN_LIMIT / 2) / zoom0
    elif shot.camera == "push in":
        growth = np.minimum(1.0 + frames * PUSH_SPEED, PUSH_LIMIT[shot.size])
    gentle = growth**0.5 if isinstance(growth, np.ndarray) else 1.0
    return Camera(
        height=height,
        width=width,
        zoom=zoom0 * growth,
        growth=growth,
        x=x,
        horizon=ANCHOR + (HORIZON[shot.size] - ANCHOR) * gentle,
        feet=ANCHOR + (FEET[shot.size] - ANCHOR) * growth,
    )
