"""Stage ``perceptual``: a small network learns to say what latents of the story world show, cell by cell.

Stage ``coupled`` then compares what the student draws with the truth through its eyes
(:mod:`shotstream.training.method.perceptual`). It shares no weights with the oracle that judges the student, and reads
latents, not pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from shotstream.runtime.errors import UserError
from shotstream.training.data.latents import LatentStories
from shotstream.training.method.perceptual import HERO_LOOKS, SCENE_LOOKS, Looks, PerceptualNet
from shotstream.training.stages.optim import build_optimizer, take_step
from shotstream.training.stages.sheets import write_bars
from shotstream.training.stages.trainer import Ema, LoopConfig, step_generator
from shotstream.training.world import Story
from shotstream.training.world.parts import PARTS
from shotstream.training.world.story import ACCESSORIES, ACTIONS, BELLY_COLORS, COLORS, SPECIES

_CHECKED = 400  # clips of held-out stories


@dataclass(frozen=True)
class PerceptualRecipe:
    """Hyper-parameters. A sample is ``frames`` latents of a clip, wherever they lie in it, with noise of up to
    ``noise``; ``heroes`` is the weight of all that is asked but the parts.
    """

    steps: int = 2200
    batch: int = 32
    frames: int = 3
    width: int = 96
    noise: float = 0.5
    dropout: float = 0.1
    heroes: float = 0.3
    lr: float = 2e-3
    ema: float = 0.99
    clip: float = 1.0
    warmup: int = 50
    decay: float = 0.5
    seed: int = 8

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.frames, self.width // 3) < 1 or not 0 <= self.dropout < 0.5:
            raise UserError(
                "perceptual has at least one step, sample and frame, a width of 3 or more, and a dropout from 0 to "
                f"below .5, not {self.steps}, {self.batch}, {self.frames}, {self.width} and {self.dropout}"
            )

    @property
    def loop(self) -> LoopConfig:
        """Loop settings."""
        return LoopConfig(self.steps, self.warmup, self.decay, save_every=200, log_every=50, sheet_every=1000)


def looks_of(story: Story, k: int) -> tuple[Tensor, Tensor]:
    """What shot k shows: hero looks ``[looks, species]``, -1 where there is nothing to ask, and scene looks
    ``[looks]``."""
    shot, stage = story.shots[k], story.background
    heroes = torch.full((len(HERO_LOOKS), len(SPECIES)), -1)
    for who, action in zip(shot.cast, shot.actions, strict=True):
        hero = story.characters[who]
        said = (
            ACCESSORIES.index(hero.accessory) - 1, COLORS.index(hero.color), BELLY_COLORS.index(hero.belly),
            ACTIONS.index(action),
        )  # fmt: skip
        heroes[:, SPECIES.index(hero.species)] = torch.tensor(said)
    asked = {"size": shot.size} | {look: getattr(stage, look) for look in SCENE_LOOKS if look != "size"}
    return heroes, torch.tensor([SCENE_LOOKS[look].index(value) for look, value in asked.items()])


@dataclass(frozen=True)
class Seen:
    """Latents ``[B, F, C, H, W]`` and, for all N = B F frames, shares of parts ``[N, P, H, W]``, hero looks
    ``[N, looks, species]`` and scene looks ``[N, looks]``."""

    latents: Tensor
    parts: Tensor
    heroes: Tensor
    scene: Tensor


def draw_seen(stories: LatentStories, count: int, frames: int, rng: np.random.Generator) -> Seen:
    """``count`` pieces of clips, ``frames`` latents or whole clips, whichever is less."""
    clips, parts, heroes, scenes = [], [], [], []
    for _ in range(count):
        story = int(rng.integers(len(stories)))
        shot = int(rng.integers(stories.shots(story)))
        frames = min(frames, stories.latents(story, shot))
        first = int(rng.integers(stories.latents(story, shot) - frames + 1))
        clips.append(stories.clip(story, shot, first + frames)[first:])
        parts.append(stories.clip_parts(story, shot, first + frames)[first:])
        hero, scene = looks_of(stories.story(story), shot)
        heroes.append(hero)
        scenes.append(scene)
    shares = torch.cat(parts).permute(0, 3, 1, 2).float() / 255
    rows = torch.stack(heroes).repeat_interleave(frames, 0), torch.stack(scenes).repeat_interleave(frames, 0)
    return Seen(torch.stack(clips), shares, *rows)


def _of_species(seen: Seen, parts: tuple[str, ...]) -> Tensor:
    """Shares of these parts of a figure by species, ``[N, species, H, W]``."""
    return torch.stack(
        [sum((seen.parts[:, PARTS.index(f"{s} {p}")] for p in parts), torch.tensor(0.0)) for s in SPECIES], 1
    )


def looking_loss(looks: Looks, seen: Seen, heroes: float) -> Tensor:
    """Cross entropy of the parts by cell, and ``heroes`` times that of all looks; a hero counts the same however little
    of the frame it fills, down to half a cell."""
    parts = -(seen.parts * looks.parts.float().log_softmax(1)).sum(1).mean()
    asked = torch.zeros(())
    for i, (look, (_, where)) in enumerate(HERO_LOOKS.items()):
        shares = _of_species(seen, where)
        said = looks.heroes[look].float().log_softmax(1)
        right = seen.heroes[:, i].clamp(min=0)[:, :, None, None].expand(-1, -1, *said.shape[2:])
        known = (seen.heroes[:, i] >= 0)[:, :, None, None]
        cells = shares * known / shares.sum((2, 3), keepdim=True).clamp(min=0.5)
        asked = asked - (cells * said.gather(1, right)).sum((1, 2, 3)).mean()
    for i, look in enumerate(SCENE_LOOKS):
        asked = asked + F.cross_entropy(looks.scene[look].float(), seen.scene[:, i])
    return parts + heroes * asked


class PerceptualStage:
    """State and step (see :class:`shotstream.training.stages.trainer.Stage`)."""

    name = "perceptual"

    def __init__(self, recipe: PerceptualRecipe, stories: LatentStories, held_out: LatentStories, device: torch.device
                 | str = "cpu") -> None:  # fmt: skip
        torch.manual_seed(recipe.seed)
        self.recipe, self.stories, self.held_out, self.device = recipe, stories, held_out, torch.device(device)
        self.net = PerceptualNet(stories.clip(0, 0, 1).shape[1], recipe.width).to(self.device)
        self.ema = Ema({"net": self.net}, recipe.ema)
        self.optimizer = build_optimizer(
            list(self.net.named_parameters()), lr=recipe.lr, adam_lr=recipe.lr, adam_only=lambda name: True
        )

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        recipe = self.recipe
        seen = draw_seen(self.stories, recipe.batch, recipe.frames, np.random.default_rng([recipe.seed, 41, index]))
        generator = step_generator(recipe.seed, index)
        level = torch.rand(recipe.batch, 1, 1, 1, 1, generator=generator) * recipe.noise
        noisy = seen.latents + level * torch.randn(seen.latents.shape, generator=generator)
        torch.manual_seed(recipe.seed * 1_000_003 + index)  # dropout
        with torch.autocast(self.device.type, torch.bfloat16):
            looks = self.net(noisy.to(self.device), recipe.dropout)
        loss = looking_loss(looks, _on(seen, self.device), recipe.heroes)
        loss.backward()
        norm = take_step(self.optimizer, [self.net], recipe.clip, lr_factor)
        self.ema.update(index)
        return {"loss": loss.item(), "grad_norm": norm}

    def work(self, index: int) -> None:
        """Not counted: a few minutes of one core."""

    @torch.no_grad()
    def accuracy(self, stories: LatentStories, count: int = _CHECKED) -> dict[str, float]:
        """Share of right answers by look; a hero's is the one that the cells it fills agree on."""
        seen = _on(
            draw_seen(stories, count, self.recipe.frames, np.random.default_rng([self.recipe.seed, 42])), self.device
        )
        looks, shares = self.net(seen.latents), {}
        for i, (look, (_, where)) in enumerate(HERO_LOOKS.items()):
            here = _of_species(seen, where)
            votes = torch.einsum("nshw,nvhw->nsv", here, looks.heroes[look].log_softmax(1))
            asked = (here.sum((2, 3)) > 0.3) & (seen.heroes[:, i] >= 0)
            shares[look] = float((votes.argmax(-1) == seen.heroes[:, i])[asked].float().mean())
        for i, look in enumerate(SCENE_LOOKS):
            shares[look] = float((looks.scene[look].argmax(-1) == seen.scene[:, i]).float().mean())
        return shares

    def finished(self) -> PerceptualNet:
        """The averaged network, calibrated on stories it learnt from."""
        self.ema.swap()
        rng = np.random.default_rng([self.recipe.seed, 43])
        self.net.calibrate(draw_seen(self.stories, _CHECKED, self.recipe.frames, rng).latents.to(self.device))
        return self.net

    def state_dict(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(), "ema": self.ema.state_dict(), "optimizer": self.optimizer.state_dict()
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])

    def sample_sheet(self, path: Path) -> None:
        """The accuracies as bars: stories it learns from, and held-out ones."""
        self.ema.swap()
        try:
            write_bars({"training": self.accuracy(self.stories), "held out": self.accuracy(self.held_out)}, path)
        finally:
            self.ema.swap()


def _on(seen: Seen, device: torch.device) -> Seen:
    return Seen(seen.latents.to(device), seen.parts.to(device), seen.heroes.to(device), seen.scene.to(device))
