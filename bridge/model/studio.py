"""Studios: what makes films in the model process. Only the interface: `real.py` has the models, `mock.py` pictures.

The mock needs no torch, and is ready as soon as it is asked for because nothing here loads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shotstream.bridge.model.orders import Facts, NewShot

Tell = Callable[[str, str], None]
"""(state, what is being done) while a studio gets ready."""


@dataclass(frozen=True)
class Piece:
    """One finished chunk: uint8 ``[F, H, W, 3]`` and where it belongs."""

    frames: npt.NDArray[np.uint8]
    shot: int
    chunk: int
    caption: str
    last: bool


class Stopped(Exception):
    """The chunk was given up on request; the film is as before."""


class Film(Protocol):
    """One film in a studio; see `shotstream.runtime.session.Session` for the meaning. UserError for bad captions."""

    def begin(self, shot: NewShot) -> None: ...
    def steer(self, caption: str) -> None: ...
    def make(self, stop: Callable[[], bool]) -> Piece | None: ...
    def settle(self) -> None: ...
    def keep(self) -> tuple[int, bytes]: ...
    def branch(self) -> Film: ...
    def close(self) -> None: ...


class Studio(Protocol):
    """Opens films. Constructing one is cheap; `prepare` loads."""

    def prepare(self, tell: Tell) -> Facts: ...
    def open(self, seed: int, global_caption: str, saved: bytes) -> Film: ...
    def close(self) -> None: ...
