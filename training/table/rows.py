"""A row from weights to figures: trained, played, read, and kept as json, so that no finished row is made twice."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.data.latents import LatentStories
from shotstream.training.evaluation.evaluate import evaluation_stories, measure
from shotstream.training.evaluation.sources import Frames
from shotstream.training.recipe import Recipe
from shotstream.training.stages.sheets import write_sheet
from shotstream.training.table.bidirectional import Sampler
from shotstream.training.table.methods import METHODS
from shotstream.training.table.pairs import Trajectories
from shotstream.training.table.play import Player
from shotstream.training.table.train import Parts, TrainSettings, train
from shotstream.training.weights import load_dit_weights, load_text_weights, save_weights, trained_codec
from shotstream.training.world import Story

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
"""Called with what is being done now."""


@dataclass(frozen=True)
class TableSettings:
    """The same for every row. stories: half of them held out. seed: of the stories and of the bootstrap."""

    train: TrainSettings = field(default_factory=TrainSettings)
    sampler: Sampler = field(default_factory=Sampler)
    stories: int = 12
    seed: int = 0


def load_parts(run: Path, recipe: Recipe, device: str) -> Parts:
    """What all rows start from; UserError names the stage that a run still lacks."""
    for stage in ("teacher", "ode"):
        if not (run / stage / "dit.safetensors").is_file():
            raise UserError(f"{run} holds no weights of {stage}; run 'shotstream train {stage} --out {run}' first")
    text = load_text_weights(run / "text" / "text.safetensors").to(device)
    codec = TinyVAE.load(trained_codec(run))
    vae = TinyVAE(replace(codec.config, steady=recipe.steady))  # as it is exported
    vae.load_state_dict(codec.state_dict())
    vae.eval().requires_grad_(False).to(device)
    data = LatentStories(run / "latents", recipe.latents)
    config = load_dit_weights(run / "ode" / "dit.safetensors", "ode").config
    pairs = Trajectories(run / "ode" / "pairs", recipe.ode, data, config)
    return Parts(run, text, vae, data, pairs, config, torch.device(device))


def result_file(out: Path, name: str) -> Path:
    """Where a row's figures lie."""
    return out / f"{name}.json"


def make_row(name: str, parts: Parts, settings: TableSettings, out: Path, progress: Progress) -> None:
    """Train, play and read one row; writes NAME.json and a sheet, NAME.png, into `out`.

    The trained weights stay in NAME.safetensors, with NAME.cost.json; a row that was killed behind its training goes
    on from them.
    """
    model, cost = _trained(name, parts, settings, out, progress)
    player = _player(name, model, parts, settings)
    stories = evaluation_stories(settings.stories, settings.seed)
    progress(f"{name}: on the clock")
    speed = player.speed(stories[0])
    film: list[Frames] = []

    def keep(source: str, story: Story, shots: list[Frames]) -> None:
        if story == stories[0]:
            film.extend(shots)

    report = measure(
        {name: player}, stories, seed=settings.seed, observer=keep,
        progress=lambda done, of: progress(f"{name}: story {done} of {of}"),
    )  # fmt: skip
    _write_film(stories[0], film, out / f"{name}.png")
    result: dict[str, Any] = {
        "row": name,
        "settings": asdict(settings),
        "cost": cost,
        "speed": asdict(speed),
        "pooled": {k: asdict(v) for k, v in report.pooled(name).scores.items()},
        "report": report.as_dict(),
    }
    _write_json(result, result_file(out, name))


def time_row(name: str, parts: Parts, settings: TableSettings, out: Path, progress: Progress) -> None:
    """Measure a finished row's speed again; rows are comparable when this is done for all, one after the other."""
    progress(f"{name}: on the clock")
    model, _ = _trained(name, parts, settings, out, progress)
    speed = _player(name, model, parts, settings).speed(evaluation_stories(settings.stories, settings.seed)[0])
    result = finished(out, [name], settings)[name]
    _write_json(result | {"speed": asdict(speed)}, result_file(out, name))


def _player(name: str, model: Transformer, parts: Parts, settings: TableSettings) -> Player:
    plan = METHODS[name].plan
    return Player(plan, model, parts.text, parts.vae, parts.data, settings.train.frames, settings.sampler)


def _trained(
    name: str, parts: Parts, settings: TableSettings, out: Path, progress: Progress
) -> tuple[Transformer, dict[str, Any]]:
    """The row's model and what its training cost: trained now, or found from before."""
    weights, note = out / f"{name}.safetensors", out / f"{name}.cost.json"
    if weights.is_file() and note.is_file():
        cost = json.loads(note.read_text(encoding="utf-8"))
        if cost["settings"] == _plain(settings.train):
            return parts.ready(load_dit_weights(weights, f"table {name}")), cost

    def told(share: float, figures: dict[str, float]) -> None:
        shown = "  ".join(f"{k} {v:.4g}" for k, v in figures.items())
        progress(f"{name}: {100 * share:.0f} % of {settings.train.tflop:g} TFLOP, {shown}")

    begin = time.monotonic()
    model, budget = train(METHODS[name], parts, settings.train, told)
    cost = {
        "settings": _plain(settings.train),
        "tflop": budget.spent / 1e12,
        "updates": budget.updates,
        "seconds": time.monotonic() - begin,
    }
    save_weights(model, model.config.to_json(), weights)
    _write_json(cost, note)
    return model, cost


def finished(out: Path, names: Sequence[str], settings: TableSettings) -> dict[str, dict[str, Any]]:
    """Results that are there, by row; UserError for those that were made under other settings."""
    found = {}
    wanted = _plain(settings)
    for name in names:
        path = result_file(out, name)
        if path.is_file():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
            if found[name]["settings"] != wanted:
                raise UserError(
                    f"{path} was made under other settings; give the same ones, another --out, or remove the file"
                )
    return found


def _write_film(story: Story, shots: Sequence[Frames], path: Path) -> None:
    """First, middle and last frame of every shot."""
    rows = [
        (story.shot_caption(k), [shot[0], shot[len(shot) // 2], shot[-1]]) for k, shot in enumerate(shots)
    ]  # fmt: skip
    write_sheet(rows, path)


def _plain(settings: object) -> Any:
    """Settings as json holds them."""
    return json.loads(json.dumps(asdict(settings)))  # type: ignore[call-overload]  # a dataclass of this room


def _write_json(value: dict[str, Any], path: Path) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    scratch.replace(path)
