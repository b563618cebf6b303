"""The place where the game is played: a meadow with a path to a drive-in cinema, a beach on its left, a town on its
right. Only geometry; what the time of day does to it is `daylight.py`.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from panda3d.core import NodePath, TextNode, TransparencyAttrib

from shotstream.bridge.examples.panda3d.shapes import Colour, Mesh, Point, rgb

SCREEN_AT = (0.0, 25.0)
SIGN_AT = (3.3, 4.8)
RABBIT_AT, ROBOT_AT, BEAR_AT = (-3.4, 0.4), (-9.8, 8.6), (9.4, 8.2)
START_AT = (0.3, -7.0)
BOUNDS = (-13.5, 13.5, -11.0, 14.5)
"""Where the player may go: west, east, south, north."""
PATHS = (
    ((0.3, -16.0), (0.0, 3.0), (0.0, 17.5)),
    ((0.0, 4.0), (-6.0, 6.2), (-11.5, 9.0)),
    ((0.0, 4.0), (6.0, 5.8), (12.0, 8.6)),
)
GRASS, LEAF_GREEN = (rgb(150, 208, 92), rgb(122, 188, 74)), (rgb(74, 152, 70), rgb(96, 172, 80), rgb(58, 132, 72))
EARTH, SAND, WATER, STONE = rgb(226, 200, 142), rgb(246, 222, 158), rgb(58, 150, 214), rgb(166, 168, 180)
TRUNK, WOOD = rgb(124, 84, 56), rgb(158, 112, 74)
HOUSES = (
    (-13.4, 16.4, 3.2, rgb(206, 84, 76), rgb(150, 58, 50), 24.0),
    (13.2, 16.2, 2.9, rgb(246, 236, 214), rgb(76, 84, 108), -26.0),
    (-15.4, -0.6, 2.6, rgb(244, 210, 110), rgb(164, 62, 52), 50.0),
)  # fmt: skip
LOGS = ((-3.4, 14.6), (3.4, 14.6), (-5.8, 12.6), (5.8, 12.6))
"""Benches before the screen."""
TREES = (
    (-9.4, -5.4, 1.0), (-15.0, 2.6, 0.9), (-7.6, 3.0, 0.9), (9.6, -2.2, 1.05), (13.8, 0.4, 1.3), (12.6, 4.2, 0.8),
    (14.6, 3.8, 1.0), (-14.8, 5.0, 1.1), (-4.8, -8.8, 0.9), (5.4, -8.4, 1.1), (-9.4, 19.0, 0.9), (9.2, 18.6, 0.9),
    (-10.0, 23.0, 1.2), (10.4, 23.5, 1.25), (14.2, 25.0, 1.3), (-13.6, 26.0, 1.3), (-11.0, 30.0, 1.6), (9.5, 31.0, 1.5),
    (-7.0, 32.0, 1.3), (5.0, 33.0, 1.4), (13.8, 31.5, 1.4), (0.0, 34.0, 1.5), (16.0, -6.0, 1.3), (-15.6, -7.0, 1.4),
)  # fmt: skip


@dataclass
class Landscape:
    """The nodes that daylight changes."""

    root: Any
    windows: Any
    clouds: Any
    boards: tuple[Any, Any]

    def write(self, left: str, right: str) -> None:
        """What the signpost says."""
        for board, text in zip(self.boards, (left, right), strict=True):
            if board.getText() != text:
                board.setText(text)


def build(render: Any) -> Landscape:
    """Everything that stands still, under ``render``."""
    root = render.attachNewNode("landscape")
    root.attachNewNode(_ground())
    solid, windows = Mesh("solid", seed=3), Mesh("windows", seed=4)
    for x, y, size in TREES:
        _tree(solid, x, y, size)
    for x, y, size, wall, roof, turn in HOUSES:
        _house(solid, windows, (x, y), size, (wall, roof), turn)
    _town(solid, windows)
    _far(solid)
    _small_things(solid)
    _signpost(solid)
    root.attachNewNode(solid.node())
    shadows = root.attachNewNode(_shadows())
    shadows.setTransparency(TransparencyAttrib.MAlpha)
    shadows.setLightOff()
    shadows.setDepthWrite(False)
    shadows.setBin("fixed", 0)
    lit: Any = root.attachNewNode(windows.node())
    lit.setLightOff()
    return Landscape(root, lit, _clouds(render), (_board(root, -1, 1.9), _board(root, 1, 1.4)))


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    share = min(1.0, max(0.0, share))
    return tuple(p + (q - p) * share for p, q in zip(a, b, strict=True))  # type: ignore[return-value]


def _from_path(x: float, y: float) -> float:
    """How far a point is from the nearest path."""
    nearest = math.inf
    for path in PATHS:
        for (ax, ay), (bx, by) in pairwise(path):
            dx, dy = bx - ax, by - ay
            along = min(1.0, max(0.0, ((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy)))
            nearest = min(nearest, math.hypot(x - ax - along * dx, y - ay - along * dy))
    return nearest


def _soil(x: float, y: float) -> Colour:
    wave = 0.5 + 0.5 * math.sin(x * 0.35 + math.sin(y * 0.27) * 2)
    colour = _mix(*GRASS, wave)
    colour = _mix(colour, SAND, (-x - 11.2 + 0.9 * math.sin(y * 0.8)) / 2.2 if y > 2 else 0.0)
    colour = _mix(colour, WATER, -x - 21.5 + 0.8 * math.sin(y * 0.5) if y > 5 else 0.0)
    colour = _mix(colour, STONE, (x - 12.6) / 2.4 if y > 4 else 0.0)
    return _mix(EARTH, colour, (_from_path(x, y) - 0.62) / 0.3)


def _far_soil(x: float, y: float) -> Colour:
    shore = -27.0 - 0.25 * abs(y - 30.0)
    if y > 0 and x < shore + 9.0:
        return WATER if x < shore else SAND
    return STONE if y > 0 and x > 21.0 else _mix(*GRASS, 0.7)


def _ground() -> Any:
    mesh = Mesh("ground", seed=2, vary=0.018)
    step = 0.75
    for i in range(-36, 36):
        for j in range(-30, 42):
            x, y = i * step, j * step
            corners = [(x, y, 0.0), (x + step, y, 0.0), (x + step, y + step, 0.0), (x, y + step, 0.0)]
            mesh.face(corners, EARTH, tints=[_soil(cx, cy) for cx, cy, _ in corners])
    coarse = 6.0  # further out; small enough for the haze, which is reckoned at the corners
    for i in range(-26, 26):
        for j in range(-6, 24):
            x, y = i * coarse, j * coarse
            low = -0.08
            corners = [(x, y, low), (x + coarse, y, low), (x + coarse, y + coarse, low), (x, y + coarse, low)]
            mesh.face(corners, _far_soil(x + coarse / 2, y + coarse / 2))
    return mesh.node()


def _tree(mesh: Mesh, x: float, y: float, size: float) -> None:
    dice = random.Random(round(x * 31 + y * 17))
    green = dice.choice(LEAF_GREEN)
    mesh.cone((x, y, 0.0), 0.24 * size, 1.3 * size, TRUNK, 6, top=0.16 * size)
    if dice.random() < 0.45:
        for k in range(3):
            mesh.cone(
                (x, y, (1.0 + 0.85 * k) * size),
                (1.25 - 0.3 * k) * size,
                1.45 * size,
                _mix(green, GRASS[0], 0.12 * k),
                8,
            )
        return
    for dx, dy, dz, radius in ((0.0, 0.0, 2.2, 1.1), (0.65, 0.2, 1.8, 0.75), (-0.6, -0.25, 1.85, 0.8)):
        centre = (x + dx * size, y + dy * size, dz * size)
        mesh.ball(centre, (radius * size, radius * size, 0.9 * radius * size), _mix(green, GRASS[0], dz - 1.8), 5)


def _house(
    mesh: Mesh, windows: Mesh, at: tuple[float, float], size: float, colours: tuple[Colour, Colour], turn: float
) -> None:
    (x, y), (wall, roof) = at, colours
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))

    def place(dx: float, dy: float, z: float) -> Point:
        return x + dx * cos - dy * sin, y + dx * sin + dy * cos, z

    w, d, h = size * 0.62, size * 0.5, size * 0.8
    mesh.box((x, y, h / 2), (2 * w, 2 * d, h), wall, turn)
    over, top = 1.16, h + size * 0.55
    eaves = [place(sx * w * over, sy * d * over, h) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    ridge = [place(-w * over, 0.0, top), place(w * over, 0.0, top)]
    mesh.face((eaves[0], eaves[1], ridge[1], ridge[0]), roof)
    mesh.face((eaves[2], eaves[3], ridge[0], ridge[1]), roof)
    mesh.face((eaves[1], eaves[2], ridge[1]), wall)
    mesh.face((eaves[3], eaves[0], ridge[0]), wall)
    mesh.box(place(w * 0.5, d * 0.3, top), (0.3, 0.3, 0.9), roof, turn)
    mesh.box(place(-w * 0.35, -d, h * 0.34), (0.62, 0.1, h * 0.68), _mix(roof, (0, 0, 0), 0.25), turn)
    windows.box(place(w * 0.45, -d, h * 0.55), (0.6, 0.1, 0.55), (1.0, 0.94, 0.72), turn)


def _town(mesh: Mesh, windows: Mesh) -> None:
    dice = random.Random(12)
    tones = (rgb(150, 160, 190), rgb(176, 150, 170), rgb(140, 172, 186), rgb(196, 176, 156), rgb(168, 170, 200))
    for row, y in enumerate((17.0, 25.0, 34.0)):
        for column in range(5):
            x = 20.0 + 5.4 * column + row * 1.5
            width, height = dice.uniform(3.2, 4.4), dice.uniform(5.0, 8.5) + 2.4 * row
            mesh.box((x, y, height / 2), (width, 3.6, height), dice.choice(tones))
            mesh.box((x, y, height + 0.12), (width + 0.25, 3.85, 0.24), rgb(112, 116, 140))
            for level in range(int(height / 1.5)):
                for k in (-1, 0, 1):
                    if dice.random() < 0.75:
                        windows.box(
                            (x + k * width / 3.4, y - 1.81, 1.0 + 1.45 * level), (0.55, 0.06, 0.75), (1.0, 0.92, 0.68)
                        )
                        windows.box(
                            (x - width / 2 - 0.01, y + k * 1.1, 1.0 + 1.45 * level),
                            (0.06, 0.55, 0.75),
                            (1.0, 0.92, 0.68),
                        )


def _far(mesh: Mesh) -> None:
    hill = rgb(112, 176, 116)
    for x, y, radius, height in (
        (-14, 92, 34, 13), (26, 100, 40, 16), (64, 88, 30, 10), (-52, 104, 38, 14), (-92, 98, 30, 9), (4, 116, 50, 20),
        (98, 106, 40, 14),
    ):  # fmt: skip
        mesh.ball((x, y, -1.0), (radius, radius * 0.6, height), _mix(hill, GRASS[1], (y - 88) / 60), 10)
    sail = (-44.0, 66.0)
    mesh.box((*sail, 0.7), (4.2, 1.3, 0.9), rgb(164, 62, 52))
    mesh.face(((sail[0], sail[1], 1.5), (sail[0] + 2.3, sail[1], 1.6), (sail[0], sail[1], 7.0)), rgb(250, 248, 240))
    mesh.face(
        ((sail[0] - 0.3, sail[1], 6.2), (sail[0] - 1.9, sail[1], 1.6), (sail[0] - 0.3, sail[1], 1.5)),
        rgb(250, 248, 240),
    )


def _small_things(mesh: Mesh) -> None:
    dice = random.Random(8)
    petals = (rgb(252, 216, 48), rgb(255, 255, 255), rgb(252, 140, 190), rgb(222, 70, 70))
    for _ in range(150):
        x, y = dice.uniform(-11.0, 11.5), dice.uniform(-11.0, 15.0)
        if _from_path(x, y) < 1.1:
            continue
        mesh.cone((x, y, 0.0), 0.025, 0.2, LEAF_GREEN[0], 3)
        mesh.ball((x, y, 0.24), (0.09, 0.09, 0.06), dice.choice(petals), 3)
    for _ in range(90):
        x, y = dice.uniform(-12.0, 12.0), dice.uniform(-12.0, 16.0)
        if _from_path(x, y) > 1.0:
            for k in (-1, 0, 1):
                mesh.cone((x + k * 0.1, y, 0.0), 0.05, dice.uniform(0.2, 0.34), _mix(*GRASS, 0.9), 3)
    for x, y, size in ((-2.1, 6.8, 0.34), (2.2, -3.4, 0.3), (-1.6, -5.6, 0.26), (5.2, 3.6, 0.4), (-6.3, 8.4, 0.36)):
        mesh.ball((x, y, size * 0.25), (size, size * 0.8, size * 0.6), rgb(176, 178, 184), 4)
    for x, y in LOGS:
        mesh.box((x, y, 0.42), (2.6, 0.5, 0.2), WOOD)
        for k in (-1, 1):
            mesh.cone((x + k * 0.9, y, 0.0), 0.2, 0.34, TRUNK, 6, top=0.2)


def _signpost(mesh: Mesh) -> None:
    x, y = SIGN_AT
    mesh.cone((x, y, 0.0), 0.1, 2.35, TRUNK, 6, top=0.08)
    mesh.ball((x, y, 2.4), (0.15, 0.15, 0.15), rgb(222, 48, 48), 4)
    for side, z, colour in ((-1, 1.9, rgb(104, 158, 222)), (1, 1.4, rgb(244, 210, 110))):
        a, b, tip = x + side * 0.12, x + side * 1.15, x + side * 1.5
        for dy in (-0.14, -0.06):
            low, high = z - 0.21, z + 0.21
            board = [(a, y + dy, low), (b, y + dy, low), (tip, y + dy, z), (b, y + dy, high), (a, y + dy, high)]
            mesh.face(board if side > 0 else board[::-1], colour)


def _board(root: Any, side: int, z: float) -> Any:
    node = TextNode("board")
    node.setAlign(TextNode.ACenter)
    node.setTextColor(0.2, 0.15, 0.2, 1)
    path = root.attachNewNode(node)
    path.setScale(0.29)
    path.setPos(SIGN_AT[0] + side * 0.72, SIGN_AT[1] - 0.17, z - 0.08)
    path.setLightOff()
    return node


def _shadows() -> Any:
    mesh = Mesh("shadows")
    dark = rgb(30, 48, 50)
    for x, y, size in TREES:
        mesh.disc((x + 0.35 * size, y + 0.2, 0.012), 1.5 * size, dark, 18, alpha=0.34, squash=0.8, rim=0.0)
    for x, y, size, *_ in HOUSES:
        mesh.disc((x + 0.3, y + 0.2, 0.012), 1.3 * size, dark, 20, alpha=0.5, squash=0.8, rim=0.0)
    mesh.disc((*SIGN_AT, 0.012), 0.55, dark, 14, alpha=0.34, rim=0.0)
    mesh.disc((SCREEN_AT[0], SCREEN_AT[1] - 0.2, 0.012), 9.0, dark, 24, alpha=0.42, squash=0.2, rim=0.0)
    for x, y in LOGS:
        mesh.disc((x, y, 0.012), 1.6, dark, 16, alpha=0.36, squash=0.4, rim=0.0)
    return mesh.node()


def _clouds(render: Any) -> NodePath:
    mesh = Mesh("clouds", vary=0.012)
    for x, y, z, size in ((-46, 150, 46, 9), (38, 160, 54, 11), (-100, 160, 60, 9), (96, 150, 44, 8), (-6, 170, 66, 7)):
        for dx, dz, radius in (
            (0.0, 0.0, 1.0),
            (1.0, -0.15, 0.72),
            (-1.05, -0.18, 0.66),
            (0.45, 0.3, 0.7),
            (1.7, -0.3, 0.4),
        ):
            mesh.ball(
                (x + dx * size, y, z + dz * size), (radius * size, 5, 0.55 * radius * size), (1, 1, 1), 5, smooth=True
            )
    clouds = render.attachNewNode(mesh.node())
    clouds.setFogOff()
    return clouds
