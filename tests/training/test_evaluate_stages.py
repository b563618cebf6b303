"""The stages of a run as sources of frames, their table and their sheet, with miniature random weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.decoders.tiny_vae import TinyVAE, TinyVAEConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.presets import TINY_LATENT
from shotstream.runtime.text.tiny import TinyTextConfig, TinyTextEncoder
from shotstream.training.evaluation import command as evaluate_command
from shotstream.training.evaluation import evaluate as evaluation
from shotstream.training.evaluation import teacher as evaluate_teacher
from shotstream.training.evaluation.evaluate import drift_stories, evaluation_stories
from shotstream.training.evaluation.sources import Frames
from shotstream.training.evaluation.stage_table import RunChoice
from shotstream.training.evaluation.teacher import TeacherPlayer, TeacherSettings
from shotstream.training.oracle.reader import Reader, Reading
from shotstream.training.oracle.slots import FRAME_SLOTS, HERO_SLOTS
from shotstream.training.weights import save_weights
from shotstream.training.world.story import SPECIES

STORIES = evaluation_stories(4)
LONG = drift_stories(1)[0]
DIT = DiTConfig(dim=32, heads=2, ffn_dim=64, layers=1, channels=4, text_len=48, text_dim=32, freq_dim=32)
VAE = TinyVAEConfig(latent_channels=4, encoder_channels=(4, 4, 8, 8), decoder_channels=(8, 8, 8),
                    decoder_blocks=(1, 1, 1))  # fmt: skip
TEXT = TinyTextConfig(dim=32, heads=2, layers=1, buckets=64)


@pytest.fixture(autouse=True)
def everything_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shot can show is the oracle's knowledge, and tested there."""
    monkeypatch.setattr(evaluation, "unseen", lambda story, k, frames: frozenset())


def miniature() -> tuple[Transformer, TinyTextEncoder, TinyVAE]:
    torch.manual_seed(0)
    return Transformer(DIT), TinyTextEncoder(TEXT), TinyVAE(VAE)


def teacher(**settings: Any) -> TeacherPlayer:
    return TeacherPlayer(*miniature(), TeacherSettings(**settings), latent_size=(2, 4))


def test_the_teacher_plays_stories_the_same_alone_and_together() -> None:
    stories = [dataclasses.replace(s, shots=s.shots[:3]) for s in STORIES[:3]]
    together = list(teacher(steps=2, frames=3, batch=2)(stories))
    alone = list(teacher(steps=2, frames=3, batch=1)(stories))
    assert [[shot.shape for shot in film] for film in together] == [[(9, 32, 64, 3)] * 3] * 3
    for one, other in zip(together, alone, strict=True):
        assert np.abs(np.stack(one).astype(int) - np.stack(other).astype(int)).max() <= 2
    assert not np.array_equal(together[0][0], together[1][0])
    other_seed = next(teacher(steps=2, frames=3, batch=1, seed=1)(stories))
    assert not np.array_equal(other_seed[0], alone[0][0])


