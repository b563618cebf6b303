"""The story world as latents: shards made once by the tiny VAE, and the sampler that cuts training samples from them.

Only story seeds and latents are stored; captions and paraphrases are drawn again from the seed where they are used.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from shotstream.runtime.decoders.common import TIME_FACTOR
from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.context import choose_context
from shotstream.runtime.model.state_dicts import write_safetensors
from shotstream.runtime.storyline import full_caption
from shotstream.training.world import is_held_out, paraphrased, render_shot, sample_story
from shotstream.training.world.choices import choices
from shotstream.training.world.parts import part_shares
from shotstream.training.world.story import Story

_story = lru_cache(maxsize=None)(sample_story)

STORIES_PER_SHARD = 25
_SINGLES = ("singles", "single_parts")

_Made = dict[str, NDArray[Any]]


def training_seeds(first: int, count: int, shots: int) -> Iterator[int]:
    """Seeds of stories that are not held out, counted from ``first``."""
    seed = first
    while count > 0:
        if not is_held_out(sample_story(seed, shots)):
            yield seed
            count -= 1
        seed += 1


def single_positions(shot_frames: int, budget: int, max_history: int) -> list[int]:
    """Every frame number of a shot that :func:`choose_context` can pick for up to ``max_history`` past shots."""
    chosen = {
        frame for history in range(1, max_history + 1) for _, frame in choose_context([shot_frames] * history, budget)
    }
    return sorted(chosen)


@dataclass(frozen=True)
class LatentPlan:
    """What the shards hold: ``stories`` stories of ``shots`` shots of ``frames`` pixel frames, seeds from
    ``first_seed``.

    Of every shot the whole clip (unless ``clips`` is false) and single frames, each encoded alone: those at
    ``positions``, by default every frame that the choice of context frames can name.
    Raises UserError for fewer than one story, two shots or one frame.
    """

    stories: int
    shots: int = 5
    frames: int = 33
    first_seed: int = 0
    height: int = 80
    width: int = 128
    clips: bool = True
    positions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.stories, self.frames) < 1 or self.shots < 2:
            raise UserError(
                "latents are of one story or more, of two shots or more (a shot remembers those before it), of one "
                f"frame or more, not stories: {self.stories}, shots: {self.shots}, frames: {self.frames}"
            )

    @property
    def single_frames(self) -> list[int]:
        """Frame numbers of the frames that are encoded alone."""
        return list(self.positions) or single_positions(self.frames, 6, self.shots - 1)

    @property
    def clip_ends(self) -> list[int]:
        """The last frame number of every latent of a clip."""
        return list(range(0, self.frames, TIME_FACTOR)) if self.clips else []


def _render(plan: LatentPlan, seed: int, shot: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Frames of a shot, the whole clip or only the single ones, and the parts of its clip ends and single frames."""
    story = sample_story(seed, plan.shots)
    frames = range(plan.frames) if plan.clips else plan.single_frames
    video = render_shot(story, shot, frames, height=plan.height, width=plan.width)
    return video, part_shares(story, shot, [*plan.clip_ends, *plan.single_frames])


@torch.inference_mode()
def _encode(vae: TinyVAE, plan: LatentPlan, frames: NDArray[np.uint8], parts: NDArray[np.uint8]) -> _Made:
    """What a shard holds of a shot, by name; arrays, because tensors would cross processes by shared memory."""
    device = next(vae.parameters()).device
    video = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    singles = plan.single_frames if plan.clips else list(range(len(plan.single_frames)))
    with torch.autocast(device.type, torch.bfloat16):
        made = {"singles": vae.encode_base(video[singles][:, None])[:, 0].half().cpu().numpy()}
        if plan.clips:
            made["clips"] = vae.encode_base(video[None])[0].half().cpu().numpy()
    ends = len(plan.clip_ends)
    return made | {"clip_parts": parts[:ends], "single_parts": parts[ends:]}


class _Worker:
    """A shot's frames, or with a codec its latents, which leaves nothing but writing to the first process."""

    vae: TinyVAE | None = None

    @classmethod
    def start(cls, vae: TinyVAE | None) -> None:
        torch.set_num_threads(1)  # as many processes as cores: more threads would only wait for each other
        cls.vae = vae

    @classmethod
    def make(cls, plan: LatentPlan, seed: int, shot: int) -> Any:
        rendered = _render(plan, seed, shot)
        return rendered if cls.vae is None else _encode(cls.vae, plan, *rendered)


