"""The drive-in screen: one texture that film frames are written into, and what makes waiting look like a pause.

On a cut the last picture of the old shot fades into the new one. While the film stands still the picture darkens a
little at its edges and three dots breathe in its corner; before the first picture the screen shows a slate.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from panda3d.core import CardMaker, PNMImage, Point2, Point3, TextNode, Texture, TransparencyAttrib

from shotstream.bridge.client import Frame, Hold
from shotstream.bridge.examples.panda3d.landscape import SCREEN_AT
from shotstream.bridge.examples.panda3d.shapes import Colour, Mesh, rgb

WIDE, LOW = 13.6, 2.7
"""Width of the picture and height of its lower edge, in the scene's units."""
FRAME_COLOUR, CAPTION_COLOUR = rgb(54, 46, 62), (1.0, 0.96, 0.86, 1)
SLATE = (34, 26, 30)


class Screen:
    """Stands in the scene; `show` is called once per drawn image."""

    def __init__(self, render: Any) -> None:
        self._root = render.attachNewNode("screen")
        self._root.setPos(SCREEN_AT[0], SCREEN_AT[1], 0)
        self._texture = Texture("film")
        self._texture.setMinfilter(Texture.FTLinear)
        self._texture.setWrapU(Texture.WMClamp)
        self._texture.setWrapV(Texture.WMClamp)
        self._size = (0, 0)
        self._shown: tuple[Frame | None, float] = (None, -1.0)
        self.shine: Colour = (0.2, 0.2, 0.24)
        self._picture = self._glowing("picture", self._root)
        self._picture.setTexture(self._texture)
        self._vignette = self._glowing("vignette", self._picture, y=-0.02)
        self._vignette.setTexture(_vignette())
        self._vignette.setColor(0.03, 0.02, 0.06, 1)
        self._vignette.setTransparency(TransparencyAttrib.MAlpha)
        self._dots = [self._dot(place) for place in range(3)]
        self._slate, self._caption = self._text(0.62, 16), self._text(0.56, 21.5)
        self._bulbs: Any = None
        self._build: Any = None
        self._resize(256, 160)

    # --- once per drawn image -----------------------------------------------------------------------------------------
    def show(self, frame: Frame | None, hold: Hold[Frame], caption: str, slate: str, now: float) -> None:
        """This frame, as the helper says; ``slate`` stands on the screen while there is no picture or no connection."""
        weight = round(hold.weight, 2)
        if frame is not None and (frame, weight) != self._shown:
            self._shown = frame, weight
            self._upload(frame, hold.previous, weight)
        waits = min(1.0, max(0.0, hold.hold_s - 0.3) / 1.4)
        self._vignette.setAlphaScale(0.75 * waits)
        for place, dot in enumerate(self._dots):
            beat = 0.5 + 0.5 * math.sin(now * 4 - place * 0.9)
            dot.setAlphaScale(waits * (0.25 + 0.75 * beat))
        _say(self._slate, slate)
        _say(self._caption, caption)
        self._caption.setZ(LOW - (0.98 if self._caption.node().getNumRows() > 1 else 1.3))
        self._bulbs.setColorScale(1, 0.92 + 0.08 * math.sin(now * 1.7), 0.86, 1)

    def _upload(self, frame: Frame, previous: Frame | None, weight: float) -> None:
        if (frame.width, frame.height) != self._size:
            self._resize(frame.width, frame.height)
        if previous is not None and weight < 1 and previous.pixels.shape == frame.pixels.shape:
            mixed = previous.pixels * np.float32(1 - weight) + frame.pixels * np.float32(weight)
            self._write(mixed.astype(np.uint8))
        elif frame.header.stride:
            self._write(frame.pixels)
        else:
            self._texture.setRamImage(frame.payload)  # blue, green, red, alpha: as they came
        red, green, blue = (float(part) / 255 for part in frame.rgb[::8, ::8].mean((0, 1)))
        self.shine = red, green, blue

    def _write(self, pixels: npt.NDArray[np.uint8]) -> None:
        self._texture.setRamImage(np.ascontiguousarray(pixels).data.cast("B"))

    def _resize(self, width: int, height: int) -> None:
        """Memory for the texture is taken here and only here; the frame is built around the picture."""
        self._size = width, height
        self._texture.setup2dTexture(width, height, Texture.TUnsignedByte, Texture.FRgba)
        self._write(np.full((height, width, 4), (*SLATE, 255), np.uint8))
        tall = WIDE * height / width
        self._picture.setPos(0, 0, LOW + tall / 2)
        self._picture.setScale(WIDE, 1, tall)
        if self._build is not None:
            self._build.removeNode()
            self._bulbs.removeNode()
        self._build, self._bulbs = self._root.attachNewNode(_stand(tall)), self._root.attachNewNode(_bulbs(tall))
        self._bulbs.setLightOff()
        self._slate.setPos(0, -0.1, LOW + tall / 2)
        self._caption.setPos(0, -0.42, LOW - 0.98)
        for place, dot in enumerate(self._dots):
            dot.setPos(WIDE / 2 - 1.5 + 0.42 * place, -0.06, LOW + 0.55)

    @property
    def corners(self) -> list[Point3]:
        """Of the picture: upper left, upper right, lower right, lower left, in the scene."""
        tall = WIDE * self._size[1] / self._size[0]
        x, y = SCREEN_AT
        return [Point3(x + sx * WIDE / 2, y, LOW + tall * up) for sx, up in ((-1, 1), (1, 1), (1, 0), (-1, 0))]

    def on_window(self, base: Any) -> list[tuple[float, float]]:
        """Where these corners are in the window, in pixels from the upper left."""
        found, width, height = [], base.win.getXSize(), base.win.getYSize()
        for corner in self.corners:
            place = Point2()
            base.camLens.project(base.cam.getRelativePoint(base.render, corner), place)
            found.append(((place[0] + 1) / 2 * width, (1 - place[1]) / 2 * height))
        return found

    # --- parts --------------------------------------------------------------------------------------------------------
    def _glowing(self, name: str, parent: Any, y: float = 0.0) -> Any:
        """A card of size 1 that shows its colours as they are. Film rows come from the top, textures begin at the
        bottom: the card's coordinates are turned round, not the pixels."""
        maker = CardMaker(name)
        maker.setFrame(-0.5, 0.5, -0.5, 0.5)
        maker.setUvRange((0, 1), (1, 0))
        card = parent.attachNewNode(maker.generate())
        card.setY(y)
        card.setLightOff()
        card.setFogOff()
        return card

    def _dot(self, place: int) -> Any:
        mesh = Mesh("dot", vary=0.0)
        mesh.disc((0, 0, 0), 0.13, (1, 1, 1), 20)
        dot = self._root.attachNewNode(mesh.node())
        dot.setP(90)
        dot.setLightOff()
        dot.setFogOff()
        dot.setTransparency(TransparencyAttrib.MAlpha)
        return dot

    def _text(self, size: float, wrap: float) -> Any:
        node = TextNode("words")
        node.setAlign(TextNode.ACenter)
        node.setWordwrap(wrap)
        node.setTextColor(CAPTION_COLOUR)
        node.getFont().setPixelsPerUnit(64)
        path = self._root.attachNewNode(node)
        path.setScale(size)
        path.setLightOff()
        path.setFogOff()
        return path


