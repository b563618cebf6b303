"""Colours of the world and what the time of day does to them. Nothing here is drawn."""

from __future__ import annotations

from .raster import Color

BODY: dict[str, Color] = {
    "red": (222, 48, 48),
    "orange": (250, 138, 24),
    "yellow": (252, 216, 48),
    "green": (52, 172, 76),
    "blue": (46, 108, 232),
    "purple": (142, 72, 204),
    "pink": (252, 140, 190),
    "white": (244, 244, 248),
}
BELLY: dict[str, Color] = {
    "cream": (255, 236, 200),
    "charcoal": (74, 70, 84),
    "mint": (150, 236, 200),
    "rose": (250, 110, 130),
}
HOUSE: dict[str, Color] = {
    "red": (206, 84, 76),
    "yellow": (244, 210, 110),
    "blue": (104, 158, 222),
    "white": (246, 242, 236),
    "purple": (170, 130, 208),
}
ROOF: dict[str, Color] = {"brick": (164, 62, 52), "slate": (76, 84, 108), "straw": (206, 158, 72)}

AMBIENT: dict[str, Color] = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.86, 0.76), "night": (0.62, 0.66, 0.86)}
SKY: dict[str, tuple[Color, Color]] = {
    "day": ((84, 166, 244), (206, 234, 255)),
    "sunset": ((232, 92, 92), (255, 196, 120)),
    "night": ((18, 22, 62), (62, 72, 138)),
}
SUN: dict[str, Color] = {"day": (255, 226, 92), "sunset": (255, 240, 170), "night": (240, 240, 226)}
CLOUD: dict[str, Color] = {"day": (255, 255, 255), "sunset": (255, 176, 150), "night": (72, 80, 132)}

GROUND: dict[str, tuple[Color, Color]] = {
    "meadow": ((150, 208, 92), (120, 186, 72)),
    "forest": ((84, 136, 72), (66, 114, 60)),
    "beach": ((246, 222, 158), (234, 204, 132)),
    "desert": ((230, 158, 86), (210, 134, 66)),
    "snowfield": ((240, 246, 254), (214, 228, 246)),
    "city": ((158, 158, 170), (112, 112, 126)),
}
FAR: dict[str, Color] = {
    "meadow": (112, 176, 116),
    "forest": (44, 92, 66),
    "beach": (42, 132, 200),
    "desert": (186, 92, 60),
    "snowfield": (144, 164, 204),
    "city": (112, 122, 158),
}


def lit(color: Color, time: str, share: float = 1.0) -> Color:
    """The colour under the light of that time; `share` below 1 lets things glow a little (eyes, windows)."""
    r, g, b = (c * (1 - share + share * a) for c, a in zip(color, AMBIENT[time], strict=True))
    return r, g, b


def darker(color: Color, by: float = 0.72) -> Color:
    return color[0] * by, color[1] * by, color[2] * by


def lighter(color: Color, by: float = 0.45) -> Color:
    r, g, b = (c + (255 - c) * by for c in color)
    return r, g, b
