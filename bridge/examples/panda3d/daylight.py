"""What the time of day does to the place: sky, sun or moon, two soft lights, fog, and the screen's own shine on the
grass. The film decides which time it is; the change takes a few seconds.
"""

from __future__ import annotations

import random
from dataclasses import astuple, dataclass
from typing import Any

from panda3d.core import (
    AmbientLight,
    CardMaker,
    DirectionalLight,
    Fog,
    PNMImage,
    PointLight,
    Texture,
    TransparencyAttrib,
    Vec3,
    Vec4,
)

from shotstream.bridge.examples.panda3d.landscape import SCREEN_AT, Landscape
from shotstream.bridge.examples.panda3d.shapes import Colour, Mesh, rgb

CHANGE_S = 2.5


@dataclass(frozen=True)
class Mood:
    """Colours of one time of day; ``sun_at`` is where the sun or moon stands, ``dark`` 1 brings stars and windows."""

    sky: Colour
    horizon: Colour
    ambient: Colour
    sun: Colour
    fill: Colour
    disc: Colour
    cloud: Colour
    sun_at: tuple[float, float, float]
    dark: float


MOODS = {
    "day": Mood(
        rgb(84, 166, 244), rgb(206, 234, 255), (0.52, 0.55, 0.62), (0.62, 0.57, 0.47), (0.10, 0.13, 0.2),
        rgb(255, 232, 130), (0.62, 0.62, 0.62), (-92.0, 260.0, 124.0), 0.0,
    ),
    "sunset": Mood(
        rgb(212, 108, 122), rgb(255, 206, 140), (0.50, 0.40, 0.44), (0.72, 0.44, 0.24), (0.16, 0.08, 0.2),
        rgb(255, 244, 190), (0.66, 0.42, 0.40), (-74.0, 260.0, 48.0), 0.35,
    ),
    "night": Mood(
        rgb(18, 22, 62), rgb(66, 78, 146), (0.25, 0.28, 0.44), (0.16, 0.2, 0.34), (0.05, 0.05, 0.12),
        rgb(240, 240, 226), (0.16, 0.2, 0.36), (64.0, 260.0, 116.0), 1.0,
    ),
}  # fmt: skip


class Daylight:
    """Sky and lights of the scene."""

    def __init__(self, render: Any, camera: Any, land: Landscape) -> None:
        self._land = land
        self._from = self._to = self._now = _numbers(MOODS["day"])
        self._share = 1.0
        self._time = "day"
        self._ambient, self._sun, self._fill = (
            AmbientLight("ambient"),
            DirectionalLight("sun"),
            DirectionalLight("fill"),
        )
        self._shine = PointLight("shine")
        self._shine.setAttenuation((1.0, 0.0, 0.012))
        for light in (self._ambient, self._sun, self._fill, self._shine):
            path = render.attachNewNode(light)
            render.setLight(path)
            if light is self._sun:
                path.lookAt(Vec3(0.55, 0.75, -1.0))
            elif light is self._fill:
                path.lookAt(Vec3(-0.8, 0.3, -0.3))
            elif light is self._shine:
                path.setPos(SCREEN_AT[0], SCREEN_AT[1] - 4.0, 5.0)
        self._fog = Fog("haze")
        self._fog.setLinearRange(24.0, 190.0)
        render.setFog(self._fog)
        self._sky, self._horizon = _backdrop(camera, gradient=False), _backdrop(camera, gradient=True)
        self._disc = _far_node(render, _disc())
        self._disc.setP(90)
        self._stars = _far_node(render, _stars())
        self._apply()

    def turn_to(self, time: str) -> None:
        """It becomes that time."""
        if time != self._time and time in MOODS:
            self._time, self._from, self._to, self._share = time, self._now, _numbers(MOODS[time]), 0.0

    def update(self, dt: float, shine: Colour) -> None:
        """Go on with the change; ``shine`` is the mean colour of the picture on the screen."""
        if self._share < 1.0:
            self._share = min(1.0, self._share + dt / CHANGE_S)
            soft = self._share * self._share * (3 - 2 * self._share)
            self._now = [a + (b - a) * soft for a, b in zip(self._from, self._to, strict=True)]
            self._apply()
        strength = 0.25 + 1.15 * self._now[-1]
        self._shine.setColor(Vec4(*(part * strength for part in shine), 1.0))

    def _apply(self) -> None:
        parts = [Vec4(*self._now[i : i + 3], 1.0) for i in range(0, 21, 3)]
        sky, horizon, ambient, sun, fill, disc, cloud = parts
        dark = self._now[-1]
        self._sky.setColor(sky)
        self._horizon.setColor(horizon)
        for light, colour in ((self._ambient, ambient), (self._sun, sun), (self._fill, fill)):
            light.setColor(colour)
        self._fog.setColor(horizon * 0.8 + sky * 0.2)
        self._disc.setColorScale(disc)
        self._disc.setPos(*self._now[21:24])
        self._stars.setColorScale(1, 1, 1, max(0.0, dark * 1.5 - 0.5))
        self._land.clouds.setLightOff()
        self._land.clouds.setColorScale(cloud * 0.6 + horizon * 0.6)
        self._land.windows.setColorScale(Vec4(0.45, 0.62, 0.82, 1) * (1 - dark) + Vec4(1.0, 0.86, 0.52, 1) * dark)


def _numbers(mood: Mood) -> list[float]:
    found: list[float] = []
    for part in astuple(mood):
        found.extend(part if isinstance(part, tuple) else (part,))
    return found


def _backdrop(camera: Any, gradient: bool) -> Any:
    """A card behind everything that moves with the camera; with ``gradient`` it fades out upwards."""
    maker = CardMaker("sky")
    maker.setFrame(-700, 700, -230, 400)
    card = camera.attachNewNode(maker.generate())
    card.setY(480)
    card.setLightOff()
    card.setFogOff()
    card.setDepthWrite(False)
    card.setDepthTest(False)
    card.setBin("background", 1 if gradient else 0)
    if gradient:
        image = PNMImage(1, 128, 4)
        for row in range(128):
            height = (row / 127 - 0.45) / 0.55  # rows from the top; the horizon lies a little below the middle
            image.setXelA(0, row, 1, 1, 1, min(1.0, max(0.0, height * 2.2)) ** 0.8)
        texture = Texture("gradient")
        texture.load(image)
        texture.setWrapV(Texture.WMClamp)
        card.setTexture(texture)
        card.setTransparency(TransparencyAttrib.MAlpha)
    return card


def _far_node(render: Any, node: Any) -> Any:
    path = render.attachNewNode(node)
    path.setLightOff()
    path.setFogOff()
    path.setDepthWrite(False)
    path.setBin("background", 2)
    path.setTransparency(TransparencyAttrib.MAlpha)
    return path


def _disc() -> Any:
    """Sun or moon with a halo, in the plane that faces the meadow."""
    mesh = Mesh("disc", vary=0.0)
    mesh.disc((0, 0, 0), 34.0, (1, 1, 1), 40, alpha=0.42, rim=0.0)
    mesh.disc((0, 0, 0.5), 11.0, (1, 1, 1), 40)
    return mesh.node()


def _stars() -> Any:
    mesh, dice = Mesh("stars", vary=0.3), random.Random(5)
    for _ in range(140):
        x, z, size = dice.uniform(-260, 260), dice.uniform(40, 210), dice.uniform(0.35, 0.9)
        mesh.face(((x - size, 300, z), (x, 300, z - size), (x + size, 300, z), (x, 300, z + size)), (1, 1, 1))
    return mesh.node()
