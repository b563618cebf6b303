"""The network that compares latents by what they show: labels, errors, stage, and what coupled does with it."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.training.data.latents import LatentStories
from shotstream.training.method.perceptual import HERO_LOOKS, SCENE_LOOKS, Looks, PerceptualNet, perceptual_error
from shotstream.training.recipe import Recipe
from shotstream.training.stages.coupled import CoupledRecipe
from shotstream.training.stages.perceptual import (
    PerceptualRecipe,
    PerceptualStage,
    Seen,
    draw_seen,
    looking_loss,
    looks_of,
)
from shotstream.training.world import Story, sample_story
from shotstream.training.world.parts import PARTS, part_shares
from shotstream.training.world.story import SPECIES

CHANNELS = 6


class Painted:
    """Stories whose latents are fixed mixtures of the parts that are there, and of the heroes' colours."""

    def __init__(self, first: int, count: int) -> None:
        self.stories = [sample_story(seed, 2) for seed in range(first, first + count)]
        mixing = torch.Generator().manual_seed(5)
        self.of_part = torch.randn(len(PARTS), CHANNELS, generator=mixing)
        self.of_color = torch.randn(8, CHANNELS, generator=mixing)
        self.clips: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.stories)

    def story(self, story: int) -> Story:
        return self.stories[story]

    def shots(self, story: int) -> int:
        return 2

    def latents(self, story: int, shot: int) -> int:
        return 4

    def clip(self, story: int, shot: int, frames: int) -> Tensor:
        return self._made(story, shot)[0][:frames]

    def clip_parts(self, story: int, shot: int, frames: int) -> Tensor:
        return self._made(story, shot)[1][:frames]

    def _made(self, story: int, shot: int) -> tuple[Tensor, Tensor]:
        if (story, shot) not in self.clips:
            parts = torch.from_numpy(part_shares(self.stories[story], shot, [0, 4, 8, 12]))
            shares = parts.float() / 255
            latents = shares @ self.of_part
            colors = looks_of(self.stories[story], shot)[0][list(HERO_LOOKS).index("color")]
            for species, color in zip(SPECIES, colors.tolist(), strict=True):
                if color >= 0:
                    figure = [PARTS.index(f"{species} {part}") for part in ("body", "head")]
                    latents += shares[..., figure].sum(-1, keepdim=True) * self.of_color[color]
            self.clips[story, shot] = latents.permute(0, 3, 1, 2), parts
        return self.clips[story, shot]


def painted(first: int, count: int) -> LatentStories:
    return cast(LatentStories, Painted(first, count))


def net(seed: int = 0) -> PerceptualNet:
    torch.manual_seed(seed)
    return PerceptualNet(CHANNELS, 12)


def test_looks_are_asked_of_those_who_are_there() -> None:
    story = next(s for s in map(sample_story, range(99)) if len(s.characters) == 2 and len(s.shots[1].cast) == 1)
    heroes, scene = looks_of(story, 1)
    (there,) = story.shots[1].cast
    hero = story.characters[there]
    asked = heroes[:, SPECIES.index(hero.species)].tolist()
    for (look, (values, _)), said in zip(HERO_LOOKS.items(), asked, strict=True):
        wanted = story.shots[1].actions[0] if look == "action" else getattr(hero, look)
        assert said == (values.index(wanted) if wanted in values else -1), look
    others = [i for i, species in enumerate(SPECIES) if species != hero.species]
    assert (heroes[:, others] == -1).all()
    said_of_scene = dict(zip(SCENE_LOOKS, scene.tolist(), strict=True))
    assert SCENE_LOOKS["size"][said_of_scene["size"]] == story.shots[1].size
    assert SCENE_LOOKS["roof"][said_of_scene["roof"]] == story.background.roof


def test_pieces_lie_anywhere_in_a_clip_and_know_their_parts() -> None:
    stories, rng = painted(0, 3), np.random.default_rng(0)
    firsts = set()
    for _ in range(30):
        seen = draw_seen(stories, 1, 2, rng)
        for story in range(3):
            for shot in range(2):
                clip, parts = stories.clip(story, shot, 4), stories.clip_parts(story, shot, 4)
                for first in range(3):
                    if torch.equal(clip[first : first + 2], seen.latents[0]):
                        shares = parts[first : first + 2].permute(0, 3, 1, 2).float() / 255
                        if torch.equal(shares, seen.parts):
                            firsts.add(first)
    assert firsts == {0, 1, 2}
    assert draw_seen(stories, 1, 9, rng).latents.shape[1] == 4, "whole clips where they are shorter"


def perfect(seen: Seen, wrong: Sequence[str] = ()) -> Looks:
    """Sure and right, or sure and wrong of some looks."""

    def sure(index: Tensor, count: int, off: bool) -> Tensor:
        return 50.0 * torch.nn.functional.one_hot((index.clamp(min=0) + off) % count, count).float()

    heroes = {}
    for i, (look, (values, _)) in enumerate(HERO_LOOKS.items()):
        logits = torch.zeros(len(seen.parts), len(values), *seen.parts.shape[2:])
        for s, species in enumerate(SPECIES):
            here = seen.parts[:, [PARTS.index(f"{species} {p}") for p in ("body", "head", "accessory")]].sum(1) > 0
            there = (seen.heroes[:, i, s] >= 0)[:, None, None] & here
            answer = sure(seen.heroes[:, i, s], len(values), look in wrong)[:, :, None, None]
            logits = torch.where(there[:, None], answer, logits)
        heroes[look] = logits
    scene = {
        look: sure(seen.scene[:, i], len(values), look in wrong) for i, (look, values) in enumerate(SCENE_LOOKS.items())
    }
    return Looks(50 * (2 * seen.parts - 1), heroes, scene)


