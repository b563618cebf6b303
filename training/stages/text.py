"""Stage ``text``: the text encoder learns to understand captions before any picture is made.

It reads a full caption (story and shot) and must say what the shot shows: who is there, in which colour, wearing and
doing what, where, when, how large. Captions cost a thousandth of pictures, so language and binding ("which of the two
is red") are learnt here and the transformer finds them ready. The heads are thrown away; the encoder stays frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shotstream.runtime.storyline import full_caption
from shotstream.runtime.text.tiny import TinyTextConfig, TinyTextEncoder
from shotstream.training.stages.optim import build_optimizer, take_step
from shotstream.training.stages.sheets import write_bars
from shotstream.training.stages.trainer import Ema, LoopConfig
from shotstream.training.world import Story, paraphrased, sample_held_out_story, sample_story
from shotstream.training.world.story import (
    ACCESSORIES,
    ACCESSORY_COLORS,
    ACTIONS,
    CAMERAS,
    COLORS,
    HELD_OUT_HEROES,
    PLACES,
    SIZES,
    SPECIES,
    TIMES,
)

HERO_SLOTS = {
    "role": ("absent", "elsewhere", "seen"),
    "order": ("first", "second"),
    "color": COLORS,
    "accessory": ACCESSORIES,
    "accessory_color": ACCESSORY_COLORS,
    "action": ACTIONS,
}
"""Asked once per species; a story has no two heroes of one species."""
SCENE_SLOTS = {"size": SIZES, "place": PLACES, "time": TIMES, "camera": CAMERAS}
NOT_ASKED = -1
_TEST_SEED = 70_000_000


@dataclass(frozen=True)
class TextRecipe:
    """Hyper-parameters. ``paraphrase`` is the share of freely worded captions; ``mask`` hides single words."""

    encoder: TinyTextConfig = TinyTextConfig()  # noqa: RUF009  (frozen)
    steps: int = 2400
    batch: int = 64
    lr: float = 1.5e-3
    adam_lr: float = 1.5e-3
    ema: float = 0.99
    clip: float = 1.0
    paraphrase: float = 0.75
    warmup: int = 50
    decay: float = 0.5
    seed: int = 4

    @property
    def loop(self) -> LoopConfig:
        """Loop settings."""
        return LoopConfig(self.steps, self.warmup, self.decay, save_every=250, log_every=50, sheet_every=1000)


def meanings(story: Story, shot: int, canonical: bool) -> dict[str, list[int]]:
    """What the caption of ``shot`` says, slot -> value indices: one per species for hero slots, one for scene slots.

    -1 where nothing is asked. Order is asked of canonical captions only: paraphrases name heroes in any order, and
    elsewhere the first one named stands on the left.
    """
    said = {slot: [NOT_ASKED] * len(SPECIES) for slot in HERO_SLOTS}
    said["role"] = [0] * len(SPECIES)
    now = story.shots[shot]
    for i, hero in enumerate(story.characters):
        column = SPECIES.index(hero.species)
        said["role"][column] = 2 if i in now.cast else 1
        said["color"][column] = COLORS.index(hero.color)
        said["accessory"][column] = ACCESSORIES.index(hero.accessory)
        if hero.accessory_color:
            said["accessory_color"][column] = ACCESSORY_COLORS.index(hero.accessory_color)
        if i in now.cast:
            said["action"][column] = ACTIONS.index(now.actions[now.cast.index(i)])
        if canonical and len(story.characters) > 1:
            said["order"][column] = i
    stage = story.background
    scene = (
        SIZES.index(now.size), PLACES.index(stage.place), TIMES.index(stage.time), CAMERAS.index(now.camera)
    )  # fmt: skip
    return said | {slot: [value] for slot, value in zip(SCENE_SLOTS, scene, strict=True)}


def draw_captions(
    rng: np.random.Generator, count: int, paraphrase: float, first_seed: int = 0, held_out: bool = False
) -> tuple[list[str], dict[str, Tensor]]:
    """``count`` full captions and their meanings, ``[count, 4]`` or ``[count, 1]`` per slot."""
    captions: list[str] = []
    rows: list[dict[str, list[int]]] = []
    sample = sample_held_out_story if held_out else sample_story
    while len(captions) < count:
        story = sample(first_seed + int(rng.integers(1 << 24)))
        free = rng.random() < paraphrase
        if free:
            whole, parts = paraphrased(story, int(rng.integers(1 << 30)))
        else:
            whole, parts = story.global_caption, [story.shot_caption(k) for k in range(len(story.shots))]
        for k in range(len(story.shots)):
            captions.append(full_caption(whole, k, parts[k]))
            rows.append(meanings(story, k, not free))
    slots = {slot: torch.tensor([row[slot] for row in rows[:count]]) for slot in rows[0]}
    return captions[:count], slots


class CaptionReader(nn.Module):
    """The heads: one attention over the caption's rows per species and one for the scene, then linear maps."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(SPECIES) + 1, dim) * 0.02)
        self.key = nn.Linear(dim, dim)
        self.hero = nn.ModuleDict({slot: nn.Linear(dim, len(values)) for slot, values in HERO_SLOTS.items()})
        self.scene = nn.ModuleDict({slot: nn.Linear(dim, len(values)) for slot, values in SCENE_SLOTS.items()})

    def forward(self, rows_NLD: Tensor) -> dict[str, Tensor]:
        """Logits by slot, ``[N, 4, values]`` or ``[N, 1, values]``."""
        scores = torch.einsum("qd,nld->nql", self.queries, self.key(rows_NLD))
        pooled = scores.masked_fill((rows_NLD == 0).all(-1)[:, None], -1e4).softmax(-1) @ rows_NLD
        heroes, scene = pooled[:, :-1], pooled[:, -1:]
        read = {slot: head(heroes) for slot, head in self.hero.items()}
        return read | {slot: head(scene) for slot, head in self.scene.items()}


