"""The cast in three dimensions: the same animals and robots, colours, hats and scarfs as in the film.

Lengths are those of the film's own drawings: a character is about one unit tall, facing north, and then scaled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from panda3d.core import TransparencyAttrib

from shotstream.bridge.examples.panda3d.shapes import Colour, Mesh, rgb

SIZE = 1.75
INK, WHITE = rgb(44, 34, 48), rgb(255, 255, 255)
INNER_EAR, CREAM, ROSE, GLOW = rgb(255, 190, 196), rgb(255, 236, 200), rgb(250, 110, 130), rgb(150, 255, 250)
ONCE_S = 3.2
"""A wave, a dance or a few jumps take so long; then the character stands again."""


@dataclass(frozen=True)
class Look:
    """Who somebody is: species, colour, what they wear, and the words that the film knows them by."""

    species: str
    colour: Colour
    words: str
    worn: str = ""
    worn_colour: Colour = WHITE


CAT = Look("cat", rgb(222, 48, 48), "red cat", "scarf", rgb(46, 108, 232))
RABBIT = Look("rabbit", rgb(244, 244, 248), "white rabbit")
ROBOT = Look("robot", rgb(52, 172, 76), "green robot")
BEAR = Look("bear", rgb(252, 216, 48), "yellow bear", "top hat", rgb(222, 48, 48))


def _shade(colour: Colour, by: float) -> Colour:
    return colour[0] * by, colour[1] * by, colour[2] * by


class Person:
    """One character in the scene and what it is doing."""

    def __init__(self, parent: Any, look: Look, at: tuple[float, float], heading: float = 180.0) -> None:
        self.look = look
        self.root = parent.attachNewNode(look.words)
        self.root.setPos(at[0], at[1], 0)
        self.root.setH(heading)
        self.heading = heading
        shadow_mesh = Mesh("shadow")
        shadow_mesh.disc((0, 0, 0.015), 0.36 * SIZE, rgb(30, 48, 50), 18, alpha=0.5, rim=0.0)
        shadow = self.root.attachNewNode(shadow_mesh.node())
        shadow.setTransparency(TransparencyAttrib.MAlpha)
        shadow.setLightOff()
        shadow.setDepthWrite(False)
        shadow.setBin("fixed", 1)
        self._all = self.root.attachNewNode("all")
        self._all.setScale(SIZE)
        self._body = self._all.attachNewNode(_body(look))
        self._head = self._all.attachNewNode(_head(look))
        self._arms = [self._limb(_arm(look, side), (side * 0.175, 0.0, 0.345)) for side in (-1, 1)]
        self._feet = [self._limb(_foot(look, side), (side * 0.1, 0.0, 0.05)) for side in (-1, 1)]
        self._doing, self._since, self._speed, self._stride = "stands", 0.0, 0.0, 0.0

    def _limb(self, node: Any, at: tuple[float, float, float]) -> Any:
        path = self._all.attachNewNode(node)
        path.setPos(*at)
        return path

    @property
    def at(self) -> tuple[float, float]:
        """Where it stands."""
        return self.root.getX(), self.root.getY()

    def do(self, action: str, now: float) -> None:
        """``waves``, ``dances`` or ``jumps``, for a while."""
        self._doing, self._since = action, now

    def walk(self, speed: float) -> None:
        """How fast it walks at the moment, 0 to stand."""
        self._speed = speed

    def face(self, x: float, y: float) -> None:
        """Look towards a place."""
        self.heading = math.degrees(math.atan2(self.at[0] - x, y - self.at[1]))

    def update(self, now: float, dt: float) -> None:
        """Take the pose of this moment."""
        turn = (self.heading - self.root.getH() + 180) % 360 - 180
        self.root.setH(self.root.getH() + turn * min(1.0, dt * 9))
        since = now - self._since
        if since > ONCE_S:
            self._doing = "stands"
        beat = 2 * math.pi * since / 0.8
        lift = sway = 0.0
        arms = [0.45 + 0.05 * math.sin(now * 2), 0.45 + 0.05 * math.sin(now * 2 + 1)]
        if self._doing == "jumps":
            lift, arms = 0.28 * abs(math.sin(beat / 2)), [1.75, 1.75]
        elif self._doing == "waves":
            arms[1] = 2.45 + 0.4 * math.sin(beat * 1.2)
        elif self._doing == "dances":
            sway = 10 * math.sin(beat)
            arms = [2.4 - 0.35 * math.sin(beat), 2.4 + 0.35 * math.sin(beat)]
            lift = 0.05 * abs(math.sin(beat))
        self._stride += self._speed * dt * 4.2
        swing = math.sin(self._stride) if self._speed else 0.0
        lift += 0.03 * abs(swing)
        self._all.setZ(lift * SIZE)
        self._all.setR(sway)
        self._head.setZ(0.008 * math.sin(now * 2.2))
        self._head.setR(-sway * 0.5)
        for side, arm, angle in zip((-1, 1), self._arms, arms, strict=True):
            arm.setHpr(0, side * swing * 32, -side * math.degrees(angle))
        for side, foot in zip((-1, 1), self._feet, strict=True):
            foot.setPos(
                side * 0.1, -side * swing * 0.11, 0.05 + max(0.0, -side * math.cos(self._stride) * abs(swing) * 0.05)
            )


def _body(look: Look) -> Any:
    mesh, colour, dark = Mesh("body", vary=0.0), look.colour, _shade(look.colour, 0.84)
    if look.species == "robot":
        mesh.box((0, 0, 0.25), (0.4, 0.32, 0.34), colour)
        mesh.box((0, 0.16, 0.25), (0.22, 0.03, 0.2), ROSE)
    else:
        mesh.ball((0, 0, 0.25), (0.195, 0.175, 0.2), colour, 8, smooth=True)
        mesh.ball((0, 0.075, 0.235), (0.13, 0.125, 0.14), ROSE if look.species == "rabbit" else CREAM, 8, smooth=True)
    if look.species == "cat":
        for k in range(6):  # a tail that curls up
            mesh.ball(
                (0.05 * k * 0.5, -0.17 - 0.045 * k, 0.14 + 0.013 * k * k), (0.05, 0.05, 0.05), dark, 5, smooth=True
            )
    elif look.species == "rabbit":
        mesh.ball((0, -0.19, 0.17), (0.08, 0.08, 0.08), WHITE, 6, smooth=True)
    if look.worn == "scarf":
        mesh.cone((0, 0, 0.36), 0.215, 0.1, look.worn_colour, 14, top=0.2)
        mesh.box((0.1, 0.19, 0.29), (0.1, 0.05, 0.2), _shade(look.worn_colour, 0.9))
        mesh.box((-0.09, -0.2, 0.28), (0.1, 0.05, 0.22), _shade(look.worn_colour, 0.9))
    return mesh.node()


def _head(look: Look) -> Any:
    mesh, colour = Mesh("head", vary=0.0), look.colour
    if look.species == "robot":
        mesh.box((0, 0, 0.62), (0.52, 0.42, 0.43), colour)
        mesh.box((0, 0.21, 0.655), (0.4, 0.03, 0.21), INK)
        mesh.box((0, 0.215, 0.485), (0.2, 0.02, 0.044), INK)
        mesh.cone((0, 0, 0.83), 0.02, 0.13, INK, 6, top=0.02)
        mesh.ball((0, 0, 0.985), (0.055, 0.055, 0.055), rgb(250, 90, 80), 6, smooth=True)
    else:
        wide = {"cat": 0.275, "bear": 0.28, "rabbit": 0.25}[look.species]
        mesh.ball((0, 0, 0.62), (wide, 0.235, 0.235), colour, 9, smooth=True)
    for side in (-1, 1):
        if look.species == "robot":
            mesh.ball((side * 0.105, 0.225, 0.655), (0.062, 0.02, 0.062), GLOW, 6, smooth=True)
            mesh.box((side * 0.285, 0, 0.62), (0.07, 0.16, 0.16), _shade(colour, 0.84))
            continue
        mesh.ball((side * 0.105, 0.19, 0.665), (0.074, 0.05, 0.084), WHITE, 6, smooth=True)
        mesh.ball((side * 0.105, 0.228, 0.66), (0.042, 0.025, 0.05), INK, 6, smooth=True)
        if look.species == "cat":
            mesh.cone((side * 0.165, 0, 0.76), 0.115, 0.27, colour, 4)
            mesh.cone((side * 0.165, 0.04, 0.775), 0.075, 0.19, INNER_EAR, 4)
        elif look.species == "bear":
            mesh.ball((side * 0.205, 0, 0.82), (0.105, 0.06, 0.105), colour, 6, smooth=True)
            mesh.ball((side * 0.205, 0.04, 0.82), (0.06, 0.04, 0.06), _shade(colour, 0.8), 6, smooth=True)
        else:
            mesh.ball((side * 0.12, 0, 0.97), (0.07, 0.045, 0.22), colour, 7, smooth=True)
            mesh.ball((side * 0.12, 0.028, 0.97), (0.038, 0.03, 0.16), INNER_EAR, 7, smooth=True)
    if look.species != "robot":
        if look.species == "bear":
            mesh.ball((0, 0.2, 0.545), (0.11, 0.08, 0.08), CREAM, 6, smooth=True)
        nose = INK if look.species == "bear" else rgb(255, 130, 150)
        mesh.ball((0, 0.255 if look.species == "bear" else 0.235, 0.575), (0.035, 0.03, 0.026), nose, 5, smooth=True)
        mesh.ball((0, 0.225, 0.505), (0.05, 0.02, 0.014), INK, 5, smooth=True)
    if look.worn == "top hat":
        mesh.cone((0, 0, 0.82), 0.22, 0.04, look.worn_colour, 14, top=0.22)
        mesh.cone((0, 0, 0.86), 0.13, 0.07, _shade(look.worn_colour, 0.5), 14, top=0.13)
        mesh.cone((0, 0, 0.92), 0.13, 0.17, look.worn_colour, 14, top=0.14)
    return mesh.node()


def _arm(look: Look, side: int) -> Any:
    mesh = Mesh("arm", vary=0.0)
    mesh.ball((0, 0, -0.12), (0.06, 0.06, 0.15), _shade(look.colour, 0.86), 6, smooth=True)
    return mesh.node()


def _foot(look: Look, side: int) -> Any:
    mesh = Mesh("foot", vary=0.0)
    if look.species == "robot":
        mesh.box((0, 0.02, 0), (0.16, 0.22, 0.1), _shade(look.colour, 0.84))
    else:
        mesh.ball((0, 0.03, 0), (0.085, 0.12, 0.055), _shade(look.colour, 0.84), 6, smooth=True)
    return mesh.node()
