"""Pictures of a video file, by PyAV: frames by number at the model's size, and the cuts that PySceneDetect finds.

Frame numbers count decoded frames from 0 in the order they are shown; they are never worked out from times, so that a
video of changing frame rate cannot shift them. Pixels are uint8 RGB `[H, W, 3]`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from shotstream.runtime.optional import require
from shotstream.training.data.videos import BadVideo

Video = Path | bytes

DETECTION_WIDTH = 256
"""Cuts are looked for in pictures of this width: finer ones cost time and find the same cuts."""
_READABLE_SHARE = 0.95  # of the frames a container says it has; edit lists may drop a few


@contextmanager
def _opened(video: Video) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; whatever fails inside becomes a BadVideo."""
    try:
        # The whitelist: a file may be a playlist in disguise, and must not make us fetch anything.
        source = io.BytesIO(video) if isinstance(video, bytes) else str(video)
        with av.open(source, options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise BadVideo("it has no pictures, only sound or text")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        raise BadVideo(f"it cannot be read: {error.strerror or error}") from error


def frame_rate(video: Video) -> Fraction:
    """Frames a second, on average; BadVideo if the file does not say."""
    with _opened(video) as (_, stream):
        rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise BadVideo("it does not say its frame rate; write fps into its json")
    return Fraction(rate)


def read_frames(
    video: Video, wanted: Sequence[int], through: int, size: tuple[int, int], fit: str = "stretch"
) -> Iterator[NDArray[np.uint8]]:
    """The frames with the ascending numbers ``wanted``, at ``size`` (height, width).

    ``fit``: "stretch" resizes both sides on their own, as the reference does; "crop" keeps the aspect and cuts off
    what hangs over, equally on both sides. All frames up to ``through`` (exclusive) are decoded, so that a video
    which is shorter than described raises BadVideo, after its last frame.
    """
    numbers = iter(wanted)
    number = next(numbers, None)
    decoded = 0
    with _opened(video) as (container, stream):
        for frame in container.decode(stream):
            if decoded == number:
                yield _picture(frame, size, fit)
                number = next(numbers, None)
            decoded += 1
            if decoded >= through:
                return
    raise BadVideo(f"it ends after {decoded} frames, but its last shot should reach frame {through}")


def _picture(frame: Any, size: tuple[int, int], fit: str) -> NDArray[np.uint8]:
    turns = round((frame.rotation or 0) / 90) % 4  # of a camera that was held upright
    height, width = size if turns % 2 == 0 else size[::-1]
    if fit == "crop":
        scale = max(height / frame.height, width / frame.width)
        whole = (max(height, round(frame.height * scale)), max(width, round(frame.width * scale)))
    else:
        whole = (height, width)
    picture = frame.to_ndarray(format="rgb24", width=whole[1], height=whole[0], interpolation="BICUBIC")
    top, left = (whole[0] - height) // 2, (whole[1] - width) // 2
    return np.rot90(picture[top : top + height, left : left + width], turns)


def find_shots(video: Video) -> list[tuple[int, int]]:
    """`[start, end)` of every shot, by PySceneDetect's adaptive detector with its usual thresholds.

    It finds hard cuts (the change of a frame against its neighbours'), no dissolves; of cuts less than 15 frames apart
    the later is left out. Raises BadVideo for a file that breaks off.
    """
    scenedetect = require("scenedetect", "finding cuts", "train")
    detector = scenedetect.AdaptiveDetector()
    cuts, frames, declared = [0], 0, 0
    with _opened(video) as (container, stream):
        declared = stream.frames
        for frame in container.decode(stream):
            height = max(1, round(frame.height * DETECTION_WIDTH / frame.width))
            picture = frame.to_ndarray(format="bgr24", width=DETECTION_WIDTH, height=height)
            # Frame numbers as times at one frame a second: what comes back are our own numbers.
            found = detector.process_frame(scenedetect.FrameTimecode(frames, 1.0), picture)
            cuts += [cut.frame_num for cut in found]
            frames += 1
    if frames < _READABLE_SHARE * declared or not frames:
        raise BadVideo(f"it breaks off: {frames} of its {declared} frames can be read")
    return list(pairwise([*cuts, frames]))
