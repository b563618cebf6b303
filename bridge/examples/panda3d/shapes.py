"""Low-poly shapes from code: a `Mesh` collects coloured triangles and becomes one node, so that a whole landscape is
drawn in one call. Faces are flat-shaded and differ a little in brightness, which is what makes them look cut by hand.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, TypeAlias

from panda3d.core import Geom, GeomNode, GeomTriangles, GeomVertexData, GeomVertexFormat, GeomVertexWriter, Vec3

Point: TypeAlias = tuple[float, float, float]
Colour: TypeAlias = tuple[float, float, float]


def rgb(red: float, green: float, blue: float) -> Colour:
    """A colour from numbers up to 255."""
    return red / 255, green / 255, blue / 255


class Mesh:
    """Triangles to be; ``vary`` is how much the brightness of faces differs."""

    def __init__(self, name: str, seed: int = 1, vary: float = 0.05) -> None:
        self._data = GeomVertexData(name, GeomVertexFormat.getV3n3c4(), Geom.UHStatic)
        self._vertex = GeomVertexWriter(self._data, "vertex")
        self._normal = GeomVertexWriter(self._data, "normal")
        self._colour = GeomVertexWriter(self._data, "color")
        self._triangles = GeomTriangles(Geom.UHStatic)
        self._count = 0
        self._random, self._vary, self._name = random.Random(seed), vary, name

    def node(self) -> Any:
        """What was collected, as a `GeomNode`."""
        geom = Geom(self._data)
        geom.addPrimitive(self._triangles)
        node = GeomNode(self._name)
        node.addGeom(geom)
        return node

    def face(
        self, corners: Sequence[Point], colour: Colour, normals: Sequence[Any] = (), alpha: float = 1.0,
        tints: Sequence[Colour] = (),
    ) -> None:  # fmt: skip
        """A flat polygon, corners counter-clockwise; ``normals`` make it look round, ``tints`` colour each corner."""
        flat = (Vec3(*corners[1]) - Vec3(*corners[0])).cross(Vec3(*corners[2]) - Vec3(*corners[0]))
        flat.normalize()
        shade = 1.0 if normals else 1 + self._vary * (2 * self._random.random() - 1)
        first, self._count = self._count, self._count + len(corners)
        for place, corner in enumerate(corners):
            self._vertex.addData3(*corner)
            self._normal.addData3(normals[place] if normals else flat)
            self._colour.addData4(*(min(1.0, part * shade) for part in (tints[place] if tints else colour)), alpha)
        for i in range(1, len(corners) - 1):
            self._triangles.addVertices(first, first + i, first + i + 1)

    def box(self, centre: Point, size: Point, colour: Colour, turn: float = 0.0) -> None:
        """``size`` in x, y, z; ``turn`` in degrees about z."""
        cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))

        def at(x: int, y: int, z: int) -> Point:
            dx, dy = x * size[0] / 2, y * size[1] / 2
            return centre[0] + dx * cos - dy * sin, centre[1] + dx * sin + dy * cos, centre[2] + z * size[2] / 2

        for a, b, c, d in (
            (at(-1, -1, -1), at(1, -1, -1), at(1, -1, 1), at(-1, -1, 1)),
            (at(1, -1, -1), at(1, 1, -1), at(1, 1, 1), at(1, -1, 1)),
            (at(1, 1, -1), at(-1, 1, -1), at(-1, 1, 1), at(1, 1, 1)),
            (at(-1, 1, -1), at(-1, -1, -1), at(-1, -1, 1), at(-1, 1, 1)),
            (at(-1, -1, 1), at(1, -1, 1), at(1, 1, 1), at(-1, 1, 1)),
            (at(-1, 1, -1), at(1, 1, -1), at(1, -1, -1), at(-1, -1, -1)),
        ):
            self.face((a, b, c, d), colour)

    def cone(self, base: Point, radius: float, height: float, colour: Colour, sides: int = 7, top: float = 0.0) -> None:
        """From ``radius`` at the base to ``top`` (a stump or a column where that is not 0)."""
        x, y, z = base
        ring = [2 * math.pi * i / sides + 0.3 for i in range(sides + 1)]
        low = [(x + radius * math.cos(a), y + radius * math.sin(a), z) for a in ring]
        high = [(x + top * math.cos(a), y + top * math.sin(a), z + height) for a in ring]
        for i in range(sides):
            if top:
                self.face((low[i], low[i + 1], high[i + 1], high[i]), colour)
            else:
                self.face((low[i], low[i + 1], (x, y, z + height)), colour)
        if top:
            self.face(high[:-1], colour)

    def ball(self, centre: Point, radii: Point, colour: Colour, detail: int = 6, smooth: bool = False) -> None:
        """An ellipsoid of ``detail`` rings; ``smooth`` for characters, faceted for trees and stones."""
        rings, around = detail, detail * 2

        def unit(ring: int, step: int) -> Point:
            high, angle = math.pi * ring / rings - math.pi / 2, 2 * math.pi * step / around
            return math.cos(high) * math.cos(angle), math.cos(high) * math.sin(angle), math.sin(high)

        for ring in range(rings):
            for step in range(around):
                way = [unit(ring, step), unit(ring, step + 1), unit(ring + 1, step + 1), unit(ring + 1, step)]
                if ring == 0:
                    del way[1]  # both are the pole
                elif ring == rings - 1:
                    del way[3]
                points = [tuple(c + r * u for c, r, u in zip(centre, radii, p, strict=True)) for p in way]
                normals = [Vec3(*(u / r for u, r in zip(p, radii, strict=True))).normalized() for p in way]
                self.face(points, colour, normals if smooth else ())  # type: ignore[arg-type]

    def disc(
        self, centre: Point, radius: float, colour: Colour, sides: int = 24, alpha: float = 1.0, squash: float = 1.0,
        rim: float | None = None,
    ) -> None:  # fmt: skip
        """Lies flat; ``rim`` is the opacity at the edge where it fades."""
        x, y, z = centre
        up = Vec3(0, 0, 1)
        for i in range(sides):
            a, b = (2 * math.pi * (i + k) / sides for k in (0, 1))
            p = (x + radius * math.cos(a), y + radius * squash * math.sin(a), z)
            q = (x + radius * math.cos(b), y + radius * squash * math.sin(b), z)
            first, self._count = self._count, self._count + 3
            for corner, opacity in ((centre, alpha), (p, rim), (q, rim)):
                self._vertex.addData3(*corner)
                self._normal.addData3(up)
                self._colour.addData4(*colour, alpha if opacity is None else opacity)
            self._triangles.addVertices(first, first + 1, first + 2)
