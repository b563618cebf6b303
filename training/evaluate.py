"""Measures a model on stories of the world: does it show what is asked, cut where asked, and keep what it showed.

The oracle reads the frames; its own limits are printed beside every score, as the same measurement on true renders
and on renders that went through the model's video codec. Nothing here trains anything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from shotstream.runtime.errors import UserError
from shotstream.training.oracle.cuts import find_cuts
from shotstream.training.oracle.reader import Reader, load_reader
from shotstream.training.scores import Report, Row, StoryReading, bootstrap, tally_story
from shotstream.training.world import Story, is_held_out, render_shot, sample_held_out_story, sample_story

if TYPE_CHECKING:
    from shotstream.runtime.runtime import Runtime

log = logging.getLogger(__name__)

FIRST_SEED = 90_000_000  # evaluation stories start here; no training uses these seeds
SHOTS = 5

Frames = NDArray[np.uint8]
FramesOfStory = Callable[[Story], list[Frames]]
"""A story to its shots, each uint8 [F, H, W, 3] with the aspect 10:16."""


def evaluation_stories(count: int, seed: int = 0, shots: int = SHOTS) -> list[Story]:
    """Half stories like those of training (unseen seeds), half with pairs that training never shows."""
    if count < 2:
        raise UserError(f"an evaluation needs at least 2 stories, not {count}: one seen kind, one held-out kind.")
    first = FIRST_SEED + seed * 1_000_000
    known = [sample_story(first + i, shots) for i in range((count + 1) // 2)]
    return known + [sample_held_out_story(first + i, shots) for i in range(count // 2)]


def evaluate(frames_of_story: FramesOfStory, stories: Sequence[Story], *,
             ceilings: Mapping[str, FramesOfStory] | None = None, reader: Reader | None = None, seed: int = 0,
             progress: Callable[[int, int], None] | None = None) -> Report:
    """Scores `frames_of_story` and, beside it, the `ceilings` (default: the renders) on the same stories.

    `progress` is called with (stories done, stories in all) over all sources.
    """
    reader = reader or load_reader()
    if ceilings is None:
        ceilings = {"renders": renders_of}
    sources = {"model": frames_of_story, **ceilings}
    groups = {
        "in distribution": [s for s in stories if not is_held_out(s)],
        "held out": [s for s in stories if is_held_out(s)],
    }
    rows, done = [], 0
    for source, make in sources.items():
        for group, members in groups.items():
            readings = []
            for story in members:
                readings.append(read_story(story, make(story), reader))
                done += 1
                if progress is not None:
                    progress(done, len(stories) * len(sources))
            if readings:
                others: list[StoryReading | None] = [*readings[1:], readings[0]] if len(readings) > 1 else [None]
                tallies = [tally_story(r, other) for r, other in zip(readings, others, strict=True)]
                rows.append(Row(source, group, len(readings), bootstrap(tallies, seed)))
    return Report(tuple(rows), len(stories), seed, reader.note)


def evaluate_model(runtime: Runtime, stories: int = 40, seed: int = 0, *, chunks: int = 3,
                   progress: Callable[[int, int], None] | None = None) -> Report:
    """Scores a runtime's model on fresh stories with canonical captions; ceilings: renders and its own codec."""
    height, width = runtime.parts.frame_size
    if height % 20 or width % 32 or height * 16 != width * 10:
        raise UserError(
            f"only models of the story world can be evaluated: {runtime.parts.name} makes frames of {width}x{height}, "
            "the world has the aspect 16:10."
        )
    ceilings: dict[str, FramesOfStory] = {"renders": renders_of}
    if hasattr(runtime.parts.decoder, "encode"):
        ceilings["codec"] = codec_frames(runtime.parts.decoder, runtime.parts.frame_size, runtime.device)
    return evaluate(
        session_frames(runtime, seed, chunks), evaluation_stories(stories, seed), ceilings=ceilings, seed=seed,
        progress=progress,
    )


def read_story(story: Story, shots: Sequence[Frames], reader: Reader) -> StoryReading:
    """Reads every shot, and looks for cuts in the whole film without knowing where they should be."""
    asked = tuple(int(v) for v in np.cumsum([len(s) for s in shots])[:-1])
    found = tuple(find_cuts(np.concatenate(shots)))
    return StoryReading(story, tuple(reader.read_shot(s) for s in shots), found, asked)


def renders_of(story: Story) -> list[Frames]:
    """The truth: the story's own renders, 33 frames a shot at 80x128."""
    return [render_shot(story, k) for k in range(len(story.shots))]


def codec_frames(decoder: Any, frame_size: tuple[int, int], device: torch.device) -> FramesOfStory:
    """Renders that went through the model's video codec: what a perfect model behind it could show."""

    @torch.inference_mode()
    def make(story: Story) -> list[Frames]:
        shots = []
        for k in range(len(story.shots)):
            frames = torch.from_numpy(render_shot(story, k, 33, *frame_size)).to(device)
            video_BTCHW = frames.permute(0, 3, 1, 2)[None].float() / 127.5 - 1
            pixels_TCHW = decoder.decode(decoder.encode(video_BTCHW))[0].float()
            shots.append(_to_bytes(pixels_TCHW))
        return shots

    return make


def session_frames(runtime: Runtime, seed: int = 0, chunks: int = 3) -> FramesOfStory:
    """Lets the runtime play a story with its canonical captions, `chunks` chunks a shot."""

    def make(story: Story) -> list[Frames]:
        shots = []
        with runtime.open(story.global_caption, seed=seed) as session:
            for k in range(len(story.shots)):
                session.begin_shot(story.shot_caption(k), chunks)
                shots.append(np.concatenate([chunk.frames for chunk in session.chunks()]))
        return shots

    return make


def _to_bytes(pixels_TCHW: torch.Tensor) -> Frames:
    scaled = ((pixels_TCHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()
