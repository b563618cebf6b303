"""What a session hands over: a chunk of finished frames, or word that it was cancelled. It makes neither."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shotstream.runtime.timing import Timings


@dataclass(frozen=True)
class Chunk:
    """Finished frames, in the order in which they are shown."""

    frames: npt.NDArray[np.uint8]
    """[F, H, W, 3], 0..255."""
    shot: int
    """Zero-based, over the whole session."""
    chunk: int
    """Zero-based, inside the shot."""
    first_frame: int
    """Number of the first frame, zero-based, over the whole session."""
    caption: str
    """The caption that the chunk follows, as given to `cut` or `steer`, without the global caption."""
    last: bool
    """True if the shot ends here as planned; a cut may end it earlier."""
    timings: Timings


class ChunkCancelled(Exception):
    """A chunk was abandoned because its caller's `stop` said so. Nothing of it is left; the session goes on."""


def to_bytes(pixels_FCHW: Tensor) -> Tensor:
    """Pixels in [-1, 1] to bytes [F, H, W, 3], where the pixels are."""
    scaled = (pixels_FCHW.float() * 0.5 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
