"""The game: a red cat walks about a meadow, meets others, and decides at a signpost where the film goes on.

What it shows of the bridge is in `cinema.py`. This loop draws, moves and listens to keys; it calls `Cinema.update` once
per image and never waits for anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from direct.showbase.ShowBase import ShowBase

from shotstream.bridge.client import Frame, Hold, Receipt
from shotstream.bridge.examples.panda3d import landscape, people
from shotstream.bridge.examples.panda3d.cinema import Cinema
from shotstream.bridge.examples.panda3d.daylight import Daylight
from shotstream.bridge.examples.panda3d.hud import Hud
from shotstream.bridge.examples.panda3d.people import Person
from shotstream.bridge.examples.panda3d.screen import Screen

SPEED, NEAR, SIGN_NEAR, SIGN_SEEN, SIGN_LEFT = 4.4, 2.3, 2.5, 5.5, 7.0
KEYS = {
    "arrow_up": "forward", "w": "forward", "arrow_down": "back", "s": "back",
    "arrow_left": "left", "a": "left", "arrow_right": "right", "d": "right",
}  # fmt: skip
BEHIND, ABOVE, TILT = 9.6, 3.7, -3.6
"""Where the camera is, seen from the player, and how it looks down."""
DOINGS = (("Player.Meet", "waves"), ("Character.Dance", "dances"), ("Character.Jump", "jumps"))
"""What happens when the player meets the same one again and again."""


@dataclass(frozen=True)
class Way:
    """Where the signpost can lead: the film's event, who is met there, and the light that goes with it."""

    kind: str
    who: str
    time: str
    label: str


WAYS = {
    "meadow": Way("Story.Meadow", "rabbit", "day", "back to the meadow"),
    "beach": Way("Story.Beach", "robot", "sunset", "to the beach at sunset"),
    "city": Way("Story.City", "bear", "night", "to the city at night"),
}