def _say(path: Any, text: str) -> None:
    if path.node().getText() != text:
        path.node().setText(text)


def _vignette() -> Any:
    """Clear in the middle, opaque at the edges, and a little everywhere."""
    side = 64
    image = PNMImage(side, side, 4)
    for x in range(side):
        for y in range(side):
            away = math.hypot(x / (side - 1) - 0.5, y / (side - 1) - 0.5) / 0.7
            image.setXelA(x, y, 1, 1, 1, min(1.0, 0.12 + away**2 * 0.95))
    texture = Texture("vignette")
    texture.load(image)
    texture.setWrapU(Texture.WMClamp)
    texture.setWrapV(Texture.WMClamp)
    return texture


def _stand(tall: float) -> Any:
    """Frame, posts, a small roof and the caption's board."""
    mesh, edge, middle = Mesh("stand"), 0.42, LOW + tall / 2
    for side in (-1, 1):
        mesh.box((side * (WIDE + edge) / 2, 0.05, middle), (edge, 0.5, tall + 2 * edge), FRAME_COLOUR)
        mesh.box((side * WIDE * 0.38, 0.5, middle / 2), (0.5, 0.5, middle), rgb(96, 84, 92))
        mesh.box((side * WIDE * 0.38, 1.4, middle / 2 - 0.6), (0.3, 0.3, middle), rgb(96, 84, 92))
        mesh.box((0, 0.05, middle + side * (tall + edge) / 2), (WIDE, 0.5, edge), FRAME_COLOUR)
    mesh.box((0, 0.3, middle), (WIDE, 0.3, tall), FRAME_COLOUR)
    mesh.box((0, -0.1, LOW + tall + edge + 0.12), (WIDE + 1.6, 1.1, 0.24), rgb(206, 84, 76))
    mesh.box((0, -0.1, LOW - 1.14), (WIDE * 0.94, 0.4, 1.36), rgb(84, 60, 58))
    mesh.box((0, -0.28, LOW - 1.14), (WIDE * 0.94 - 0.3, 0.1, 1.1), rgb(44, 34, 48))
    return mesh.node()


def _bulbs(tall: float) -> Any:
    mesh = Mesh("bulbs", vary=0.0)
    for k in range(17):
        x = (k - 8) * (WIDE + 1.2) / 16
        mesh.ball((x, -0.72, LOW + tall + 0.32), (0.13, 0.13, 0.13), (1.0, 0.9, 0.55), 4, smooth=True)
    return mesh.node()
