"""Frames into an H.264 MP4 that can be played at any moment, even after the process was killed.

While the film is made the file is a fragmented MP4, every frame a fragment of its own, so that whatever is on disk is
playable. Closing rewrites it (without encoding again) into an ordinary MP4 with its index in front, which every
player and browser can seek in.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType

from shotstream.runtime.errors import UserError
from shotstream.runtime.sinks.base import FilmChunk, FilmInfo

log = logging.getLogger(__name__)

_GROWING = {"movflags": "frag_every_frame+empty_moov+default_base_moof", "flush_packets": "1"}
_FINISHED = {"movflags": "faststart"}
# No look-ahead and no B-frames: a frame is on disk as soon as it was written, not fifty frames later.
_ENCODER = {"crf": "17", "preset": "veryfast", "tune": "zerolatency"}


_FAILURES = (OSError, av.FFmpegError)


class Mp4Sink:
    """Writes `target` as H.264, yuv420p. Every shot starts with a key frame. Options: `scale` (whole number, 1..8)
    enlarges the picture."""

    def __init__(self, target: Path, options: Mapping[str, Any] | None = None) -> None:
        self.target = target
        self._scale = int((options or {}).get("scale", 1))
        if not 1 <= self._scale <= 8:
            raise UserError(f"the scale of the video must be from 1 to 8, not {self._scale}")
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None
        self._size = (0, 0)
        self._frames = 0
        self._shot = -1

    def open(self, info: FilmInfo) -> None:
        """Start the file; UserError if it cannot be created."""
        # yuv420p halves the colour planes, so an odd edge line would have no colour of its own: it is left out
        self._size = (info.width * self._scale // 2 * 2, info.height * self._scale // 2 * 2)
        try:
            self._container = av.open(str(self.target), mode="w", format="mp4", options=_GROWING)
        except _FAILURES as error:
            raise _cannot_write(self.target, error) from None
        stream = self._container.add_stream("libx264", rate=info.frames_per_second, options=dict(_ENCODER))
        stream.width, stream.height = self._size
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, info.frames_per_second)
        self._stream = stream

    def write(self, chunk: FilmChunk) -> None:
        """Encode a chunk; its frames are on disk when this returns."""
        if self._container is None or self._stream is None:
            return
        width, height = self._size
        try:
            for picture_HWC in chunk.frames_FHWC:
                if self._scale == 1:
                    picture_HWC = picture_HWC[:height, :width]
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture_HWC), format="rgb24")
                if self._scale > 1:
                    frame = frame.reformat(width=width, height=height, interpolation="LANCZOS")
                frame.pts = self._frames
                if chunk.shot != self._shot:
                    frame.pict_type = PictureType.I
                    self._shot = chunk.shot
                self._container.mux(self._stream.encode(frame))
                self._frames += 1
        except _FAILURES as error:
            raise _cannot_write(self.target, error) from None

    def close(self, complete: bool = True) -> list[Path]:
        """Finish the file. A film without frames leaves no file."""
        container, self._container = self._container, None
        if container is not None and self._stream is not None:
            try:
                container.mux(self._stream.encode(None))
                container.close()
                if self._frames:
                    _move_index_to_front(self.target)
            except _FAILURES as error:  # what is on disk stays playable
                log.warning("%s could not be finished: %s", self.target, error)
            if not self._frames:
                self.target.unlink(missing_ok=True)
        return [self.target] if self._frames else []


def _cannot_write(path: Path, error: Exception) -> UserError:
    return UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}")


def _move_index_to_front(path: Path) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with av.open(str(path)) as source, av.open(str(temporary), mode="w", format="mp4", options=_FINISHED) as out:
            stream = source.streams.video[0]
            copy = out.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.dts is None:  # the demuxer's end mark
                    continue
                packet.stream = copy
                out.mux(packet)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
