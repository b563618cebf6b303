"""Teacher trajectories of a run's stage `ode`, told which story and shot each belongs to.

The stage stores only what its own student is shown. A student with another memory needs the story behind a trajectory,
so the stage's draws are made once more and compared with what it stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.training.data.batches import draw_condition
from shotstream.training.data.latents import LatentStories
from shotstream.training.stages.ode import OdeRecipe, Pairs


class Trajectories:
    """Trajectories by the number of their shot: `states[i]` is [states, F, C, H, W], `stories[i]` and `captions[i]`
    (of the shots up to its own) go with it, `of_shot[k]` are the numbers of those of shot k.
    """

    def __init__(self, folder: Path, recipe: OdeRecipe, data: LatentStories, config: DiTConfig) -> None:
        """UserError when the stored pairs are not those that the recipe draws."""
        pairs = Pairs(folder)
        self.states, self.stories, self.captions = pairs.states, [], []
        self.of_shot: dict[int, list[int]] = {}
        for number, stored in enumerate(pairs.conditions):
            if number % recipe.pair_batch == 0:
                rng = np.random.default_rng([recipe.seed, 11, number // recipe.pair_batch])
            witness = _Witness(data)
            drawn = draw_condition(witness, config, recipe.frames, rng, context_drop=0.0)
            if drawn.captions != stored.captions:
                raise UserError(
                    f"the trajectories in {folder} were not drawn by this run's recipe and stories; run "
                    "'shotstream train ode' again with that folder removed"
                )
            self.stories.append(witness.story)
            self.captions.append(drawn.captions)
            self.of_shot.setdefault(len(drawn.captions) - 1, []).append(number)


class _Witness:
    """Stories that note which of them was asked for its captions."""

    def __init__(self, data: LatentStories) -> None:
        self._data = data
        self.story = -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def __len__(self) -> int:
        return len(self._data)

    def captions(self, story: int, shots: Sequence[int], wording: int | None) -> list[str]:
        self.story = story
        return self._data.captions(story, shots, wording)
