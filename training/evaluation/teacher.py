"""The teacher as a source of frames: it plays whole stories with its bidirectional sampler, shot by shot.

Every shot stands behind the teacher's own earlier shots, chosen and encoded as a session does it. Many stories advance
together, because sampling one alone leaves a processor idle. The student's source is in sources.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shotstream.runtime.decoders.common import TIME_FACTOR
from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.history import reachable_frames
from shotstream.runtime.model.context import choose_context
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.presets import TINY_LATENT
from shotstream.runtime.storyline import full_caption
from shotstream.runtime.text.tiny import TinyTextEncoder
from shotstream.training.data.batches import Condition, encode
from shotstream.training.evaluation.sources import Captions, Frames, canonical, story_noise_seed, to_bytes
from shotstream.training.method.conditioning import Conditioning, route_frames
from shotstream.training.method.sampling import sample_teacher
from shotstream.training.stages.trainer import step_generator
from shotstream.training.world import Story


@dataclass(frozen=True)
class TeacherSettings:
    """How the teacher samples: Euler `steps` with classifier-free `guidance` (1 is none), shots of `frames` latents,
    `batch` stories at a time, in bfloat16 where `bf16`. `seed` decides all noise.
    """

    steps: int = 50
    guidance: float = 3.0
    frames: int = 9
    batch: int = 8
    bf16: bool = False
    seed: int = 0


class TeacherPlayer:
    """Plays stories (see `FramesOfStories`). A story's frames do not depend on which others play with it, up to the
    rounding of batched products."""

    def __init__(self, model: Transformer, text: TinyTextEncoder, vae: TinyVAE, settings: TeacherSettings,
                 captions: Captions = canonical, latent_size: tuple[int, int] = TINY_LATENT) -> None:  # fmt: skip
        """All modules on one device. `latent_size` is height and width of a latent frame."""
        self.model, self.text, self.vae = model.eval(), text.eval(), vae.eval()
        self.settings, self.captions = settings, captions
        self.device = next(model.parameters()).device
        self.latent_shape = (model.config.channels, *latent_size)
        self.schedule = NoiseSchedule(model.config.shift, self.device)
        self.negative = torch.zeros(1, model.config.text_len, model.config.text_dim, device=self.device)

    def __call__(self, stories: Sequence[Story]) -> Iterator[list[Frames]]:
        """The shots of every story, in order; each uint8 [F, H, W, 3]. Stories of a batch have equally many shots."""
        size = self.settings.batch
        for start in range(0, len(stories), size):
            yield from self._play(stories[start : start + size])

    @torch.no_grad()
    def _play(self, stories: Sequence[Story]) -> list[list[Frames]]:
        length = 1 + TIME_FACTOR * (self.settings.frames - 1)
        worded = [self.captions(story) for story in stories]
        captions = [[full_caption(whole, k, part) for k, part in enumerate(parts)] for whole, parts in worded]
        made: list[list[Frames]] = [[] for _ in stories]
        kept: dict[tuple[int, int], Tensor] = {}
        for shot in range(len(stories[0].shots)):
            conditioning = self._conditioning(captions, kept, [length] * shot)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
                latents_BFCHW = sample_teacher(
                    self.model, self.schedule, self._noise(stories, shot), conditioning, self.negative,
                    steps=self.settings.steps, guidance=self.settings.guidance,
                ).x0_BFCHW  # fmt: skip
            video_BTCHW = self.vae.decode(latents_BFCHW.float())
            for films, pixels in zip(made, video_BTCHW, strict=True):
                films.append(to_bytes(pixels))
            wanted = reachable_frames([length] * (shot + 1), self.model.config.context_frames)
            for frame in sorted(frame for s, frame in wanted if s == shot):
                kept[shot, frame] = self.vae.encode_frames(video_BTCHW[:, frame]).float()
        return made

    def _conditioning(self, captions: list[list[str]], kept: dict[tuple[int, int], Tensor], lengths: list[int]
                      ) -> Conditioning:  # fmt: skip
        """Conditions of the shot behind shots of these `lengths`; `kept` holds latents [B, C, h, w] per past frame."""
        config, shot = self.model.config, len(lengths)
        chosen = choose_context(lengths, config.context_frames)
        routing = route_frames(
            [s for s, _ in chosen], self.settings.frames, shot, shot + 1 if chosen else 1,
            context_frames=config.context_frames, context_dropped=not chosen,
        )  # fmt: skip
        if chosen:
            context = torch.stack([kept[key] for key in chosen], dim=1)
        else:
            empty = (len(captions), config.context_frames, *self.latent_shape)
            context = torch.zeros(empty, device=self.device)
        conditions = [Condition(c, routing, own[: shot + 1]) for c, own in zip(context, captions, strict=True)]
        return encode(conditions, self.text, self.device)

    def _noise(self, stories: Sequence[Story], shot: int) -> Tensor:
        """Starting noise [B, F, C, h, w], every story's and every shot's own."""
        shape = (1, self.settings.frames, *self.latent_shape)
        seeds = [story_noise_seed(self.settings.seed, story) for story in stories]
        return torch.cat([torch.randn(shape, generator=step_generator(seed, shot)) for seed in seeds]).to(self.device)
