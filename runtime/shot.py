"""The shot that is being made: how far it is, and which of its frames and latents are still needed.

It keeps; it makes no frames, runs no engine and encodes nothing (the session does), and it knows no past shots but as
the `History` it is handed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.history import History, PastShot

_FRAMES_PER_LATENT = 4


@dataclass
class RunningShot:
    """The running shot, or the one that is to begin."""

    config: DiTConfig
    caption: str
    full_caption: str
    """Followed from the next chunk on."""
    global_caption: str
    number: int
    chunks: int
    text_kv: Any
    made: int = 0
    frames: int = 0
    stream: Any = None
    abandoned: bool = False
    """A chunk of it was cancelled: as long as it has none at all, a cut takes its place."""
    seen_caption: str = ""
    """Full caption of the newest chunk."""
    cached_caption: str = ""
    """Full caption that the engine's caches hold; another than `full_caption` from a steer until the next settling."""
    unclean: bool = False
    """The newest chunk's clean pass has not been run."""
    past: list[tuple[int, Tensor]] = field(default_factory=list)
    """(first latent frame, clean latents) of the chunks that the local cache holds, oldest first."""
    pixels: dict[int, Tensor] = field(default_factory=dict)
    """Frame -> float pixels [3, H, W], for frames that may become context and are not encoded yet."""
    latents: dict[int, Tensor] = field(default_factory=dict)
    """Frame -> latent [C, h, w], for those that are."""
    captions: dict[int, str] = field(default_factory=dict)
    """Frame -> the full caption it was made under, for both."""

    @property
    def over(self) -> bool:
        return self.made >= self.chunks

    @property
    def next_frame(self) -> int:
        """Latent frame at which the next chunk starts."""
        return self.made * self.config.chunk_frames

    def take(self, latents_BFCHW: Tensor, pixels_FCHW: Tensor, history: History) -> None:
        """Count a finished chunk in and keep of it what may be needed, whichever chunk the shot ends with."""
        self._keep_latents(latents_BFCHW)
        first, self.frames, self.made = self.frames, self.frames + len(pixels_FCHW), self.made + 1
        self.unclean, self.seen_caption = True, self.full_caption
        wanted: set[int] = set()
        for chunks in range(self.made, self.chunks + 1):
            wanted |= self.candidates(history, chunks)
        self.pixels = {frame: pixels for frame, pixels in self.pixels.items() if frame in wanted}
        self.latents = {frame: latent for frame, latent in self.latents.items() if frame in wanted}
        self.captions = {frame: caption for frame, caption in self.captions.items() if frame in wanted}
        for frame in sorted(wanted):
            if first <= frame < self.frames:
                self.pixels[frame] = pixels_FCHW[frame - first].clone()
                self.captions[frame] = self.full_caption

    def candidates(self, history: History, chunks: int) -> set[int]:
        """Frames that can be picked as context if the shot ends with this many chunks."""
        latents = chunks * self.config.chunk_frames
        return history.candidates(1 + _FRAMES_PER_LATENT * (latents - 1))

    def as_past(self, history: History) -> PastShot:
        """The shot as later ones may be shown it, if it ends here; its candidate frames must be encoded."""
        kept = sorted(history.candidates(self.frames))
        earlier = {frame: self.captions[frame] for frame in kept if self.captions[frame] != self.seen_caption}
        return PastShot(
            self.number, self.seen_caption, self.frames, {frame: self.latents[frame] for frame in kept}, earlier
        )

    def _keep_latents(self, latents_BFCHW: Tensor) -> None:
        """Remember the chunk, and no more chunks than the local cache does: its sink and its ring."""
        self.past.append((self.next_frame, latents_BFCHW))
        sink = self.config.sink_frames
        oldest = self.next_frame + self.config.chunk_frames - (self.config.local_frames - sink)
        self.past = [(start, z) for start, z in self.past if start < sink or start >= oldest]
