"""Real mp4 files for the tests of video data: films of the story world, numbered frames, and frames read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from shotstream.training.world import render_shot, sample_story

HEIGHT, WIDTH = 160, 256


@dataclass(frozen=True)
class Filmed:
    """A film of a story of the world: its true intervals and captions."""

    path: Path
    global_caption: str
    captions: tuple[str, ...]
    intervals: tuple[tuple[int, int], ...]


def write_mp4(path: Path, frames: NDArray[np.uint8], fps: int = 16, index_first: bool = False) -> Path:
    """H.264, uint8 [F, H, W, 3] in; B-frames and all, as cameras and editors write it."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if index_first else {}) as out:
        stream = out.add_stream("libx264", rate=fps, options={"crf": "14", "preset": "veryfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        out.mux(stream.encode(None))
    return path


def film(folder: Path, seed: int, lengths: Sequence[int], fps: int = 16, name: str | None = None) -> Filmed:
    """A story of the world as an mp4 with cuts; 16 rendered frames are a second of the story whatever ``fps`` says."""
    story = sample_story(seed, len(lengths))
    shots = [render_shot(story, k, n, HEIGHT, WIDTH) for k, n in enumerate(lengths)]
    ends = np.cumsum(lengths).tolist()
    path = write_mp4(folder / f"{name or f'story_{seed}'}.mp4", np.concatenate(shots), fps)
    captions = tuple(story.shot_caption(k) for k in range(len(lengths)))
    return Filmed(path, story.global_caption, captions, tuple(zip([0, *ends[:-1]], ends, strict=True)))


def describe(filmed: Filmed, *, intervals: bool = True, captions: bool = True) -> None:
    """Write the sidecar json of a film."""
    shots = [
        ({"caption": c} if captions else {}) | ({"interval": i} if intervals else {})
        for c, i in zip(filmed.captions, filmed.intervals, strict=True)
    ]
    described = {"global_caption": filmed.global_caption, "shots": shots, "source": "story world"}
    filmed.path.with_suffix(".json").write_text(json.dumps(described))


def numbered(count: int, size: int = 64) -> NDArray[np.uint8]:
    """Frames that say their number: bits of it as bright and dark blocks, which survive compression."""
    frames = np.zeros((count, size, size, 3), np.uint8)
    block = size // 4
    for n in range(count):
        for bit in range(12):
            row, column = divmod(bit, 4)
            frames[n, row * block : (row + 1) * block, column * block : (column + 1) * block] = (
                230 * (n >> bit & 1) + 10
            )
    return frames


def number_of(frame: NDArray[np.uint8]) -> int:
    """The number that a frame of :func:`numbered` says, at any size."""
    height, width = frame.shape[0] // 4, frame.shape[1] // 4
    return sum(
        int(frame[r * height : (r + 1) * height, c * width : (c + 1) * width].mean() > 120) << (4 * r + c)
        for r in range(3)
        for c in range(4)
    )


def decoded(path: Path) -> NDArray[np.uint8]:
    """All frames of a file as PyAV gives them, at their own size."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def write_sound(path: Path) -> Path:
    """An mp4 with half a second of sound and no picture."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path
