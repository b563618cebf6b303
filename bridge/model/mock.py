"""The mock studio: pictures that say which film, shot, chunk and frame they are, made in as much time as one asks for.

For people who build a game and need the protocol, the pacing and the failures, not the model. Equal seeds and orders
give equal pictures, snapshots included.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from shotstream.bridge.model.options import MockOptions
from shotstream.bridge.model.orders import Facts, NewShot
from shotstream.bridge.model.studio import Piece, Stopped, Tell
from shotstream.runtime.errors import CaptionTooLong, UserError

_STEPS = 4
_CAPTION_LIMIT = 2000


class MockFilm:
    """A film of labelled pictures."""

    def __init__(self, options: MockOptions, seed: int, shots: int = 0) -> None:
        self.options, self.seed, self.shots = options, seed, shots
        self.caption, self.chunks, self.made = "", 0, 0

    def begin(self, shot: NewShot) -> None:
        """A new shot; UserError for captions that a model would refuse too."""
        _check(shot.caption)
        self.caption, self.chunks, self.made = shot.caption, shot.chunks or self.options.usual_shot_chunks, 0
        self.shots += 1

    def steer(self, caption: str) -> None:
        """Another caption for the running shot."""
        _check(caption)
        if not self._running:
            raise UserError("no shot is running that could be steered")
        self.caption = caption

    def make(self, stop: Callable[[], bool]) -> Piece | None:
        """Pretend to work, then draw."""
        if not self._running:
            return None
        options, shot = self.options, self.shots - 1
        rng = np.random.default_rng([self.seed, shot, self.made])
        seconds = max(0.0, options.chunk_s + options.jitter_s * (2 * rng.random() - 1))
        for _ in range(_STEPS):
            if stop():
                raise Stopped
            if seconds:
                time.sleep(seconds / _STEPS)
        if stop():
            raise Stopped
        count = options.chunk_frames - (3 if self.made == 0 else 0)
        first = 0 if self.made == 0 else self.made * options.chunk_frames - 3
        frames = draw(options, self.seed, shot, self.caption, range(first, first + count))
        self.made += 1
        return Piece(frames, shot, self.made - 1, self.caption, self.made >= self.chunks)

    def settle(self) -> None:
        """Nothing is left behind."""

    def keep(self) -> tuple[int, bytes]:
        """Number of the next shot and the state as bytes."""
        return self.shots, msgspec.msgpack.encode([self.seed, self.shots])

    def branch(self) -> MockFilm:
        """A second film from here on."""
        return MockFilm(self.options, self.seed, self.shots)

    def close(self) -> None:
        """Forget the running shot."""
        self.chunks = self.made = 0

    @property
    def _running(self) -> bool:
        return self.made < self.chunks


class MockStudio:
    """Opens mock films."""

    def __init__(self, options: MockOptions | None = None) -> None:
        self.options = options or MockOptions()

    def prepare(self, tell: Tell) -> Facts:
        """Pretend to load for ``load_s`` seconds."""
        tell("loading", "pretending to load")
        time.sleep(self.options.load_s)
        o = self.options
        return Facts(
            "mock", o.width, o.height, o.fps, o.chunk_frames, o.chunk_frames - 3, 100, o.usual_shot_chunks,
            f"labelled pictures, {o.chunk_s:g} s a chunk",
        )  # fmt: skip

    def open(self, seed: int, global_caption: str, saved: bytes) -> MockFilm:
        """A new film, or one from `MockFilm.keep`."""
        if not saved:
            return MockFilm(self.options, seed)
        try:
            kept_seed, shots = msgspec.msgpack.decode(saved, type=tuple[int, int])
        except msgspec.DecodeError as error:
            raise UserError(f"this snapshot is not one of the mock's ({error})") from None
        return MockFilm(replace(self.options), kept_seed, shots)

    def close(self) -> None:
        """Nothing to free."""


def draw(options: MockOptions, seed: int, shot: int, caption: str, numbers: range) -> npt.NDArray[np.uint8]:
    """Pictures ``numbers`` of a shot, uint8 [F, H, W, 3]: a ground in the shot's colour, its label, a moving bar."""
    colour = np.random.default_rng([seed, shot, zlib.crc32(caption.encode())]).integers(40, 200, 3)
    ground = Image.new("RGB", (options.width, options.height), tuple(int(c) for c in colour))
    pen = ImageDraw.Draw(ground)
    pen.text((8, 8), f"seed {seed}  shot {shot}\n{caption[:200]}", fill=(255, 255, 255), font_size=options.height / 20)
    base = np.asarray(ground)
    frames = np.repeat(base[None], len(numbers), 0)
    for place, number in enumerate(numbers):
        x = number * options.width // 96 % options.width
        frames[place, -options.height // 8 :, x : x + max(4, options.width // 60)] = 255
        # The frame's number in black and white squares, so that a test can read it from the pixels.
        for bit in range(12):
            value = 255 if number >> bit & 1 else 0
            frames[place, -8:, bit * 8 : bit * 8 + 8] = value
    return frames


def number_of(frame: npt.NDArray[np.uint8]) -> int:
    """The number that `draw` wrote into a frame [H, W, 3]."""
    return sum(1 << bit for bit in range(12) if frame[-4, bit * 8 + 4, 0] > 127)


def _check(caption: str) -> None:
    if not caption.strip():
        raise UserError("the caption of a shot is empty; say what it shows")
    if len(caption) > _CAPTION_LIMIT:
        raise CaptionTooLong(f"the caption has {len(caption)} characters; the mock reads {_CAPTION_LIMIT}")
