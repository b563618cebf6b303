"""Where the frames under measurement come from: true renders, renders behind a codec, and sessions of the runtime.

A source plays stories of the world to frames. It reads nothing and scores nothing; the teacher's source is in
teacher.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from shotstream.training.evaluation.axes import Pace
from shotstream.training.world import Story, is_held_out, paraphrased, render_shot

if TYPE_CHECKING:
    from shotstream.runtime.runtime import Runtime

Frames = NDArray[np.uint8]
FramesOfStory = Callable[[Story], list[Frames]]
"""A story to its shots, each uint8 [F, H, W, 3] with the aspect 10:16."""
FramesOfStories = Callable[[Sequence[Story]], Iterator[list[Frames]]]
"""The same for many stories, in their order: a source may play several at once."""
Captions = Callable[[Story], tuple[str, Sequence[str]]]
"""A story to its global caption and its shot captions."""


def canonical(story: Story) -> tuple[str, list[str]]:
    """The fixed wording."""
    return story.global_caption, [story.shot_caption(k) for k in range(len(story.shots))]


def free_wording(seed: int) -> Captions:
    """Paraphrases, drawn anew for every story from this seed."""

    def captions(story: Story) -> tuple[str, list[str]]:
        return paraphrased(story, seed)

    return captions


def one_by_one(make: FramesOfStory) -> FramesOfStories:
    """Plays stories one after the other."""

    def play(stories: Sequence[Story]) -> Iterator[list[Frames]]:
        return (make(story) for story in stories)

    return play


def renders_of(story: Story) -> list[Frames]:
    """The truth: the story's own renders, 33 frames a shot at 80x128."""
    return [render_shot(story, k) for k in range(len(story.shots))]


class CodecPlayer:
    """Renders that went through a video codec: what a perfect model behind it could show."""

    def __init__(self, decoder: Any, frame_size: tuple[int, int], device: torch.device) -> None:
        """`decoder` has `encode` and `decode`; `frame_size` is its height and width in pixels."""
        self.decoder, self.frame_size, self.device = decoder, frame_size, device
        self.psnr: list[float] = []
        """Per played story, the mean over its shots of the shot's PSNR in dB, at full resolution."""

    @torch.inference_mode()
    def __call__(self, story: Story) -> list[Frames]:
        """The story's shots after encoding and decoding, 33 frames each."""
        shots, values = [], []
        for k in range(len(story.shots)):
            frames = render_shot(story, k, 33, *self.frame_size)
            pixels = torch.from_numpy(frames).to(self.device).permute(0, 3, 1, 2)[None]
            video_BTCHW = (pixels.float() / 127.5 - 1).to(_dtype_of(self.decoder))
            after = to_bytes(self.decoder.decode(self.decoder.encode(video_BTCHW))[0].float())
            error = float(((after.astype(np.float32) - frames) ** 2).mean())
            values.append(10 * math.log10(255**2 / max(error, 1e-6)))
            shots.append(after)
        self.psnr.append(float(np.mean(values)))
        return shots


def session_frames(runtime: Runtime, seed: int = 0, chunks: int = 3, captions: Captions = canonical,
                   paces: list[Pace] | None = None) -> FramesOfStory:  # fmt: skip
    """Lets the runtime play a story, `chunks` chunks a shot, and adds how fast it was to `paces`.

    Every story gets noise of its own, drawn from `seed` and the story's seed: with one noise for all, the stories
    would not be independent samples.
    """

    def make(story: Story) -> list[Frames]:
        whole, parts = captions(story)
        shots, waits = [], []
        with runtime.open(whole, seed=story_noise_seed(seed, story)) as session:
            for caption in parts:
                asked = time.perf_counter()
                session.begin_shot(caption, chunks)
                made = []
                for chunk in session.chunks():
                    made.append(chunk.frames)
                    waits.append(time.perf_counter() - asked)
                    asked = time.perf_counter()
                shots.append(np.concatenate(made))
        if paces is not None:
            paces.append(Pace(sum(len(shot) for shot in shots), sum(waits), tuple(waits)))
        return shots

    return make


def story_noise_seed(seed: int, story: Story) -> int:
    """The seed of a story's noise, below 2^32. The two kinds of stories share their seeds, but not their noise."""
    return int(np.random.SeedSequence([seed, story.seed, int(is_held_out(story))]).generate_state(1)[0])


def to_bytes(pixels_FCHW: torch.Tensor) -> Frames:
    """Pixels in [-1, 1] to uint8 [F, H, W, 3] on the host."""
    scaled = ((pixels_FCHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _dtype_of(decoder: Any) -> torch.dtype:
    """The number format a codec computes in; float32 for one that does not say."""
    return next(decoder.parameters()).dtype if isinstance(decoder, torch.nn.Module) else torch.float32
