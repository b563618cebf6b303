"""Parity of whole stories: several shots end to end, context frames chosen from decoded pixels of earlier shots.

The vectors' toy VAE (a linear map per patch) stands in for the real one, so that the choice, the per-frame encoding
and the loop are checked together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from shotstream.runtime.model.cache import DualCache
from shotstream.runtime.model.context import choose_context
from shotstream.runtime.model.rollout import clean_pass, context_pass, denoise_chunk
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.parity.report import FLOAT32, CaseGroup, Row, Skip, compare_all, compare_equal
from shotstream.runtime.parity.student import Recorder, compare_calls, conditions_of
from shotstream.runtime.parity.vectors import VectorFile
from shotstream.runtime.storyline import full_caption


class ToyVae:
    """The linear stand-in for a video VAE of the vector file. Pixels [F, 3, H, W], latents [F, C, h, w]."""

    def __init__(self, parts: Mapping[str, Tensor], scale: int = 8) -> None:
        self.A, self.b, self.B, self.scale = parts["A"], parts["b"], parts["B"], scale

    def encode(self, frames_NCHW: Tensor) -> Tensor:
        """One latent per frame: average over patches, then a linear map."""
        pooled = torch.nn.functional.avg_pool2d(frames_NCHW, self.scale)
        return torch.einsum("zc,nchw->nzhw", self.A, pooled) + self.b[None, :, None, None]

    def decode(self, z_FCHW: Tensor) -> Tensor:
        """1 + 4 (F - 1) frames, clamped to [-1, 1]."""
        colour = torch.einsum("cz,nzhw->nchw", self.B, z_FCHW)
        frames = [
            torch.tanh((1 + 0.1 * sub) * colour[j]) for j in range(len(z_FCHW)) for sub in range(1 if j == 0 else 4)
        ]
        video = torch.stack(frames)
        return video.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2).clamp(-1, 1)


class ToyHistory:
    """Pixels of finished shots, from which the context of the next one is chosen."""

    def __init__(self, toy_vae: Mapping[str, Tensor]) -> None:
        self.toy = ToyVae(toy_vae)
        self.pixels: list[Tensor] = []

    def context(self, like: Tensor, budget: int) -> tuple[Tensor, list[int]]:
        """Context latents and their flags; zeros and flag 0 before the first shot. like: latents of the shot."""
        chosen = choose_context([len(video) for video in self.pixels], budget)
        if not chosen:
            return like.new_zeros(1, budget, *like.shape[2:]), [0] * budget
        frames = torch.stack([self.pixels[shot][frame] for shot, frame in chosen])
        return self.toy.encode(frames)[None], [shot for shot, _ in chosen]

    def add(self, latents: Tensor) -> None:
        """A shot is over; latents ``[1, F, C, h, w]``."""
        self.pixels.append(self.toy.decode(latents[0]))


class _Story:
    def __init__(self, file: VectorFile, name: str) -> None:
        self.case = file.cases[name]
        self.steps, self.schedule = file.steps(self.case), file.schedule()
        frames = self.case["latents"][0].shape[1]
        self.model = file.model(self.case["weights"], local_frames=frames)
        self.history = ToyHistory(self.case["toy_vae"])
        size = self.case["latents"][0].shape[-2:]
        self.cache = DualCache(self.model.config, self.model.config.tokens_per_frame(*size))
        self.draws = iter(self.case["draws"])
        self.recorder = Recorder(self.model)

    def play(self, shot: int, record: bool) -> tuple[Tensor, Tensor]:
        """Context latents and latents of one shot; its pixels join the history."""
        expected = self.case["latents"][shot]
        model = cast(Transformer, self.recorder) if record else self.model
        config = self.model.config
        cond, context_flags = self.history.context(expected, config.context_frames)
        flags = torch.tensor([*context_flags, context_flags[-1] + 1])
        conditions = conditions_of(self.model, self.case["prompt_embeds"][shot], flags, config.context_frames)
        context_pass(model, cond, conditions, self.cache.context())
        noise, output = next(self.draws), []
        for start in range(0, expected.shape[1], config.chunk_frames):
            x, keys = noise[:, start : start + config.chunk_frames], self.cache.chunk(start)
            renoise = [next(self.draws).view_as(x) for _ in range(len(self.steps) - 1)]
            x0 = denoise_chunk(model, self.schedule, self.steps, x, renoise, start, conditions, keys)
            clean_pass(model, x0, start, conditions, keys)
            output.append(x0)
        latents = torch.cat(output, dim=1)
        self.history.add(latents)
        return cond, latents


def _captions(case: Mapping[str, Any], shots: int) -> list[list[str]]:
    """What our rule makes of the case's captions, for every shot: captions 0..k."""
    plain = [text.removeprefix(f"shot{i}:") for i, text in enumerate(case["shot_captions"])]
    full = [full_caption(case["global_caption"], i, text) for i, text in enumerate(plain)]
    return [full[: k + 1] for k in range(shots)]


def _check(file: VectorFile, name: str) -> Iterator[Row]:
    case = file.cases[name]
    if "toy_vae" not in case:
        raise Skip("it has no toy VAE to take context frames from")
    story, shots = _Story(file, name), len(case["latents"])
    if "prompts_seen" in case:
        yield compare_equal(name, "captions", _captions(case, shots), [list(seen) for seen in case["prompts_seen"]])
    calls = case.get("calls")
    conds, latents = [], []
    with torch.no_grad():
        for shot in range(shots):
            cond, z = story.play(shot, record=bool(calls))
            conds.append((cond, case["cond_latents"][shot]))
            latents.append((z, case["latents"][shot]))
    yield compare_all(name, f"context latents of {shots} shots", conds, FLOAT32)
    for shot, pair in enumerate(latents):
        yield compare_all(name, f"latents of shot {shot}", [pair], FLOAT32)
    if "video_every_27th_frame" in case:
        video = torch.cat(story.history.pixels)[::27]
        yield _compare_video(name, video, case["video_every_27th_frame"])
    if calls:
        flat = [c for entry in calls for c in entry] if isinstance(calls[0], list) else list(calls)
        yield from compare_calls(name, story.schedule, story.recorder.passes, flat, FLOAT32)


def _compare_video(name: str, video_FCHW: Tensor, reference: Any) -> Row:
    """The kept frames in whatever list form, axis order and range ([-1, 1], [0, 1], bytes) they were stored."""
    kept = torch.cat(list(reference)) if isinstance(reference, list | tuple) else reference
    whole_numbers = not kept.is_floating_point()
    kept = kept.flatten(0, kept.dim() - 4).float()
    if kept.shape[-1] == 3 and kept.shape[1] != 3:
        kept = kept.permute(0, 3, 1, 2)
    if kept.shape != video_FCHW.shape:
        return Row(name, "every 27th frame", "not understood", note=f"its shape is {tuple(kept.shape)}")
    ours = video_FCHW if kept.min() < 0 else video_FCHW * 0.5 + 0.5
    if whole_numbers or kept.max() > 2:
        # Bytes: one unit of rounding is all that can be asked.
        return compare_all(name, "every 27th frame", [(ours * 255, kept)], 1.01 / 255)
    return compare_all(name, "every 27th frame", [(ours, kept)], FLOAT32)


GROUPS = [CaseGroup("stories", ("multishot_A",), lambda name: name.startswith("multishot_"), _check)]