def _never_drawn() -> Tensor:
    """True where training never draws a colour for a species, ``[4, 8]``.

    Such a colour is no candidate in training: nothing may teach the encoder that there are no green cats.
    """
    return torch.tensor([[(species, color) in HELD_OUT_HEROES for color in COLORS] for species in SPECIES])


def reading_loss(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Sum over slots of the mean cross entropy of what is asked."""
    logits = logits | {"color": logits["color"].masked_fill(_never_drawn().to(logits["color"].device), -1e4)}
    parts = [
        F.cross_entropy(logits[slot].flatten(0, 1).float(), target.flatten(), ignore_index=NOT_ASKED)
        for slot, target in targets.items()
        if (target != NOT_ASKED).any()
    ]
    return torch.stack(parts).sum()


class TextStage:
    """State and step of the text stage (see :class:`shotstream.training.stages.trainer.Stage`)."""

    name = "text"

    def __init__(self, recipe: TextRecipe, device: torch.device | str = "cpu") -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, torch.device(device)
        self.text = TinyTextEncoder(recipe.encoder).to(self.device)
        self.reader = CaptionReader(recipe.encoder.dim).to(self.device)
        self._modules: dict[str, nn.Module] = {"text": self.text, "reader": self.reader}
        named = [(f"{m}.{k}", p) for m, module in self._modules.items() for k, p in module.named_parameters()]
        self.ema = Ema(self._modules, recipe.ema)
        self.optimizer = build_optimizer(
            named, lr=recipe.lr, adam_lr=recipe.adam_lr,
            adam_only=lambda name: any(part in name for part in ("word.", "group.", "position", "reader.")),
        )  # fmt: skip

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, 31, index])
        captions, slots = draw_captions(rng, recipe.batch, recipe.paraphrase)
        words, groups = (ids.to(self.device) for ids in self.text.ids(captions))
        targets = {slot: target.to(self.device) for slot, target in slots.items()}
        with torch.autocast(self.device.type, torch.bfloat16):
            rows = self.text(words, groups)
            logits = self.reader(rows)
        loss = reading_loss(logits, targets)
        loss.backward()
        norm = take_step(self.optimizer, self._modules.values(), recipe.clip, lr_factor)
        self.ema.update(index)
        return {"loss": loss.item(), "grad_norm": norm}

    def work(self, index: int) -> None:
        """Not counted: text costs a thousandth of pictures."""

    @torch.no_grad()
    def accuracy(self, count: int = 400, paraphrase: float = 1.0, held_out: bool = True) -> dict[str, float]:
        """Share of right answers per slot on captions of unseen stories, in fresh wordings."""
        rng = np.random.default_rng([self.recipe.seed, 32])
        captions, targets = draw_captions(rng, count, paraphrase, _TEST_SEED, held_out)
        words, groups = (ids.to(self.device) for ids in self.text.ids(captions))
        logits = self.reader(self.text(words, groups))
        shares = {}
        for slot, target in targets.items():
            asked = target != NOT_ASKED
            if asked.any():
                right = logits[slot].argmax(-1).cpu()[asked] == target[asked]
                shares[slot] = float(right.float().mean())
        return shares

    def state_dict(self) -> dict[str, Any]:
        return {
            "text": self.text.state_dict(), "reader": self.reader.state_dict(), "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.text.load_state_dict(state["text"])
        self.reader.load_state_dict(state["reader"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])

    def sample_sheet(self, path: Path) -> None:
        """The accuracies as bars: canonical and free wording, held-out stories."""
        self.ema.swap()
        try:
            scores = {"canonical": self.accuracy(paraphrase=0.0), "free wording": self.accuracy(paraphrase=1.0)}
        finally:
            self.ema.swap()
        write_bars(scores, path)
