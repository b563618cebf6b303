"""A frame as a client holds it: the header's facts and the picture, without a copy where it came as pixels."""

from __future__ import annotations

import io
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shotstream.bridge.protocol import messages as m
from shotstream.runtime.errors import UserError

Pixels: TypeAlias = npt.NDArray[np.uint8]

_CHANNELS = {"rgb24": 3, "rgba32": 4, "bgra32": 4}


class BrokenPicture(Exception):
    """A header and its payload do not fit together."""


class Frame:
    """One picture of a film.

    ``seq`` counts over the film, ``shot``, ``chunk`` and ``index`` say where in it the picture stands, ``pts`` is its
    time in units of 1/tb, ``prompt`` the request that it shows. The same object comes again while a picture is held,
    so that ``frame is not last`` tells whether there is something to upload.
    """

    def __init__(self, header: m.Frame, payload: memoryview | bytes | None, received_at: float) -> None:
        """Raises `BrokenPicture` where the payload is missing or too short for the header."""
        self.header = header
        self.seq, self.shot, self.chunk, self.index = header.seq, header.shot, header.chunk, header.index
        self.epoch, self.pts, self.prompt, self.end = header.epoch, header.pts, header.prompt, header.end
        self.width, self.height, self.enc = header.w, header.h, header.enc
        self.received_at = received_at
        """Seconds of the client's clock."""
        self.payload: memoryview = memoryview(payload if payload is not None else b"").toreadonly()
        """The bytes as they came: pixels, or a JPEG file."""
        if header.enc == "none":
            return
        if payload is None or not header.w or not header.h:
            raise BrokenPicture(f"frame {header.seq} has no picture")
        if header.enc in _CHANNELS:
            row = header.w * _CHANNELS[header.enc]
            stride = header.stride or row
            if stride < row or len(self.payload) < stride * (header.h - 1) + row:
                raise BrokenPicture(f"frame {header.seq} has too few bytes for {header.w}x{header.h} {header.enc}")

    def __repr__(self) -> str:
        return f"Frame(seq={self.seq}, shot={self.shot}, {self.width}x{self.height} {self.enc})"

    @cached_property
    def pixels(self) -> Pixels:
        """The picture, read-only, rows from the top: uint8 [height, width, 3] for ``rgb24`` and ``jpeg`` (decoded here,
        once), [height, width, 4] for ``rgba32`` and ``bgra32``, in that order of channels.

        Raises `UserError` where the film was opened without pictures or a JPEG cannot be read.
        """
        if self.enc == "jpeg":
            return self._decoded()
        if self.enc == "none":
            raise UserError("this film was opened with enc='none': its frames have no picture")
        channels = _CHANNELS[self.enc]
        stride = self.header.stride or self.width * channels
        flat = np.frombuffer(self.payload, np.uint8)
        return np.lib.stride_tricks.as_strided(
            flat, (self.height, self.width, channels), (stride, channels, 1), writeable=False
        )

    @property
    def rgb(self) -> Pixels:
        """The picture as red, green, blue whatever came: a read-only view of `pixels` [height, width, 3]."""
        if self.enc == "bgra32":
            return self.pixels[..., 2::-1]
        return self.pixels[..., :3]

    def _decoded(self) -> Pixels:
        from PIL import Image  # on demand: pixels need no Pillow

        try:
            with Image.open(io.BytesIO(self.payload), formats=["JPEG"]) as image:
                if image.size != (self.width, self.height):  # before decoding: a small file can claim a huge picture
                    raise UserError(
                        f"frame {self.seq} was announced as {self.width}x{self.height}, its JPEG is "
                        f"{image.width}x{image.height}"
                    )
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"the JPEG of frame {self.seq} cannot be read: {error}") from None
        pixels.flags.writeable = False
        return pixels
