"""The film of the game: everything that touches the bridge, and nothing that touches the engine.

`Cinema.update` is called once per drawn image and never waits. What the rest of the game sees is a picture, a caption
and a few words about how things are.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from shotstream.bridge.client import Client, Film, Frame, Hold, Receipt
from shotstream.bridge.protocol import messages as m
from shotstream.runtime.errors import UserError

FILM_MAP = Path(__file__).with_name("film.yaml")
DIRECTOR = "own"
"""What a server calls the event map that it was started with."""
ANSWER_S, OWN_ANSWER_S = 8.0, 60.0
"""A server that has not said welcome by then is not there; one that we started may be busy with loading."""
REOPEN_S = 5.0
IDLE_SHOTS = 2
"""So many shots are made for a player who does nothing; then the film waits."""
CAST = [
    m.Cast(key="hero", name="red cat", description="red cat with a blue scarf"),
    m.Cast(key="friend", name="white rabbit", description="white rabbit"),
]
IDLE = (("Character.Wave", "friend"), ("Character.Wait", "hero"), ("Character.Jump", "friend"))


@dataclass
class Offer:
    """Ways to go on that the server prepares while the player thinks; ``ready`` are those that lie there."""

    receipt: Receipt
    keys: tuple[str, ...]
    ready: set[str] = field(default_factory=set)


class Cinema:
    """One connection, one film."""

    def __init__(self, endpoint: str, now: float, patience_s: float = ANSWER_S, seed: int | None = None) -> None:
        """``patience_s``: how long to wait for the first answer. ``seed`` None: the server draws one."""
        self.endpoint = endpoint
        self.client = Client(endpoint, name="panda3d-example")
        self.film: Film | None = None
        self.hold: Hold[Frame] = Hold(fade_ms=280.0, after_ms=300.0)
        self.offer: Offer | None = None
        self.refusals: deque[str] = deque(maxlen=8)
        self.gaps = 0
        """Frames that were announced as missing, flushed ones left out: those were to go."""
        self.films = 0
        """How many were opened: a server that was started again has lost the film, and a new one begins."""
        self.asked: Receipt | None = None
        """What the player did last."""
        self._idle_left = IDLE_SHOTS
        self._idle_turn = 0
        self._patience = now + patience_s
        self._open_at = now
        self._seed = seed

    def close(self) -> None:
        """Say goodbye; the server lets go of the film."""
        self.client.close()

    # --- once per drawn image -----------------------------------------------------------------------------------------
    def update(self, now: float) -> Frame | None:
        """Take what has come and say which picture to show, None before the first. Raises `UserError` where there
        will never be one."""
        self.client.poll()
        if self.client.welcome is None:
            if now > self._patience:
                raise UserError(
                    f"no server answers at {self.endpoint}; start one with: shotstream serve --director {FILM_MAP.name}"
                )
            return None
        if self.film is None and now >= self._open_at:
            self._open(self.client.welcome)
        if self.film is None:
            return None
        for event in self.film.events():
            self._happened(event)
        frame = self.film.frame(now)
        if self.film.state in ("lost", "closed"):
            self.refusals.append(self.film.error)
            self.film, self.offer, self._open_at = None, None, now + REOPEN_S
        return self.hold.update(now, frame, self.film.held_s if self.film else 0.0)

    def _open(self, welcome: m.Welcome) -> None:
        if DIRECTOR not in welcome.directors:
            raise UserError(
                f"the server at {self.endpoint} does not know this game's events; "
                f"start it with: shotstream serve --director {FILM_MAP.name}"
            )
        # bgra32 is what Panda3D keeps in memory: pixels go from the socket to the texture as they are
        self.film = self.client.open(cast=CAST, seed=self._seed, enc="bgra32", director=DIRECTOR)
        self.films += 1
        self.film.event("Camera.Everyone", at="now", on_change=self._answered)

    def _happened(self, event: object) -> None:
        match event:
            case m.ChoiceReady() if self.offer is not None and event.re == self.offer.receipt.id:
                self.offer.ready.add(event.key)
            case m.ShotEnd(reason="max_length"):
                self._idle()
            case m.Gap() if event.reason != "flushed":
                self.gaps += event.until - event.first
            case m.Error():
                self.refusals.append(event.message)

    def _idle(self) -> None:
        """The shot is over and the player does nothing: something small happens by itself, a few times."""
        if self._idle_left and self.film is not None:
            kind, actor = IDLE[self._idle_turn % len(IDLE)]
            self.film.event(kind, actor=actor, at="next_shot", coalesce="idle", on_change=self._answered)
            self._idle_left, self._idle_turn = self._idle_left - 1, self._idle_turn + 1

    # --- what the player does -----------------------------------------------------------------------------------------
    def tell(self, kind: str, actor: str = "", target: str = "", **params: str) -> Receipt | None:
        """Something happened in the game, and the film is to show it at once."""
        if self.film is None:
            return None
        self._idle_left = IDLE_SHOTS
        self.asked = self.film.event(
            kind, actor=actor, target=target, params=params, at="now", coalesce="player", on_change=self._answered
        )
        return self.asked

    def prepare(self, ways: dict[str, str]) -> None:
        """The player stands before a choice: events by key. The first chunk of each is made ahead."""
        if self.film is not None and self.offer is None:
            options = [m.Option(key=key, kind=kind, actor="friend") for key, kind in ways.items()]
            self.offer = Offer(self.film.choices(options, on_change=self._answered), tuple(ways))

    def choose(self, key: str) -> Receipt | None:
        """Take one of the ways; what was prepared for it is shown at once."""
        if self.film is None or self.offer is None:
            return None
        self._idle_left = IDLE_SHOTS
        self.asked = self.film.commit(self.offer.receipt, key, on_change=self._answered)
        self.offer = None
        return self.asked

    def withdraw(self) -> None:
        """The player walked away from the choice."""
        if self.film is not None and self.offer is not None:
            self.film.cancel(self.offer.receipt)
        self.offer = None

    def _answered(self, receipt: Receipt) -> None:
        if receipt.status == "rejected":
            self.refusals.append(receipt.error)

    # --- what can be said of it ---------------------------------------------------------------------------------------
    @property
    def caption(self) -> str:
        """What the model was given for the picture that is seen now; "" before the first."""
        shot = self.film.showing if self.film else None
        return shot.caption if shot else ""

    @property
    def status(self) -> str:
        """Why there is no picture, or ""; for people."""
        if self.client.welcome is None:
            return "looking for the projectionist"
        if self.client.state != "welcomed":
            return "the connection is gone, trying again"
        if self.film is None or self.film.state in ("lost", "closed"):
            return self.refusals[-1] if self.refusals else "the film is threaded in"
        model = next(iter(self.client.models), None)
        if model is not None and model.state != "ready":
            return f"the model {model.name} is {model.state.replace('_', ' ')}"
        return self.film.error if self.film.state != "open" else ""

    @property
    def waiting(self) -> bool:
        """The player has done something that cannot be seen yet."""
        asked = self.asked
        return asked is not None and not asked.seen_ms and asked.status in ("pending", "queued", "accepted", "applied")
