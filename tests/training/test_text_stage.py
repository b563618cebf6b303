"""The text stage: what captions mean, what may not be taught, and that a few steps teach something."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from shotstream.runtime.text.tiny import TinyTextConfig, TinyTextEncoder
from shotstream.training.stages.text import (
    HERO_SLOTS,
    NOT_ASKED,
    SCENE_SLOTS,
    TextRecipe,
    TextStage,
    draw_captions,
    meanings,
    reading_loss,
)
from shotstream.training.world import is_held_out, sample_story
from shotstream.training.world.story import ACTIONS, COLORS, SIZES, SPECIES

SMALL = TinyTextConfig(dim=32, heads=2, layers=1, buckets=256)


def test_meanings_are_what_the_caption_says() -> None:
    story = next(s for s in map(sample_story, range(100)) if len(s.characters) == 2 and len(s.shots[2].cast) == 1)
    said = meanings(story, 2, canonical=True)
    seen = story.shots[2].cast[0]
    for i, hero in enumerate(story.characters):
        column = SPECIES.index(hero.species)
        assert HERO_SLOTS["role"][said["role"][column]] == ("seen" if i == seen else "elsewhere")
        assert COLORS[said["color"][column]] == hero.color
        assert said["order"][column] == i
        expected = ACTIONS.index(story.shots[2].actions[0]) if i == seen else NOT_ASKED
        assert said["action"][column] == expected
    assert SIZES[said["size"][0]] == story.shots[2].size
    absent = [c for c, species in enumerate(SPECIES) if species not in [h.species for h in story.characters]]
    assert all(said["role"][c] == 0 and said["color"][c] == NOT_ASKED for c in absent)
    assert set(meanings(story, 2, canonical=False)["order"]) == {NOT_ASKED}


def test_training_captions_never_name_a_held_out_pair() -> None:
    captions, slots = draw_captions(np.random.default_rng(0), 300, paraphrase=0.0)
    assert len(captions) == 300
    assert slots["color"].shape == (300, len(SPECIES))
    for hero, color in (("cat", "green"), ("bear", "purple"), ("rabbit", "orange"), ("robot", "pink")):
        assert not (slots["color"][:, SPECIES.index(hero)] == COLORS.index(color)).any()
    held_out, _ = draw_captions(np.random.default_rng(0), 300, paraphrase=0.0, held_out=True)
    assert any("green cat" in c or "purple bear" in c for c in held_out)
    assert not any(is_held_out(sample_story(s)) for s in range(50))


def test_nothing_teaches_that_there_are_no_green_cats() -> None:
    logits = {slot: torch.zeros(1, len(SPECIES), len(v), requires_grad=True) for slot, v in HERO_SLOTS.items()}
    logits |= {slot: torch.zeros(1, 1, len(v), requires_grad=True) for slot, v in SCENE_SLOTS.items()}
    targets = {slot: torch.full(logits[slot].shape[:2], NOT_ASKED) for slot in logits}
    targets["color"][0, SPECIES.index("cat")] = COLORS.index("red")
    reading_loss(logits, targets).backward()
    grad = logits["color"].grad
    assert grad is not None
    cat = grad[0, SPECIES.index("cat")]
    assert cat[COLORS.index("green")] == 0
    assert cat[COLORS.index("blue")] > 0


def test_a_few_steps_lower_the_loss_and_a_resumed_stage_is_the_same() -> None:
    recipe = TextRecipe(encoder=SMALL, steps=60, batch=16, paraphrase=0.0, lr=1.5e-2, adam_lr=1.5e-2)
    stage = TextStage(recipe)
    figures = [stage.step(i, 1.0)["loss"] for i in range(60)]
    assert np.mean(figures[-5:]) < 0.8 * np.mean(figures[:5])
    other = TextStage(recipe)
    other.load_state_dict(stage.state_dict())
    assert stage.step(60, 1.0) == other.step(60, 1.0)


def test_the_sheet_shows_accuracies(tmp_path: Path) -> None:
    stage = TextStage(TextRecipe(encoder=SMALL, steps=1, batch=4))
    assert set(stage.accuracy(20)) == {*HERO_SLOTS, *SCENE_SLOTS} - {"order"}
    stage.sample_sheet(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_neighbours_are_mixed_in_only_where_the_file_says_so() -> None:
    old = json.dumps({k: v for k, v in json.loads(SMALL.to_json()).items() if k != "reach"})
    assert TinyTextEncoder(TinyTextConfig.from_json(old)).mix is None
    new = TinyTextEncoder(SMALL)
    assert new.mix is not None
    near, far = new.encode(["red cat"]), new.encode(["blue cat"])
    assert not torch.allclose(near[0, 1], far[0, 1])


@pytest.mark.parametrize("caption", ["", "?!"])
def test_a_caption_without_words_is_all_zero(caption: str) -> None:
    assert not TinyTextEncoder(SMALL).encode([caption]).any()
