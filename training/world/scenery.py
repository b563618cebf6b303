"""Paints the stage: sky, far layer, ground, house, trees. Characters are painted over it by figures.py."""

from __future__ import annotations

import math

from .camera import Camera, Layer
from .palette import CLOUD, FAR, GROUND, HOUSE, ROOF, SKY, SUN, darker, lighter, lit
from .raster import Canvas, Color, Value
from .story import Background


def paint_scenery(canvas: Canvas, background: Background, camera: Camera) -> None:
    """Everything behind the characters, back to front."""
    canvas.part = "sky"
    _sky(canvas, background, camera)
    canvas.part = "far"
    _far(canvas, background, camera)
    canvas.part = "ground"
    _ground(canvas, background, camera)
    canvas.part = "tree"
    for x, scale in background.trees:
        _tree(canvas, background, camera.layer(0.66 if abs(x) < 1.7 else 0.6), x, scale)
    canvas.part = "house"
    _house(canvas, background, camera.layer(0.66), background.house_side * 1.22, 0.012 * camera.height)


def _sky(canvas: Canvas, background: Background, camera: Camera) -> None:
    top, bottom = SKY[background.time]
    h, w = float(camera.height), float(camera.width)
    canvas.gradient(top, bottom, h * 0.62)
    sky = camera.layer(0.12)
    shift = -sky.offset * sky.s
    x, y = background.sun
    if background.time == "night":
        for i, phase in enumerate(background.far_phase[:6]):
            canvas.ellipse((i + 0.2 + 0.6 * phase) / 6 * w + shift, (0.05 + 0.38 * ((phase * 7) % 1)) * h,
                           0.009 * h, 0.009 * h, (226, 226, 240))
    if background.time == "sunset":
        y += 0.12
        canvas.ellipse(x * w + shift, y * h, 0.15 * h, 0.15 * h, (255, 206, 140), alpha=0.5)
    canvas.part = "sun"
    canvas.ellipse(x * w + shift, y * h, 0.09 * h, 0.09 * h, SUN[background.time])
    if background.time == "night":
        canvas.ellipse(x * w + shift - 0.025 * h, y * h - 0.02 * h, 0.026 * h, 0.026 * h, (204, 206, 206))
        canvas.ellipse(x * w + shift + 0.035 * h, y * h + 0.03 * h, 0.02 * h, 0.02 * h, (204, 206, 206))
    canvas.part = "cloud"
    for cx, cy in background.clouds:
        for dx, dy, r in ((-0.075, 0.012, 0.045), (0.07, 0.015, 0.04), (0.0, -0.01, 0.062)):
            canvas.ellipse(cx * w + shift + dx * h, (cy + dy) * h, r * 1.35 * h, r * 0.8 * h, CLOUD[background.time])


def _far(canvas: Canvas, background: Background, camera: Camera) -> None:
    far, phase, time = camera.layer(0.3), background.far_phase, background.time
    color = lit(FAR[background.place], time)
    if background.place == "meadow":
        for i, x in enumerate((-1.9, -0.6, 0.7, 2.0)):
            shade = color if i % 2 else darker(color, 0.88)
            canvas.ellipse(far.x(x + 0.5 * (phase[i] - 0.5)), far.y(0.0), 0.95 * far.s,
                           (0.22 + 0.22 * phase[i + 4]) * far.s, shade)
    elif background.place == "forest":
        for i in range(9):
            height = 0.26 + 0.14 * phase[i % 8]
            shade = color if i % 2 else darker(color, 0.82)
            canvas.triangle(far.x(-2.2 + 0.55 * i), far.y(height - 0.06), 0.34 * far.s, (height + 0.06) * far.s, shade)
    elif background.place == "beach":
        sea = far.base - 0.26 * far.s
        canvas.box(far.centre, sea + 0.2 * far.s, float(camera.width), 0.2 * far.s, color)
        canvas.box(far.centre, sea + 0.22 * far.s, float(camera.width), 0.02 * far.s, lighter(color, 0.4))
        boat = -1.2 + 2.4 * phase[0]
        canvas.triangle(far.x(boat), far.y(0.36), 0.1 * far.s, 0.13 * far.s, lit((250, 246, 240), time, 0.8))
        canvas.box(far.x(boat), far.y(0.21), 0.14 * far.s, 0.035 * far.s, lit((190, 70, 60), time))
    elif background.place == "desert":
        for i, x in enumerate((-1.5, 0.1, 1.6)):
            size, x = 0.34 + 0.22 * phase[i], x + 0.6 * (phase[i + 3] - 0.5)
            top = 0.24 + 0.26 * phase[(i + 5) % 8]
            canvas.box(far.x(x), far.y(0.0), size * far.s, top * far.s, color)
            canvas.box(far.x(x), far.y(-0.1), (size + 0.13) * far.s, (top * 0.5 + 0.1) * far.s, darker(color, 0.86))
    elif background.place == "snowfield":
        for i, x in enumerate((-1.7, 1.4, -0.2)):
            x, top = x + 0.5 * (phase[i] - 0.5), 0.5 + 0.26 * phase[i + 3]
            shade = color if i < 2 else darker(color, 0.86)
            canvas.triangle(far.x(x), far.y(top / 2), 0.85 * far.s, top / 2 * far.s, shade)
            canvas.triangle(far.x(x), far.y(top * 0.84), 0.272 * far.s, 0.16 * top * far.s, lit((250, 252, 255), time))
    else:
        for i in range(7):
            top, x = 0.3 + 0.42 * phase[i], -2.1 + 0.7 * i
            shade = color if i % 2 else darker(color, 0.84)
            canvas.box(far.x(x), far.y(top / 2 - 0.05), 0.29 * far.s, (top / 2 + 0.05) * far.s, shade)
            glass = (255, 222, 120) if time == "night" else lit((190, 206, 232), time)
            for row in range(2):
                canvas.box(far.x(x), far.y(top - 0.13 - 0.17 * row), 0.15 * far.s, 0.035 * far.s, glass)


