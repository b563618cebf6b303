"""A small software rasteriser: flat primitives with analytic signed distances and one-pixel antialiasing.

It knows nothing of stories or cameras. Every geometric value is a float (the same in all frames: drawn once)
or an array [F] (drawn over the union of its bounding boxes with [F, h, w] arrays). Units are pixels, y grows
downwards; colours are RGB in 0..255.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Value = float | NDArray[np.floating]  # a float, or one number per frame [F]
Color = tuple[float, float, float]
Array = NDArray[np.float32]


class Canvas:
    """Frames being painted. Holds one picture until the first moving primitive, then one per frame.

    Painters say in `part` what they paint; a canvas of colours does not care.
    """

    def __init__(self, frames: int, height: int, width: int) -> None:
        self.frames, self.height, self.width = frames, height, width
        self.part = "sky"
        self._pixels_CFHW: Array = np.zeros((3, 1, height, width), np.float32)

    def to_uint8(self) -> NDArray[np.uint8]:
        """The finished frames, uint8 [F, H, W, 3]."""
        planes = np.clip(self._pixels_CFHW + 0.5, 0, 255).astype(np.uint8)
        frames = np.ascontiguousarray(planes.transpose(1, 2, 3, 0))
        if len(frames) != self.frames:
            frames = np.repeat(frames, self.frames, axis=0)
        return frames

    def gradient(self, top: Color, bottom: Color, until: float) -> None:
        """Fills everything with a vertical gradient that reaches `bottom` at row `until`."""
        ramp = np.clip((np.arange(self.height, dtype=np.float32) + 0.5) / max(until, 1.0), 0, 1)
        for channel in range(3):
            column = top[channel] + (bottom[channel] - top[channel]) * ramp
            self._pixels_CFHW[channel] = column[None, :, None]

    def ellipse(self, cx: Value, cy: Value, rx: Value, ry: Value, color: Color, *,
                angle: Value = 0.0, line: Color | None = None, width: float = 0.0, alpha: float = 1.0) -> None:
        """An ellipse with radii rx, ry, turned by `angle` radians, optionally outlined inwards."""
        reach = _reach(rx, ry, angle)
        box = self._box(cx, cy, *reach)
        if box is None:
            return
        x, y = self._local(box, cx, cy, angle)
        ax, ay = _frame_axis(rx), _frame_axis(ry)
        # First-order distance to the implicit curve: exact on the edge, which is where coverage is decided.
        u, v = x / ax, y / ay
        value = u * u + v * v
        slope = (u / ax) ** 2 + (v / ay) ** 2
        np.sqrt(slope, out=slope)
        slope += 1e-6
        value -= 1.0
        value /= slope
        value *= 0.5
        self._paint(box, value, color, line, width, alpha)

    def box(self, cx: Value, cy: Value, hx: Value, hy: Value, color: Color, *, round: float = 0.0,
            angle: Value = 0.0, line: Color | None = None, width: float = 0.0, alpha: float = 1.0) -> None:
        """A rounded box with half sizes hx, hy and corner radius `round` (pixels)."""
        box = self._box(cx, cy, *_reach(hx, hy, angle, box=True))
        if box is None:
            return
        x, y = self._local(box, cx, cy, angle)
        qx = np.abs(x) - (_frame_axis(hx) - round)
        qy = np.abs(y) - (_frame_axis(hy) - round)
        distance = np.maximum(qx, qy)
        if round > 0:
            corner = np.sqrt(np.square(np.maximum(qx, 0)) + np.square(np.maximum(qy, 0)))
            distance = np.minimum(distance, 0) + corner - round
        self._paint(box, distance, color, line, width, alpha)

    def triangle(self, cx: Value, cy: Value, hx: Value, hy: Value, color: Color, *, lean: float = 0.0,
                 angle: Value = 0.0, line: Color | None = None, width: float = 0.0, alpha: float = 1.0) -> None:
        """A triangle in the box of half sizes hx, hy: base below, tip at the top, moved sideways by lean * hx."""
        box = self._box(cx, cy, *_reach(hx, hy, angle, box=True))
        if box is None:
            return
        x, y = self._local(box, cx, cy, angle)
        ax, ay = _frame_axis(hx), _frame_axis(hy)
        tip = lean * ax
        distance = y - ay
        for sign in (-1.0, 1.0):
            ex, ey = sign * ax - tip, 2 * ay  # from the tip to a base corner
            length = np.sqrt(ex * ex + ey * ey)
            side = sign * ((x - tip) * ey - (y + ay) * ex) / length
            distance = np.maximum(distance, side)
        self._paint(box, distance.astype(np.float32), color, line, width, alpha)

    def _box(self, cx: Value, cy: Value, rx: Value, ry: Value) -> tuple[int, int, int, int] | None:
        left, right = float(np.min(cx - rx)) - 1, float(np.max(cx + rx)) + 1
        top, bottom = float(np.min(cy - ry)) - 1, float(np.max(cy + ry)) + 1
        x0, x1 = max(int(np.floor(left)), 0), min(int(np.ceil(right)), self.width)
        y0, y1 = max(int(np.floor(top)), 0), min(int(np.ceil(bottom)), self.height)
        return (x0, x1, y0, y1) if x0 < x1 and y0 < y1 else None

    def _local(self, box: tuple[int, int, int, int], cx: Value, cy: Value, angle: Value) -> tuple[Array, Array]:
        """Pixel centres relative to the primitive, [1|F, 1|h, w] and [1|F, h, 1|w]."""
        x0, x1, y0, y1 = box
        x = np.arange(x0, x1, dtype=np.float32)[None, None, :] + 0.5 - _frame_axis(cx)
        y = np.arange(y0, y1, dtype=np.float32)[None, :, None] + 0.5 - _frame_axis(cy)
        if isinstance(angle, float) and angle == 0.0:
            return x, y
        cos, sin = _frame_axis(np.cos(angle)), _frame_axis(np.sin(angle))
        return cos * x + sin * y, cos * y - sin * x

    def _paint(self, box: tuple[int, int, int, int], distance: Array, color: Color, line: Color | None,
               width: float, alpha: float) -> None:
        x0, x1, y0, y1 = box
        if distance.shape[0] > 1 and self._pixels_CFHW.shape[1] == 1:
            self._pixels_CFHW = np.repeat(self._pixels_CFHW, self.frames, axis=1)
        region = self._pixels_CFHW[:, :, y0:y1, x0:x1]
        if line is not None and width > 0:
            self._blend(region, np.clip(0.5 - distance, 0, 1), line)
            distance = distance + width
        cover = np.clip(0.5 - distance, 0, 1)
        if alpha < 1:
            cover *= alpha
        self._blend(region, cover, color)

    def _blend(self, region_CFHW: Array, cover_FHW: Array, color: Color) -> None:
        keep = 1.0 - cover_FHW
        for channel in range(3):
            plane = region_CFHW[channel]
            plane *= keep
            plane += cover_FHW * np.float32(color[channel])


def _frame_axis(value: Value) -> Array | np.float32:
    if isinstance(value, np.ndarray) and value.ndim:
        return value.astype(np.float32)[:, None, None]
    return np.float32(value)


def _reach(rx: Value, ry: Value, angle: Value, box: bool = False) -> tuple[Value, Value]:
    """Half sizes of the upright box around a turned shape."""
    if isinstance(angle, float) and angle == 0.0:
        return rx, ry
    cos, sin = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    if box:
        return cos * rx + sin * ry, sin * rx + cos * ry
    return np.sqrt((cos * rx) ** 2 + (sin * ry) ** 2), np.sqrt((sin * rx) ** 2 + (cos * ry) ** 2)