def test_the_teacher_stands_behind_its_own_shots(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    sample = evaluate_teacher.sample_teacher

    def spy(model: Any, schedule: Any, noise: Any, conditioning: Any, negative: Any, **options: Any) -> Any:
        made = sample(model, schedule, noise, conditioning, negative, **options)
        seen.append((conditioning, made.x0_BFCHW, options))
        return made

    monkeypatch.setattr(evaluate_teacher, "sample_teacher", spy)
    player = teacher(steps=1, frames=3, guidance=2.0)
    next(player([LONG]))
    assert len(seen) == 10
    flags = [conditioning.flags_BF[0].tolist() for conditioning, _, _ in seen]
    assert flags[0] == [0] * 6 + [1] * 3
    assert flags[2] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert flags[9] == [3, 4, 5, 6, 7, 8, 9, 9, 9]
    assert seen[0][0].context_BFCHW.abs().max() == 0
    video = player.vae.decode(seen[0][1])
    with torch.no_grad():
        own = player.vae.encode_frames(video[:, 4])
    torch.testing.assert_close(seen[2][0].context_BFCHW[:, 1], own)
    assert seen[2][2] == {"steps": 1, "guidance": 2.0}
    captions = [f"{LONG.global_caption}shot{k}:{LONG.shot_caption(k)}" for k in range(3)]
    torch.testing.assert_close(seen[2][0].captions_NLD, player.text.encode(captions))
    assert seen[2][0].caption_index_BF[0].tolist() == flags[2]


# ------------------------------------------------------------------------------------ the command
@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run's folder with miniature random weights of two stages."""
    dit, text, vae = miniature()
    for stage in ("teacher", "ode"):
        save_weights(dit, DIT.to_json(), tmp_path / "run" / stage / "dit.safetensors")
    save_weights(text, TEXT.to_json(), tmp_path / "run" / "text" / "text.safetensors")
    (tmp_path / "run" / "vae").mkdir()
    vae.save(tmp_path / "run" / "vae" / "vae.safetensors")
    return tmp_path / "run"


def command(*arguments: str) -> Any:
    app = typer.Typer()
    evaluate_command.mount(app)
    return CliRunner().invoke(app, list(arguments))


class _Constant(Reader):
    def __init__(self) -> None:
        self.note = {}

    def read_shot(self, frames_FHWC: Frames, samples: int = 5) -> Reading:
        heroes = {slot: np.ones((len(SPECIES), len(values)), np.float32) for slot, values in HERO_SLOTS.items()}
        scene = {slot: np.ones(len(values), np.float32) for slot, values in FRAME_SLOTS.items()}
        return Reading(np.ones(len(SPECIES), np.float32), heroes, scene)

    def read_frames(self, frames_FHWC: Frames) -> dict[str, torch.Tensor]:
        n, four = len(frames_FHWC), len(SPECIES)
        heroes = {slot: torch.ones(n, four, len(values)) for slot, values in HERO_SLOTS.items()}
        scene = {slot: torch.ones(n, len(values)) for slot, values in FRAME_SLOTS.items()}
        return {"present": torch.ones(n, four), **heroes, **scene, "action": heroes["action"][0]}


def test_a_run_is_compared_stage_by_stage(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "load_reader", _Constant)
    sheet, json_file = trained / "out" / "sheet.png", trained / "out" / "figures.json"
    result = command(
        "--run", str(trained), "--stories", "2", "--chunks", "1", "--teacher-steps", "1", "--no-codec", "--sheet",
        str(sheet), "--json", str(json_file), "--sheet-story", "1", "--teacher-guidance", "2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output + repr(result.exception)
    head = result.stdout.splitlines()[0].split()
    assert head == ["teacher", "ode"]
    assert "student - teacher" in result.stdout
    plain = json.loads(json_file.read_text())
    assert {row["source"] for row in plain["rows"]} == {"renders", "teacher", "ode"}
    assert [(c["name"], c["before"], c["after"]) for c in plain["changes"]] == [("stage", "teacher", "ode")]
    assert {g["name"] for g in plain["goals"]} >= {"place", "background kept"}
    assert [axes["source"] for axes in plain["axes"]] == ["renders", "teacher", "ode"]
    assert "transition control: F1" in result.stdout
    with Image.open(sheet) as picture:
        assert picture.width == 5 * (2 * TINY_LATENT[1] * 16 + 4) - 4
        assert picture.height > 3 * TINY_LATENT[0] * 16


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--stages", "ode"], "--run"),
        (["--run", "nowhere"], "no run at nowhere"),
        (["--run", "{run}", "--stages", "last"], "no stage 'last'"),
        (["--run", "{run}", "--stages", "teacher,inter"], "no weights of inter"),
        (["--run", "{run}", "--sheet", "{run}/s.png", "--sheet-story", "9", "--stories", "4"], "counts from 0"),
    ],
)
def test_a_wrong_wish_is_answered_with_one_sentence(trained: Path, arguments: list[str], says: str) -> None:
    result = command(*(a.format(run=trained) for a in arguments))
    assert isinstance(result.exception, UserError), result.output
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)


def test_a_run_without_its_text_encoder_or_stages_says_what_to_train(trained: Path) -> None:
    assert RunChoice(trained).found() == ["teacher", "ode"]
    (trained / "text" / "text.safetensors").unlink()
    with pytest.raises(UserError, match="train text"):
        RunChoice(trained).found()
    (trained / "empty").mkdir()
    with pytest.raises(UserError, match="no trained stage"):
        RunChoice(trained / "empty").found()
