"""Where the parts of a scene are: shares per cell, from the same painters as the picture."""

import numpy as np
import pytest

from shotstream.training.world import render_shot, sample_story
from shotstream.training.world.parts import PARTS, part_shares
from shotstream.training.world.story import SPECIES


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_shares_fill_every_cell_and_name_only_who_is_there(seed: int) -> None:
    story = sample_story(seed)
    for k, shot in enumerate(story.shots):
        shares = part_shares(story, k, [0, 13, 32])
        assert shares.shape == (3, 10, 16, len(PARTS))
        assert np.abs(shares.astype(int).sum(-1) - 255).max() <= len(PARTS) // 2
        seen = {story.characters[i].species for i in shot.cast}
        for species in SPECIES:
            share = shares[..., PARTS.index(f"{species} head")].sum()
            assert (share > 0) == (species in seen), (species, shot)


def test_parts_lie_where_the_picture_has_them() -> None:
    """The head's cells have the hero's colour: red channel far above green and blue for a red hero by day."""
    story = next(
        s for s in map(sample_story, range(2000))
        if s.characters[0].color == "red" and s.background.time == "day" and s.background.place == "meadow"
        and s.shots[1].size == "close-up" and len(s.characters) == 1
    )  # fmt: skip
    frame = render_shot(story, 1, [0])[0].astype(float)
    body = part_shares(story, 1, [0])[0][..., PARTS.index(f"{story.characters[0].species} head")] / 255
    cells = frame.reshape(10, 8, 16, 8, 3).mean((1, 3))[body > 0.55]
    assert len(cells) >= 1
    assert (cells[:, 0] > 1.3 * cells[:, 1]).all()


def test_moving_figures_move_in_the_shares_too() -> None:
    story = next(s for s in map(sample_story, range(500)) if s.shots[0].actions[0] == "walks right")
    part = PARTS.index(f"{story.characters[story.shots[0].cast[0]].species} body")
    early, late = part_shares(story, 0, [0, 32])[..., part].astype(float)
    columns = np.arange(16)
    assert (late.sum(0) @ columns) / late.sum() > (early.sum(0) @ columns) / early.sum()