class Game:
    """All that is in the scene. ``base`` is Panda3D's."""

    def __init__(self, base: ShowBase, now: float) -> None:
        self.base = base
        base.disableMouse()
        base.camLens.setFov(64)
        base.camLens.setNearFar(0.3, 900)
        self.cinema: Cinema | None = None
        self.slate = "the projector warms up"
        self._land = landscape.build(base.render)
        self._daylight = Daylight(base.render, base.camera, self._land)
        self.screen = Screen(base.render)
        self._hud = Hud(base)
        self.player = Person(base.render, people.CAT, landscape.START_AT, heading=0.0)
        self.others = {
            "rabbit": Person(base.render, people.RABBIT, landscape.RABBIT_AT, 205.0),
            "robot": Person(base.render, people.ROBOT, landscape.ROBOT_AT, 230.0),
            "bear": Person(base.render, people.BEAR, landscape.BEAR_AT, 140.0),
        }
        self.place, self.friend = "meadow", "rabbit"
        """Where the film plays, and who is in it besides the cat."""
        self.frame: Frame | None = None
        self.last_ms = 0.0
        """From the last key to its picture."""
        self._doings = self._films = 0
        self._going: tuple[str, Receipt] | None = None
        self._sign_used = False
        self._held: set[str] = set()
        self._then = now
        for key, way in KEYS.items():
            base.accept(key, self._held.add, [way])
            base.accept(f"{key}-up", self._held.discard, [way])
        for key, do in (
            ("e", self._meet),
            ("space", self._jump),
            ("q", self._wave),
            ("1", self._choose),
            ("2", self._choose),
        ):
            base.accept(key, do, [int(key)] if key.isdigit() else [])
        self._move_camera(1.0)

    # --- once per drawn image -----------------------------------------------------------------------------------------
    def update(self, now: float) -> None:
        """One turn. Raises `UserError` where there will never be a film."""
        dt, self._then = min(0.1, now - self._then), now
        if self.cinema is not None:
            self.frame = self.cinema.update(now)
            self._follow_the_film(self.cinema)
            self.screen.show(self.frame, self.cinema.hold, self.cinema.caption, self._on_the_slate(self.cinema), now)
        elif self.frame is None:
            self._wait_for_the_cinema(now)
        self._walk(dt)
        self._look_at_the_sign()
        for person in (self.player, *self.others.values()):
            person.update(now, dt)
        self._daylight.update(dt, self.screen.shine)
        self._move_camera(dt)
        self._hud.update(self._prompt(), self._readout())

    def draw(self) -> None:
        """Draw at once, for a picture of exactly this moment."""
        self.base.graphicsEngine.renderFrame()

    def close(self) -> None:
        """Leave the cinema."""
        if self.cinema is not None:
            self.cinema.close()

    def _wait_for_the_cinema(self, now: float) -> None:
        self.screen.show(None, Hold(), "", self.slate, now)

    def _follow_the_film(self, cinema: Cinema) -> None:
        """What the player sees on the screen has come to the place, too."""
        if cinema.films != self._films:  # a new film begins where the first one began
            self._films, self._going = cinema.films, None
            self._arrive("meadow")
        asked = cinema.asked
        if asked is not None and asked.seen_ms:
            self.last_ms = asked.seen_ms
        if self._going is not None:
            place, receipt = self._going
            if receipt.seen_ms:
                self._arrive(place)
            if receipt.seen_ms or receipt.status in ("rejected", "superseded", "cancelled"):
                self._going = None

    def _arrive(self, place: str) -> None:
        self.place, self.friend, self._doings = place, WAYS[place].who, 0
        self._daylight.turn_to(WAYS[place].time)

    def _on_the_slate(self, cinema: Cinema) -> str:
        return "" if self.frame is not None and not cinema.status else cinema.status

    # --- walking ------------------------------------------------------------------------------------------------------
    def _walk(self, dt: float) -> None:
        right = ("right" in self._held) - ("left" in self._held)
        ahead = ("forward" in self._held) - ("back" in self._held)
        if not right and not ahead:
            self.player.walk(0.0)
            return
        turn = math.radians(self.base.camera.getH())
        scale = dt * SPEED / math.hypot(right, ahead)
        dx = (right * math.cos(turn) - ahead * math.sin(turn)) * scale
        dy = (right * math.sin(turn) + ahead * math.cos(turn)) * scale
        x, y = self.player.at
        self.player.face(x + dx, y + dy)
        x, y = self._free(x + dx, y + dy)
        self.player.root.setPos(x, y, 0)
        self.player.walk(SPEED)

    def _free(self, x: float, y: float) -> tuple[float, float]:
        """The nearest place where nothing stands."""
        solid = [(*person.at, 0.75) for person in self.others.values()]
        solid += [(*landscape.SIGN_AT, 0.5), *((x, y, 0.55 * size) for x, y, size in landscape.TREES)]
        solid += [(x, y, 1.05 * size) for x, y, size, *_ in landscape.HOUSES]
        for ox, oy, radius in solid:
            away = math.hypot(x - ox, y - oy)
            if 0 < away < radius:
                x, y = ox + (x - ox) * radius / away, oy + (y - oy) * radius / away
        west, east, south, north = landscape.BOUNDS
        return min(east, max(west, x)), min(north, max(south, y))

    def _move_camera(self, dt: float) -> None:
        """Behind the player, with the screen in view wherever that is."""
        x, y = self.player.at
        sx, sy = landscape.SCREEN_AT
        angle = 0.85 * math.atan2(sx - x, sy - y)
        want = (x - BEHIND * math.sin(angle), y - BEHIND * math.cos(angle), ABOVE)
        camera, share = self.base.camera, min(1.0, dt * 5)
        camera.setPos(*(have + (to - have) * share for have, to in zip(camera.getPos(), want, strict=True)))
        turn = -math.degrees(angle) - camera.getH()
        camera.setHpr(camera.getH() + turn * share, TILT, 0)

    # --- what the player does -----------------------------------------------------------------------------------------
    def away(self, at: tuple[float, float]) -> float:
        """How far the player is from there."""
        return math.dist(self.player.at, at)

    def nearest(self) -> str:
        """Whom the player could meet now, or ""."""
        name = min(self.others, key=lambda each: self.away(self.others[each].at))
        return name if self.away(self.others[name].at) < NEAR else ""

    def _meet(self) -> None:
        name = self.nearest()
        if not name or self.cinema is None:
            return
        other = self.others[name]
        self.player.face(*other.at)
        other.face(*self.player.at)
        if name != self.friend:  # the film gets to know somebody new, which begins a scene
            self.cinema.tell("Character.Join", actor="friend", looks=self._looks(name))
            self.friend, self._doings, action = name, 0, "waves"
        else:
            kind, action = DOINGS[self._doings % len(DOINGS)]
            self._doings += 1
            if kind.startswith("Player."):
                self.cinema.tell(kind, actor="hero", target="friend")
            else:
                self.cinema.tell(kind, actor="friend")
        other.do(action, self._then)
        self.player.do("waves", self._then)

    @staticmethod
    def _looks(name: str) -> str:
        return {"rabbit": "white rabbit", "robot": "green robot", "bear": "yellow bear with a red top hat"}[name]

    def _jump(self) -> None:
        self._alone("Player.Jump", "jumps")

    def _wave(self) -> None:
        self._alone("Player.Wave", "waves")

    def _alone(self, kind: str, action: str) -> None:
        if self.cinema is not None:
            self.cinema.tell(kind, actor="hero")
        self.player.do(action, self._then)

    # --- the signpost -------------------------------------------------------------------------------------------------
    def _look_at_the_sign(self) -> None:
        """Coming near is reason enough to have both ways prepared; who walks away wants neither."""
        self._land.write(*(key for key in WAYS if key != self.place))
        away = self.away(landscape.SIGN_AT)
        if self.cinema is None:
            return
        if away > SIGN_LEFT:
            self._sign_used = False
            self.cinema.withdraw()
        elif away < SIGN_SEEN and not self._sign_used and self._going is None:
            self.cinema.prepare({key: way.kind for key, way in WAYS.items() if key != self.place})

    def _choose(self, number: int) -> None:
        offer = self.cinema.offer if self.cinema is not None else None
        if self.cinema is None or offer is None or self.away(landscape.SIGN_AT) > SIGN_NEAR:
            return
        place = offer.keys[number - 1]
        receipt = self.cinema.choose(place)
        if receipt is not None:
            self._going, self._sign_used = (place, receipt), True

    # --- words --------------------------------------------------------------------------------------------------------
    def _prompt(self) -> str:
        offer = self.cinema.offer if self.cinema is not None else None
        if offer is not None and self.away(landscape.SIGN_AT) < SIGN_NEAR:
            ways = [
                f"{number}  {WAYS[key].label}{'' if key in offer.ready else '  (being prepared)'}"
                for number, key in enumerate(offer.keys, 1)
            ]
            return "Where to?\n" + "\n".join(ways)
        name = self.nearest()
        if not name:
            return ""
        words = self.others[name].look.words
        if name != self.friend:
            return f"E   bring the {words} into the film"
        said = ("say hello to the {}", "ask the {} to dance", "let the {} jump")[self._doings % len(DOINGS)]
        return "E   " + said.format(words)

    def _readout(self) -> str:
        film = self.cinema.film if self.cinema is not None else None
        if self.cinema is None or film is None:
            return ""
        parts = [
            "..." if self.cinema.waiting else f"key to picture {self.last_ms / 1000:.2f} s" if self.last_ms else ""
        ]
        parts.append(f"film ahead {film.statistics.lead_ms / 1000:.1f} s")
        return "    ".join(part for part in parts if part)
