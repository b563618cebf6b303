"""Words on the window: what can be done here, the choice at the signpost, and how long the film takes to follow."""

from __future__ import annotations

import math
from typing import Any

from panda3d.core import (
    Geom,
    GeomNode,
    GeomTriangles,
    GeomVertexData,
    GeomVertexFormat,
    GeomVertexWriter,
    TextNode,
    TransparencyAttrib,
)

PAPER, INK = (0.10, 0.08, 0.13, 0.74), (1.0, 0.97, 0.9, 1)
KEYS = "WASD or arrows: walk    E: meet    Space: jump    Q: wave    Esc: leave"


class Hud:
    """Built on ``aspect2d``; every text is set only when it changes."""

    def __init__(self, base: Any) -> None:
        self._base = base
        self._prompt = _Pill(base.a2dBottomRight, 0.06)
        self._keys = _line(base.a2dBottomLeft, 0.042, TextNode.ALeft, (0.05, 0, 0.055))
        self._keys.node().setText(KEYS)
        self._readout = _line(base.a2dTopRight, 0.042, TextNode.ARight, (-0.05, 0, -0.075))

    def update(self, prompt: str, readout: str) -> None:
        """What is offered to the player now ("" for nothing), and the figures."""
        self._prompt.say(prompt)
        if self._readout.node().getText() != readout:
            self._readout.node().setText(readout)


class _Pill:
    """Lines of text on dark paper, in the lower right corner: the middle belongs to the player."""

    def __init__(self, parent: Any, size: float) -> None:
        self.root = parent.attachNewNode("pill")
        self._paper: Any = None
        self._text = _line(self.root, size, TextNode.ACenter, (0, 0, 0))
        self._size = size
        self.root.hide()

    def say(self, text: str) -> None:
        """Show it; "" shows nothing."""
        node = self._text.node()
        if node.getText() == text:
            return
        node.setText(text)
        if self._paper is not None:
            self._paper.removeNode()
            self._paper = None
        if not text:
            self.root.hide()
            return
        half = node.getWidth() * self._size / 2 + 0.03
        tall = node.getHeight() * self._size
        middle = self._size * 0.28 - (tall - self._size) / 2
        self._paper = self.root.attachNewNode(_paper(half, tall / 2 + 0.035, middle))
        self.root.setPos(-half - 0.06, 0, tall - self._size * 0.28 + 0.03)
        self._paper.setTransparency(TransparencyAttrib.MAlpha)
        self._paper.setBin("fixed", 0)
        self._text.setBin("fixed", 1)
        self.root.show()


def _line(parent: Any, size: float, align: Any, at: tuple[float, float, float]) -> Any:
    node = TextNode("line")
    node.setAlign(align)
    node.setTextColor(INK)
    node.setShadow(0.05, 0.06)
    node.setShadowColor(0.05, 0.04, 0.08, 0.7)
    path = parent.attachNewNode(node)
    path.setScale(size)
    path.setPos(*at)
    return path


def _paper(half: float, tall: float, middle: float) -> Any:
    """A rectangle with round corners around (0, middle)."""
    data = GeomVertexData("paper", GeomVertexFormat.getV3c4(), Geom.UHStatic)
    vertex, colour = GeomVertexWriter(data, "vertex"), GeomVertexWriter(data, "color")
    triangles, round_by = GeomTriangles(Geom.UHStatic), min(tall, 0.06)
    corners = [(half, tall), (-half, tall), (-half, -tall), (half, -tall)]
    points = [(0.0, middle)]
    for quarter, (x, z) in enumerate(corners):
        for step in range(7):
            angle = math.pi / 2 * (quarter + step / 6)
            points.append(
                (x + round_by * math.cos(angle), middle + z * (1 - round_by / tall) + round_by * math.sin(angle))
            )
    for x, z in points:
        vertex.addData3(x, 0, z)
        colour.addData4(*PAPER)
    for i in range(1, len(points)):
        triangles.addVertices(0, i, i % (len(points) - 1) + 1)
    geom = Geom(data)
    geom.addPrimitive(triangles)
    node = GeomNode("paper")
    node.addGeom(geom)
    return node