def _ground(canvas: Canvas, background: Background, camera: Camera) -> None:
    back, front = (lit(c, background.time) for c in GROUND[background.place])
    h, w = camera.height, float(camera.width)
    top, line = camera.horizon * h, camera.layer(0.86).base
    if background.place == "beach":
        canvas.box(w / 2, top + h, w, float(h), lit((250, 250, 250), background.time))
        top = top + 0.018 * h
    canvas.box(w / 2, top + h, w, float(h), back)
    canvas.box(w / 2, line + h, w, float(h), front)
    if background.place == "city":
        stage, paint = camera.layer(0.93), lit((238, 232, 200), background.time)
        for i in range(-4, 5):
            canvas.box(stage.x(0.8 * i), stage.y(0.0), 0.2 * stage.s, 0.02 * stage.s, paint)


def _house(canvas: Canvas, background: Background, near: Layer, x: float, width: float) -> None:
    time = background.time
    wall, roof = lit(HOUSE[background.house_color], time), lit(ROOF[background.roof], time)
    edge, s = darker(wall, 0.6), near.s
    canvas.box(near.x(x), near.y(0.27), 0.4 * s, 0.3 * s, wall)
    canvas.triangle(near.x(x), near.y(0.75), 0.54 * s, 0.2 * s, roof)
    canvas.box(near.x(x - 0.17), near.y(0.15), 0.09 * s, 0.17 * s, edge)
    glass: Color = (255, 226, 120) if time == "night" else lit((196, 230, 250), time)
    canvas.box(near.x(x + 0.16), near.y(0.3), 0.11 * s, 0.1 * s, glass, line=edge, width=width)


def _tree(canvas: Canvas, background: Background, near: Layer, x: float, scale: float) -> None:
    time, s = background.time, near.s * scale
    trunk = lit((120, 82, 58), time)

    def up(y: float) -> Value:
        return near.base - y * s

    base_x = near.x(x)
    if background.place == "meadow":
        leaf = lit((70, 152, 74), time)
        canvas.box(base_x, up(0.2), 0.055 * s, 0.25 * s, trunk)
        canvas.ellipse(base_x, up(0.7), 0.34 * s, 0.36 * s, leaf)
        canvas.ellipse(base_x - 0.08 * s, up(0.8), 0.17 * s, 0.16 * s, lighter(leaf, 0.16))
    elif background.place in ("forest", "snowfield"):
        snowy = background.place == "snowfield"
        leaf = lit((60, 122, 104) if snowy else (40, 104, 62), time)
        canvas.box(base_x, up(0.06), 0.06 * s, 0.12 * s, trunk)
        for y, half, tall in ((0.4, 0.36, 0.26), (0.68, 0.29, 0.24), (0.94, 0.21, 0.2)):
            canvas.triangle(base_x, up(y), half * s, tall * s, leaf)
            leaf = lighter(leaf, 0.1)
        if snowy:
            canvas.triangle(base_x, up(1.04), 0.105 * s, 0.1 * s, lit((250, 252, 255), time))
    elif background.place == "beach":
        leaf = lit((64, 156, 84), time)
        canvas.box(base_x, up(0.42), 0.045 * s, 0.5 * s, lit((168, 120, 76), time), angle=0.1)
        for angle in (-0.5, 0.5, 2.6, -2.6, -1.2):
            reach = 0.24 if angle != -1.2 else 0.16
            dx, dy = _turn(angle, reach)
            canvas.ellipse(base_x + (0.05 + dx) * s, up(0.92 - dy), 0.26 * s, 0.075 * s, leaf, angle=angle)
    elif background.place == "desert":
        leaf = lit((78, 156, 92), time)
        canvas.box(base_x, up(0.36), 0.1 * s, 0.42 * s, leaf, round=0.0)
        canvas.ellipse(base_x, up(0.78), 0.1 * s, 0.1 * s, leaf)
        for side, y in ((-1, 0.34), (1, 0.46)):
            canvas.box(base_x + side * 0.17 * s, up(y), 0.14 * s, 0.06 * s, leaf)
            canvas.box(base_x + side * 0.26 * s, up(y + 0.11), 0.06 * s, 0.17 * s, leaf)
    else:
        pole = lit((70, 74, 92), time)
        canvas.box(base_x, up(0.45), 0.035 * s, 0.48 * s, pole)
        canvas.box(base_x, up(0.02), 0.08 * s, 0.04 * s, pole)
        lamp: Color = (255, 232, 140) if time == "night" else lit((252, 240, 200), time)
        if time == "night":
            canvas.ellipse(base_x, up(1.0), 0.26 * s, 0.26 * s, lamp, alpha=0.22)
        canvas.ellipse(base_x, up(1.0), 0.11 * s, 0.11 * s, lamp)
        canvas.box(base_x, up(1.11), 0.09 * s, 0.03 * s, pole)


def _turn(angle: float, reach: float) -> tuple[float, float]:
    return math.cos(angle) * reach, math.sin(angle) * reach
