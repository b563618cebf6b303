"""A player made of key presses: walks to the rabbit, meets it, walks to the signpost, takes the beach, and writes
pictures of the window and a report while doing so. For tests and for the picture in the README.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from shotstream.bridge.examples.panda3d import landscape
from shotstream.bridge.examples.panda3d.game import Game
from shotstream.runtime.errors import UserError

PATIENCE_S = 60.0
"""No step may take longer."""


class Script:
    """Call `step` once per drawn image, before the game's update; it returns False when all is done."""

    def __init__(self, game: Game, out: Path) -> None:
        self._game, self._out = game, out
        self._pictures: list[dict[str, Any]] = []
        self._asked: list[dict[str, Any]] = []
        self._down: set[str] = set()
        self._now = 0.0
        self._plan = self._steps()
        out.mkdir(parents=True, exist_ok=True)

    def step(self, now: float) -> bool:
        """Go on."""
        self._now = now
        return next(self._plan, None) is not None

    def _steps(self) -> Iterator[bool]:
        game = self._game
        yield from self._until(self._clear, "the first picture")
        yield from self._picture("1-start")
        yield from self._walk_to(_beside(landscape.RABBIT_AT), 0.3)
        yield from self._press("e")
        yield from self._seen("meet")
        yield from self._picture("2-meet")
        yield from self._walk_to(_beside(landscape.SIGN_AT, -1.2), 0.3)
        yield from self._until(
            lambda: game.cinema and game.cinema.offer and len(game.cinema.offer.ready) == 2, "the ways"
        )
        yield from self._picture("3-choice")
        yield from self._press("1")
        yield from self._seen("beach")
        yield from self._pause(3.0)
        yield from self._walk_to(_beside(landscape.ROBOT_AT), 0.3)
        yield from self._press("e")
        yield from self._seen("hello")
        yield from self._picture("4-beach")
        yield from self._press("e")
        yield from self._seen("dance")
        yield from self._pause(0.8)
        yield from self._picture("5-dance")
        self._report()

    # --- what a player can do -----------------------------------------------------------------------------------------
    def _press(self, key: str) -> Iterator[bool]:
        self._game.base.messenger.send(key)
        yield True
        yield True

    def _walk_to(self, at: tuple[float, float], near: float) -> Iterator[bool]:
        """By the keys that lead there, as seen from where the camera stands."""
        began = self._now
        while self._game.away(at) > near:
            x, y = self._game.player.at
            way = math.atan2(at[0] - x, at[1] - y) + math.radians(self._game.base.camera.getH())
            right, ahead = math.sin(way), math.cos(way)
            keys = {"arrow_right" if right > 0 else "arrow_left"} if abs(right) > 0.38 else set()
            keys |= {"arrow_up" if ahead > 0 else "arrow_down"} if abs(ahead) > 0.38 else set()
            self._hold(keys)
            self._check(began, "the walk")
            yield True
        self._hold(set())
        yield from self._pause(0.5)

    def _hold(self, keys: set[str]) -> None:
        for key in keys - self._down:
            self._game.base.messenger.send(key)
        for key in self._down - keys:
            self._game.base.messenger.send(f"{key}-up")
        self._down = keys

    # --- waiting ------------------------------------------------------------------------------------------------------
    def _clear(self) -> bool:
        """A picture stands on the screen as it came: no cross-fade, no pause."""
        game = self._game
        return (
            game.frame is not None
            and game.cinema is not None
            and game.cinema.hold.weight == 1
            and not game.cinema.hold.holding
        )

    def _until(self, condition: Callable[[], Any], what: str) -> Iterator[bool]:
        began = self._now
        while not condition():
            self._check(began, what)
            yield True

    def _check(self, began: float, what: str) -> None:
        if self._now - began > PATIENCE_S:
            raise UserError(f"the script waited {PATIENCE_S:g} s for {what} in vain")

    def _pause(self, seconds: float) -> Iterator[bool]:
        until = self._now + seconds
        while self._now < until:
            yield True

    def _seen(self, name: str) -> Iterator[bool]:
        """Wait until what was asked for last stands on the screen."""
        cinema = self._game.cinema
        asked = cinema.asked if cinema is not None else None
        if asked is None:
            raise UserError(f"the script's key for {name} did nothing")
        yield from self._until(lambda: asked.seen_ms or asked.status in ("rejected", "superseded"), name)
        if asked.error:
            raise UserError(f"{name}: {asked.error}")
        self._asked.append({"name": name, "caption": asked.caption, "seen_ms": round(asked.seen_ms)})
        yield from self._pause(0.4)
        yield from self._until(self._clear, name)

    # --- what is written ----------------------------------------------------------------------------------------------
    def _picture(self, name: str) -> Iterator[bool]:
        """The window with the frame that stands on its screen: drawn in this turn, saved in the next."""
        game = self._game
        yield from self._until(self._clear, name)
        frame, cinema = game.frame, game.cinema
        assert frame is not None
        assert cinema is not None
        game.draw()
        screenshot = self._out / f"{name}.png"
        if not game.base.win.saveScreenshot(str(screenshot)):
            raise UserError(f"{screenshot} cannot be written")
        Image.fromarray(frame.rgb.copy()).save(self._out / f"{name}-frame.png")
        self._pictures.append(
            {"name": name, "seq": frame.seq, "caption": cinema.caption, "corners": game.screen.on_window(game.base)}
        )
        yield True

    def _report(self) -> None:
        cinema = self._game.cinema
        assert cinema is not None
        assert cinema.film is not None
        figures = cinema.film.statistics
        report = {
            "pictures": self._pictures, "asked": self._asked, "gaps": cinema.gaps, "late": figures.late,
            "frozen_s": round(figures.frozen_s, 2), "received": figures.received, "presented": figures.presented,
            "skipped": figures.skipped, "broken": figures.broken, "refusals": list(cinema.refusals),
        }  # fmt: skip
        (self._out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _beside(at: tuple[float, float], right: float = 1.6) -> tuple[float, float]:
    """Where both can be seen from behind the player."""
    return at[0] + right, at[1] - 0.5