def alone(seen: Seen) -> Seen:
    """Only frames with one hero, so that no cell belongs to two."""
    rows = (seen.heroes[:, 1] >= 0).sum(1) == 1
    return Seen(seen.latents, seen.parts[rows].round(), seen.heroes[rows], seen.scene[rows])


@pytest.mark.parametrize("look", [*HERO_LOOKS, *SCENE_LOOKS])
def test_every_look_counts(look: str) -> None:
    seen = alone(draw_seen(painted(0, 8), 24, 1, np.random.default_rng(1)))
    right, wrong = looking_loss(perfect(seen), seen, 1.0), looking_loss(perfect(seen, [look]), seen, 1.0)
    assert right < 0.5
    assert wrong > right + 3
    assert looking_loss(perfect(seen, [look]), seen, 0.0) == pytest.approx(
        looking_loss(perfect(seen), seen, 0.0).item()
    )


def test_the_stage_learns_what_latents_show_and_goes_on_where_it_was() -> None:
    recipe = PerceptualRecipe(steps=120, batch=8, frames=2, width=24, warmup=5, lr=1e-2, ema=0.9)

    def begun() -> PerceptualStage:
        return PerceptualStage(recipe, painted(0, 40), painted(100, 6))

    stage = begun()
    blind = stage.accuracy(stage.held_out, 40)
    losses = [stage.step(i, 1.0)["loss"] for i in range(60)]
    kept = copy.deepcopy(stage.state_dict())
    after = [stage.step(i, 1.0)["loss"] for i in range(60, 120)]
    assert np.mean(after[-10:]) < 0.6 * np.mean(losses[:5])
    assert stage.accuracy(stage.held_out, 40)["color"] > max(0.7, blind["color"] + 0.2)
    again = begun()
    again.load_state_dict(kept)
    assert again.step(60, 1.0)["loss"] == after[0]


def test_equal_clips_are_no_error_apart_and_strangers_about_one() -> None:
    stories, eyes = painted(0, 6), net()
    clips = torch.stack([stories.clip(s, 0, 3) for s in range(6)])
    eyes.calibrate(clips)
    even = torch.ones(6, 3, 1, 10, 16)
    assert perceptual_error(eyes, clips, clips, even) == 0
    assert 0.3 < perceptual_error(eyes, clips.roll(1, 0), clips, even) < 1.5


def test_cells_count_by_their_weight_and_the_truth_has_no_gradient() -> None:
    eyes = net().eval().requires_grad_(False)
    found, true = torch.randn(1, 3, CHANNELS, 10, 16, requires_grad=True), torch.randn(1, 3, CHANNELS, 10, 16)
    weight = torch.zeros(1, 3, 1, 10, 16)
    weight[:, 2] = 1
    perceptual_error(eyes, found, true.requires_grad_(), weight).backward()
    assert true.grad is None
    assert found.grad is not None
    assert found.grad[:, 2].abs().sum() > 0
    assert not found.grad[:, 0].any(), "two latents before what counts nothing of it is seen"
    once, twice = (perceptual_error(eyes, found, true, n * weight).item() for n in (1, 2))
    assert twice == pytest.approx(2 * once)


def test_an_error_does_not_hang_on_how_a_batch_is_split() -> None:
    eyes, found, true = net(), torch.randn(4, 3, CHANNELS, 10, 16), torch.randn(4, 3, CHANNELS, 10, 16)
    eyes.calibrate(true)
    even = torch.ones(4, 3, 1, 10, 16)
    halves = [perceptual_error(eyes, found[h], true[h], even[h]).item() for h in (slice(1), slice(1, 4))]
    assert perceptual_error(eyes, found, true, even).item() == pytest.approx((halves[0] + 3 * halves[1]) / 4, rel=1e-4)


def test_a_single_latent_is_compared_too() -> None:
    found, true = torch.randn(2, 1, CHANNELS, 10, 16), torch.randn(2, 1, CHANNELS, 10, 16)
    assert perceptual_error(net(), found, true, torch.ones(2, 1, 1, 10, 16)) > 0


def test_weights_come_back_as_they_were_written(tmp_path: Path) -> None:
    eyes, clip = net(), torch.randn(1, 3, CHANNELS, 10, 16)
    eyes.calibrate(clip)
    eyes.save(tmp_path / "net.safetensors")
    again = PerceptualNet.load(tmp_path / "net.safetensors")
    assert not any(p.requires_grad for p in again.parameters())
    for one, other in zip(eyes.features(clip), again.features(clip), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(eyes.strangers, again.strangers)


def test_weights_that_are_missing_or_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run 'shotstream train perceptual' first"):
        PerceptualNet.load(tmp_path / "net.safetensors")
    (tmp_path / "net.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="is not what stage perceptual writes"):
        PerceptualNet.load(tmp_path / "net.safetensors")


def test_a_recipe_that_compares_needs_the_stage_and_the_stage_needs_the_story_world() -> None:
    with pytest.raises(UserError, match="the recipe has no such stage; add perceptual"):
        Recipe(name="blind", coupled=CoupledRecipe(perceptual=1.0))
    seeing = Recipe(name="seeing", perceptual=PerceptualRecipe(), coupled=CoupledRecipe(perceptual=1.0))
    assert seeing.stages.index("perceptual") == seeing.stages.index("coupled") - 1
    with pytest.raises(UserError, match="leave both out"):
        Recipe(name="films", source="videos", perceptual=PerceptualRecipe())


@pytest.mark.parametrize("changes", [{"steps": 0}, {"frames": 0}, {"dropout": 0.5}, {"width": 2}], ids=str)
def test_impossible_recipes_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match="perceptual has at least one step"):
        PerceptualRecipe(**changes)  # type: ignore[arg-type]
