"""Paints one character: pose from its action and the frame number, then about twenty flat shapes.

Lengths are world units above the feet; a character is one unit tall (ears included, rabbit ears reach a little
further). Speeds are capped in pixels per frame at 80 rows, see camera.py for the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .camera import Layer
from .palette import BELLY, BODY, darker, lighter, lit
from .raster import Canvas, Color, Value
from .story import Character

WALK_SPEED = 0.45 / 80  # frame heights per frame
WALK_LIMIT = {1: 0.46, 2: 0.22}  # frame heights, by size of the cast: the walker then stands, inside the frame
PERIOD = 32  # frames per hop, wave and sway
INK: Color = (44, 34, 48)
GLOW = 0.4  # share of the ambient light that tints characters: colours must stay apart at night


@dataclass(frozen=True)
class Pose:
    """Offsets of one character over the frames, world units; each a float or [F]."""

    x: Value = 0.0
    lift: Value = 0.0  # of everything above the ground
    sway: Value = 0.0  # sideways, of the head; the body follows by half
    feet: tuple[Value, Value] = (0.0, 0.0)
    arms: tuple[Value, Value] = (0.5, 0.5)  # left, right: radians from hanging down, outwards
    face: float = 0.0  # where the face points: -1 left .. 1 right
    eyes: Value = 1.0  # openness


def pose_for(action: str, t: NDArray[np.float64], pixels_per_unit: float, blink: float, budget: float,
             cast: int) -> Pose:
    """The pose over frame numbers t [F]. `pixels_per_unit` is measured at 80 rows, `budget` in pixels per frame."""
    ring = 2 * np.pi * t / PERIOD
    swing = budget * PERIOD / (2 * np.pi * pixels_per_unit)  # the amplitude that just uses up the budget
    phase = (t + blink * 40) % 44
    eyes: Value = np.clip(np.abs(phase - 41) / 3, 0.12, 1.0)
    if bool(np.all(eyes == 1.0)):
        eyes = 1.0
    if action == "jumps":
        hop = min(0.15, 2 * swing, 6.5 / pixels_per_unit)
        return Pose(lift=hop * (1 - np.cos(ring)) / 2, arms=(1.75, 1.75), eyes=eyes)
    if action == "waves":
        return Pose(arms=(0.45, 2.45 + min(0.45, 0.9 * swing / 0.3) * np.sin(ring)), eyes=eyes, face=0.25)
    if action == "dances":
        sway = min(0.075, 0.55 * swing) * np.sin(ring)
        lean = min(0.3, 0.35 * swing / 0.3) * np.sin(ring)
        return Pose(sway=sway, arms=(2.5 - lean, 2.5 + lean), eyes=eyes)
    if action.startswith("walks"):
        direction = 1.0 if action == "walks right" else -1.0
        limit = WALK_LIMIT[cast] * 80
        way = np.minimum(t * WALK_SPEED * 80, limit)
        stride = 2 * np.pi * way / pixels_per_unit / 0.62
        step = 0.075 * np.sin(stride)
        # The way is centred on the character's place, so that it stays inside the frame.
        x = direction * (way - limit / 2) / pixels_per_unit
        return Pose(x=x, feet=(step, -step), arms=(0.35 - step * 2, 0.35 + step * 2), face=direction, eyes=eyes)
    return Pose(eyes=eyes)


def paint_character(canvas: Canvas, who: Character, layer: Layer, pose: Pose, time: str) -> None:
    """Draws the character standing at its home on `layer`, back to front."""
    figure = _Figure(canvas, who, layer, pose, time)
    figure.paint()


class _Figure:
    """One drawing of one character: shared geometry and colours of its parts."""

    def __init__(self, canvas: Canvas, who: Character, layer: Layer, pose: Pose, time: str) -> None:
        self.canvas, self.who, self.pose, self.time = canvas, who, pose, time
        self.s = layer.s * who.height
        self.ground = layer.base
        self.cx = layer.x(who.home_x + pose.x)
        self.color = lit(BODY[who.color], time, GLOW)
        self.shade = darker(self.color, 0.84)
        self.line = darker(self.color, 0.5)
        self.width = 0.0115 * canvas.height
        self.ink = lit(INK, time)

    def x(self, dx: Value, sway: float = 0.0) -> Value:
        return self.cx + (dx + self.pose.sway * sway) * self.s

    def y(self, above: Value) -> Value:
        return self.ground - (above + self.pose.lift) * self.s

    def ellipse(self, dx: Value, dy: Value, rx: float, ry: Value, color: Color, sway: float = 1.0,
                angle: Value = 0.0, line: bool = False) -> None:
        self.canvas.ellipse(self.x(dx, sway), self.y(dy), rx * self.s, ry * self.s, color, angle=angle,
                            line=self.line if line else None, width=self.width)

    def box(self, dx: Value, dy: Value, hx: float, hy: float, color: Color, sway: float = 1.0, round: float = 0.0,
            line: Color | None = None) -> None:
        self.canvas.box(self.x(dx, sway), self.y(dy), hx * self.s, hy * self.s, color,
                        round=round * float(np.min(self.s)), line=line, width=self.width)

    def triangle(self, dx: float, dy: float, hx: float, hy: float, color: Color, angle: float = 0.0,
                 lean: float = 0.0, line: Color | None = None) -> None:
        self.canvas.triangle(self.x(dx, 1.0), self.y(dy), hx * self.s, hy * self.s, color, lean=lean, angle=angle,
                             line=line, width=self.width)

    def paint(self) -> None:
        self.canvas.part = "shadow"
        self.canvas.ellipse(self.cx, self.ground, 0.27 * self.s, 0.045 * self.s, (30, 26, 50), alpha=0.3)
        for part, painters in (
            ("body", (self._body,)),
            ("head", (self._ears, self._head)),
            ("face", (self._face,)),
            ("accessory", (self._accessory,)),
        ):
            self.canvas.part = f"{self.who.species} {part}"
            for paint in painters:
                paint()

    def _body(self) -> None:
        robot = self.who.species == "robot"
        if self.who.species == "cat":
            self.ellipse(0.23, 0.2, 0.13, 0.045, self.shade, sway=0.2, angle=-0.9, line=True)
        elif self.who.species == "rabbit":
            self.ellipse(-0.18, 0.16, 0.075, 0.075, lighter(self.color, 0.5), sway=0.2, line=True)
        for side, step in zip((-1, 1), self.pose.feet, strict=True):
            if robot:
                self.box(side * 0.1 + step, 0.05, 0.08, 0.055, self.shade, sway=0.0, line=self.line)
            else:
                self.ellipse(side * 0.1 + step, 0.05, 0.095, 0.06, self.shade, sway=0.0, line=True)
        if robot:
            self.box(0.0, 0.25, 0.2, 0.17, self.color, sway=0.5, round=0.04, line=self.line)
        else:
            self.ellipse(0.0, 0.25, 0.195, 0.2, self.color, sway=0.5, line=True)
        belly = lit(BELLY[self.who.belly], self.time, GLOW)
        if robot:
            self.box(0.05 * self.pose.face, 0.25, 0.115, 0.1, belly, sway=0.5)
        else:
            self.ellipse(0.05 * self.pose.face, 0.235, 0.115, 0.13, belly, sway=0.5)
        for side, angle in zip((-1, 1), self.pose.arms, strict=True):
            self._arm(side, angle, robot)

    def _arm(self, side: int, angle: Value, robot: bool) -> None:
        reach = 0.125
        shoulder_x, shoulder_y = side * 0.175, 0.345
        dx, dy = side * np.sin(angle) * reach, -np.cos(angle) * reach
        self.ellipse(shoulder_x + dx, shoulder_y + dy, 0.15, 0.062, self.shade, sway=0.6,
                     angle=side * (np.pi / 2 - angle), line=True)

    def _ears(self) -> None:
        inner = lit((255, 190, 196), self.time)
        species, worn = self.who.species, self.who.accessory
        for side in (-1, 1):
            if species == "cat":
                self.triangle(side * 0.175, 0.87, 0.115, 0.15, self.color, angle=side * 0.22, line=self.line)
                self.triangle(side * 0.175, 0.855, 0.066, 0.1, inner, angle=side * 0.22)
            elif species == "bear":
                self.ellipse(side * 0.205, 0.82, 0.105, 0.105, self.color, line=True)
                self.ellipse(side * 0.205, 0.82, 0.055, 0.055, self.shade)
            elif species == "rabbit":
                self.ellipse(side * 0.15, 0.955, 0.075, 0.2, self.color, angle=side * 0.2, line=True)
                self.ellipse(side * 0.15, 0.955, 0.034, 0.14, inner, angle=side * 0.2)
            else:
                self.box(side * 0.29, 0.62, 0.05, 0.08, self.shade, line=self.line)
        if species == "robot" and worn in ("none", "scarf"):
            self.box(0.0, 0.9, 0.018, 0.07, self.line)
            self.ellipse(0.0, 0.985, 0.05, 0.05, lit((250, 90, 80), self.time, 0.5))

    def _head(self) -> None:
        if self.who.species == "robot":
            self.box(0.0, 0.62, 0.26, 0.215, self.color, round=0.05, line=self.line)
        else:
            wide = {"cat": 0.275, "bear": 0.28, "rabbit": 0.25}[self.who.species]
            self.ellipse(0.0, 0.62, wide, 0.235, self.color, line=True)

    def _face(self) -> None:
        turn, species = 0.06 * self.pose.face, self.who.species
        white = lit((255, 255, 255), self.time, 0.35)
        size, opening = 0.072 * self.who.eye_scale, self.pose.eyes
        if species == "robot":
            self.box(turn * 0.6, 0.655, 0.2, 0.105, self.ink, round=0.03)
        elif species == "bear":
            self.ellipse(turn * 1.3, 0.535, 0.12, 0.085, lighter(self.color, 0.55))
        elif species == "rabbit":
            self.ellipse(turn * 1.3, 0.53, 0.085, 0.06, lighter(self.color, 0.7))
        for side in (-1, 1):
            x = side * 0.105 + turn
            if species == "robot":
                self.ellipse(x, 0.655, size * 0.85, size * 0.85 * opening, lit((150, 255, 250), self.time, 0.2))
            else:
                self.ellipse(x, 0.665, size, size * 1.15 * opening, white)
                self.ellipse(x + turn * 0.35, 0.66, size * 0.56, size * 0.68 * opening, self.ink)
        if species == "robot":
            self.box(turn, 0.485, 0.1, 0.022, self.ink)
        elif species == "rabbit":
            self.ellipse(turn * 1.3, 0.56, 0.028, 0.022, lit((240, 100, 130), self.time))
            self.ellipse(turn * 1.3, 0.505, 0.034, 0.018, self.ink)
        elif species == "bear":
            self.ellipse(turn * 1.3, 0.57, 0.05, 0.036, self.ink)
            self.box(turn * 1.3, 0.5, 0.045, 0.012, self.ink)
        else:
            self.triangle(turn * 1.3, 0.56, 0.04, -0.026, lit((255, 130, 150), self.time))
            self.ellipse(turn * 1.3, 0.505, 0.045, 0.022, self.ink)

    def _accessory(self) -> None:
        kind = self.who.accessory
        if kind == "none":
            return
        color = lit(BODY[self.who.accessory_color], self.time, GLOW)
        line = darker(color, 0.55)
        if kind == "top hat":
            self.box(0.0, 0.935, 0.125, 0.11, color, line=line)
            self.box(0.0, 0.875, 0.125, 0.028, darker(color, 0.6))
            self.box(0.0, 0.835, 0.2, 0.032, color, line=line)
        elif kind == "party hat":
            self.triangle(0.0, 0.93, 0.15, 0.125, color, line=line)
            self.ellipse(0.0, 0.885, 0.03, 0.03, lighter(color, 0.75) if color[2] < 200 else line)
            self.ellipse(0.0, 1.045, 0.04, 0.04, lighter(color, 0.6), line=False)
        else:
            self.box(0.0, 0.405, 0.19, 0.055, color, sway=0.75, round=0.05, line=line)
            self.box(0.1, 0.3, 0.055, 0.1, color, sway=0.65, round=0.02, line=line)
