"""From mp4 files to a student: films of the story world are prepared, and all stages of the real model's recipe run."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from data_videos import HEIGHT, WIDTH, Filmed, decoded, describe, film
from PIL import Image
from safetensors.torch import load_file

from shotstream.runtime.cli import run
from shotstream.runtime.model.state_dicts import load_dit
from shotstream.training.data.video_latents import VideoLatents
from shotstream.training.weights import load_dit_weights

SHIPPED = Path(__file__).parents[2] / "training" / "recipes" / "wan-1.3b.yaml"
STAGES = ("teacher", "ode", "intra", "inter")
CAPTION = 14  # lines of a sheet above a row's frames

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _as_before() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = handlers, level


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Filmed]:
    """Two described films of three shots."""
    folder = tmp_path_factory.mktemp("films")
    made = [film(folder, seed, lengths) for seed, lengths in ((1, (12, 11, 10)), (2, (9, 14, 9)))]
    for each in made:
        describe(each)
    return made


@pytest.fixture(scope="module")
def prepared(films: list[Filmed], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    assert run(["train", "prepare", str(films[0].path.parent), "--out", str(out), "--frames", "9"]) == 0
    return out


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages, two steps each."""
    folder = tmp_path_factory.mktemp("run")
    values = yaml.safe_load(SHIPPED.read_text())
    values |= {"name": "shrunk", "videos": str(prepared)}
    sizes = {"dim": 32, "heads": 2, "ffn_dim": 64, "layers": 2, "channels": 32, "text_len": 48, "text_dim": 192}
    phases = [{"steps": 2, "batch": 2, "frames": 3, "context": 6}]
    changes: dict[str, dict[str, Any]] = {
        "teacher": {"model": sizes, "init": "random", "phases": phases},
        "ode": {"pairs": 2, "steps": 2},
        "intra": {"steps": 2, "ratio": 2},
        "inter": {"steps": 2, "ratio": 2, "shots": 3, "lora_rank": 4},
    }
    for stage, change in changes.items():
        values[stage] |= change | {"precision": "autocast"}
        if stage != "teacher":
            values[stage] |= {"batch": 2, "frames": 3}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert run(["train", "all", "--recipe", str(folder / "recipe.yaml"), "--out", str(folder)]) == 0
    return folder


def test_every_stage_took_its_steps_and_left_finite_weights(trained: Path) -> None:
    for stage in STAGES:
        lines = [json.loads(line) for line in (trained / stage / "log.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] == 2, stage
        assert all(math.isfinite(value) for line in lines for value in line.values()), stage
        assert (trained / stage / "checkpoint-000002").is_dir(), stage
        weights = load_file(trained / stage / "dit.safetensors")
        assert all(bool(value.isfinite().all()) for value in weights.values()), stage


def test_every_stage_changed_what_it_trains_and_nothing_else(trained: Path) -> None:
    before = load_file(trained / "teacher" / "dit.safetensors")
    for stage in STAGES[1:]:
        now = load_file(trained / stage / "dit.safetensors")
        moved = {key for key, value in now.items() if not torch.equal(value, before[key])}
        adapted = {key for key, value in now.items() if key.startswith("blocks.") and value.ndim == 2}
        if stage == "inter":  # adapters on the blocks' linear layers alone
            assert moved <= adapted
        assert len(moved & adapted) > len(adapted) / 2, stage
        before = now


def test_sheets_show_the_films_own_frames(trained: Path, prepared: Path, films: Sequence[Filmed]) -> None:
    data = VideoLatents(prepared)
    sheet = np.asarray(Image.open(trained / "teacher" / "sheet_000002.png").convert("RGB")).astype(float)
    for row, (story, shot) in enumerate([(0, 1), (1, 2)]):
        caption = data.captions(story, [shot], None)[0]
        of = next(each for each in films if caption.endswith(each.captions[shot]))
        top = row * (HEIGHT + CAPTION) + CAPTION
        shown = sheet[top : top + HEIGHT, 4 * WIDTH :]
        true = decoded(of.path)[of.intervals[shot][0] + 8].astype(float)
        assert shown.shape == true.shape
        assert np.abs(shown - true).mean() < 8, (story, shot)


def test_the_export_is_the_last_student_in_half_precision(trained: Path) -> None:
    student = load_dit_weights(trained / "inter" / "dit.safetensors", "inter")
    exported = load_dit(trained / "weights" / "dit.safetensors", student.config)
    for key, value in student.state_dict().items():
        assert torch.equal(exported[key].half(), value.half()), key
    assert (trained / "weights" / "sheet.png").read_bytes() == (trained / "inter" / "sheet_000002.png").read_bytes()