def make_latents(
    vae: TinyVAE, plan: LatentPlan, out: Path, workers: int = 1, deadline: float = math.inf,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> bool:  # fmt: skip
    """Write the missing shards of ``plan`` into ``out``; existing ones are kept, so a killed run goes on.

    Ends with the first shard written after ``deadline``, in seconds of `time.monotonic`; returns whether all are there.
    ``progress`` is told the shards that are there, and all, after each one.

    Workers draw the frames and, on a CPU, encode them too; a GPU encodes in this process. No more than two shards are
    under way, so that memory does not grow with the plan.
    """
    out.mkdir(parents=True, exist_ok=True)
    seeds = list(training_seeds(plan.first_seed, plan.stories, plan.shots))
    groups = [seeds[i : i + STORIES_PER_SHARD] for i in range(0, len(seeds), STORIES_PER_SHARD)]
    missing = [(i, g) for i, g in enumerate(groups) if not (out / f"shard_{i:05d}.safetensors").exists()]
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    lent = vae if next(vae.parameters()).device.type == "cpu" else None
    with get_context("spawn").Pool(workers, _Worker.start, (lent,)) as pool:
        waiting: deque[AsyncResult[list[Any]]] = deque()
        for position, (index, group) in enumerate(missing):
            for _, ahead in missing[position + len(waiting) : position + 2]:
                jobs = [(plan, seed, shot) for seed in ahead for shot in range(plan.shots)]
                waiting.append(pool.starmap_async(_Worker.make, jobs, chunksize=5))
            shots = waiting.popleft().get()
            made: list[_Made] = shots if lent is not None else [_encode(vae, plan, *shot) for shot in shots]
            shape = (len(group), plan.shots)
            stacked = {name: torch.from_numpy(np.stack([shot[name] for shot in made])) for name in made[0]}
            shard = {name: tensor.unflatten(0, shape).contiguous() for name, tensor in stacked.items()}
            path = out / f"shard_{index:05d}.safetensors"
            write_safetensors(path, {"seeds": torch.tensor(group), **shard}, {})
            progress(index + 1, len(groups))
            if time.monotonic() >= deadline:
                return position + 1 == len(missing)
    return True


class LatentStories:
    """All shards of a folder in memory (float16), sampled by story, shot and frame; :meth:`refresh` picks up new
    shards.
    """

    def __init__(self, folder: Path, plan: LatentPlan) -> None:
        self.folder = folder
        self.plan = plan
        self.positions = plan.single_frames
        self._known: list[str] = []
        self.seeds: list[int] = []
        self._tensors: dict[str, list[Tensor]] = {name: [] for name in ("clips", "clip_parts", *_SINGLES)}
        self.refresh()
        if not self.seeds:
            raise UserError(f"no latent shards in {folder}; run 'shotstream train latents' first")

    def refresh(self) -> int:
        """Load shards that appeared since; returns the number of stories."""
        for path in sorted(self.folder.glob("shard_*.safetensors")):
            if path.name in self._known:
                continue
            with safe_open(path, "pt") as file:
                self.seeds += file.get_tensor("seeds").tolist()
                for name in self._tensors if self.plan.clips else _SINGLES:
                    self._tensors[name] += list(file.get_tensor(name))
            self._known.append(path.name)
        return len(self.seeds)

    def __len__(self) -> int:
        return len(self.seeds)

    def story(self, story: int) -> Story:
        """The story itself."""
        return _story(self.seeds[story], self.plan.shots)

    def shots(self, story: int) -> int:
        """Shots of a story: the plan's."""
        return self.plan.shots

    def latents(self, story: int, shot: int) -> int:
        """Latents of a shot's clip: the plan's."""
        return len(self.plan.clip_ends)

    def singles(self, story: int, shot: int) -> int:
        """How many frames of a shot were encoded alone."""
        return len(self.positions)

    def clip(self, story: int, shot: int, frames: int) -> Tensor:
        """First ``frames`` latents of a shot, float32 ``[frames, C, H, W]``."""
        return self._tensors["clips"][story][shot, :frames].float()

    def clip_parts(self, story: int, shot: int, frames: int) -> Tensor:
        """Parts seen at the ends of the same latents, uint8 ``[frames, H, W, parts]``."""
        return self._tensors["clip_parts"][story][shot, :frames]

    def single(self, story: int, shot: int, position: int) -> Tensor:
        """The ``position``-th of the singly encoded frames of a shot, float32 ``[C, H, W]``."""
        return self._tensors["singles"][story][shot, position].float()

    def single_parts(self, story: int, shot: int, position: int) -> Tensor:
        """Parts seen in the same frame, uint8 ``[H, W, parts]``."""
        return self._tensors["single_parts"][story][shot, position]

    def context(self, story: int, shot: int, budget: int = 6) -> tuple[Tensor, list[int]]:
        """Context latents ``[budget, C, H, W]`` and their shots, chosen from the shots before ``shot``.

        Where the frame chosen was not encoded alone, its nearest neighbour stands in for it.
        """
        chosen = choose_context([self.plan.frames] * shot, budget)
        latents = [self.single(story, s, self._nearest(frame)) for s, frame in chosen]
        return torch.stack(latents), [s for s, _ in chosen]

    def _nearest(self, frame: int) -> int:
        return min(range(len(self.positions)), key=lambda i: abs(self.positions[i] - frame))

    def camera_moves(self, story: int, shot: int) -> bool:
        """Whether the camera pans or pushes in."""
        return self.story(story).shots[shot].camera != "static"

    def choices(self, story: int, shot: int, shown: int, seed: int) -> Tensor:
        """What a shot shows and no caption says, the first ``shown`` shots being known; see :mod:`world.choices`."""
        return torch.from_numpy(choices(self.story(story), shot, range(shown), seed))

    def captions(self, story: int, shots: Sequence[int], wording: int | None) -> list[str]:
        """Full captions of the given shots: canonical when ``wording`` is None, else paraphrased by that seed."""
        return full_captions(self.seeds[story], self.plan.shots, shots, wording)


def full_captions(seed: int, shots_in_story: int, shots: Sequence[int], wording: int | None) -> list[str]:
    """Global caption, zero-based label and shot caption joined without a separator."""
    story = _story(seed, shots_in_story)
    if wording is None:
        whole, parts = story.global_caption, [story.shot_caption(k) for k in range(shots_in_story)]
    else:
        whole, parts = paraphrased(story, wording)
    return [full_caption(whole, k, parts[k]) for k in shots]
