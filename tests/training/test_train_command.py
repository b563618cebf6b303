"""`shotstream train` as a user meets it: the real model's recipe, shrunk, from prepared videos to merged weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import Shell
from safetensors.torch import load_file

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import ModelRequest
from shotstream.runtime.presets import hash_weights
from shotstream.runtime.runtime import assemble_registry
from shotstream.training.data.prepared import STORIES, DatasetInfo, PreparedShot, PreparedVideo, claim, write_video
from shotstream.training.recipe import STAGES, load_recipe
from shotstream.training.train_command import STAGE_HELP
from shotstream.training.videos import load_codec, open_videos

SHIPPED = Path(__file__).parents[2] / "training" / "recipes" / "wan-1.3b.yaml"
SIZES: dict[str, Any] = {
    "dim": 32,
    "heads": 2,
    "ffn_dim": 64,
    "layers": 2,
    "channels": 32,
    "text_len": 48,
    "text_dim": 192,
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared video of three shots, all noise."""
    out = tmp_path_factory.mktemp("prepared")
    request = ModelRequest(torch.device("cpu"), torch.float32, "default")
    codec = hash_weights({"codec": assemble_registry().factory("decoder", "tiny-vae")(request)})
    claim(out, DatasetInfo("tiny", {"codec": codec}, (32, 10, 16), (48, 192), 16, 9, 6, "model", "stretch"))
    g = torch.Generator().manual_seed(0)
    shots, tensors = [], {}
    for k in range(3):
        shots.append(PreparedShot(f"video\nshot {k}", (21 * k, 21 * k + 21), 21, tuple(range(21)), 6))
        tensors[f"clip.{k}"] = torch.randn(6, 32, 10, 16, generator=g).half()
        tensors[f"singles.{k}"] = torch.randn(21, 32, 10, 16, generator=g).half()
        tensors[f"text.{k}"] = torch.randn(5 + k, 192, generator=g)
    header = PreparedVideo("video", "f", "s", 16.0, (tuple(shots),))
    write_video(out / STORIES / "video.safetensors", tensors, header)
    return out


def small(folder: Path, videos: Path, **changes: Any) -> str:
    """The shipped recipe of the real model with few layers and steps, as a file; `changes` go into every stage."""
    values = yaml.safe_load(SHIPPED.read_text())
    values |= {"name": "small", "videos": str(videos)}
    values["teacher"] |= {"model": SIZES, "init": "random"}
    values["teacher"]["phases"] = [{"steps": 3, "batch": 2, "frames": 3, "context": 6}]
    values["ode"] |= {"pairs": 2, "steps": 2, "pair_batch": 1}
    values["intra"] |= {"steps": 2, "ratio": 2}
    values["inter"] |= {"steps": 1, "ratio": 2, "shots": 2, "lora_rank": 4}
    for stage in ("ode", "intra", "inter"):
        values[stage] |= {"batch": 2, "frames": 3}
    for stage in ("teacher", "ode", "intra", "inter"):
        values[stage] |= changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_the_group_has_every_stage_and_more(shell: Shell) -> None:
    assert tuple(STAGE_HELP) == (*STAGES, "all")
    code, out, _ = shell("train", "--help")
    assert code == 0
    assert {*STAGE_HELP, "merge", "prepare"} <= {line.split()[0] for line in out.splitlines() if line.startswith("  ")}


def test_explain_prints_a_recipe_that_can_be_read_back(shell: Shell, tmp_path: Path, videos: Path) -> None:
    recipe = small(tmp_path, videos)
    code, out, _ = shell("train", "all", "--recipe", recipe, "--explain", "--processes", "2")
    assert code == 0
    assert yaml.safe_load(out)["intra"]["micro_batch"] == 1
    for words in ("stage teacher", "batch 2 = 2 processes x 1 rounds x 1 samples", "(sharded)", "FLOP a step"):
        assert words in out
    again = tmp_path / "again.yaml"
    again.write_text(out)
    assert load_recipe(str(again)) == load_recipe(recipe)


@pytest.mark.slow
def test_all_stages_run_on_prepared_videos_and_adapters_merge(shell: Shell, tmp_path: Path, videos: Path) -> None:
    recipe, out = small(tmp_path, videos, precision="float32"), tmp_path / "run"
    code, _, said = shell("train", "all", "--recipe", recipe, "--out", str(out), "--steps", "2")
    assert code == 0
    assert "stage teacher is not finished; the same command goes on with it" in said
    code, told, said = shell("train", "all", "--recipe", recipe, "--out", str(out))
    assert (code, told.strip()) == (0, str(out)), said
    lines = [json.loads(line) for line in (out / "teacher" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3]
    assert all(line["tokens_per_s"] > 0 and line["tflops"] > 0 for line in lines)
    for stage in ("teacher", "ode", "intra", "inter"):
        assert list((out / stage).glob("sheet_*.png")), stage
    assert [p.name for p in (out / "weights").glob("*.safetensors")] == ["dit.safetensors"]
    merged = tmp_path / "merged.safetensors"
    base, adapters = str(out / "intra" / "dit.safetensors"), str(out / "inter" / "lora.safetensors")
    code, told, said = shell("train", "merge", base, adapters, "--out", str(merged))
    assert (code, told.strip()) == (0, str(merged)), said
    ours, theirs = load_file(merged), load_file(out / "inter" / "dit.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not all(torch.equal(ours[key], value) for key, value in load_file(base).items())


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        ("vae", {}, "trains on videos, which have no stage vae"),
        ("ode", {}, "run 'shotstream train teacher' first"),
        ("teacher", {"videos": "nowhere"}, "run 'shotstream train prepare' first"),
        ("teacher", {"videos": ""}, "add videos: FOLDER"),
        ("teacher", {"source": "film"}, "source is world or videos"),
        ("teacher", {"codec": "random"}, "encoded with another codec"),
        ("teacher", {"precision": "fsdp-bf16"}, "torchrun --nproc-per-node 1"),
        ("teacher", {"micro_batch": -1}, "micro_batch is a number of samples"),
        ("teacher", {"init": "nothing.safetensors"}, "nothing.safetensors"),
        ("teacher", {"model": SIZES | {"channels": 16}}, "a model with channels 32, the recipe's has 16"),
    ],
)
def test_mistakes_are_one_sentence(
    shell: Shell, tmp_path: Path, videos: Path, stage: str, change: dict[str, Any], words: str
) -> None:
    path = Path(small(tmp_path, videos, precision="float32"))
    values = yaml.safe_load(path.read_text())
    for key, value in change.items():
        (values if key in ("source", "videos", "codec") else values["teacher"])[key] = value
    path.write_text(yaml.safe_dump(values))
    code, _, said = shell("train", stage, "--recipe", str(path), "--out", str(tmp_path / "run"))
    assert code == 2
    assert words in said
    assert said.count("error:") == 1
    assert "Traceback" not in said


def test_videos_of_another_codec_or_model_are_refused(videos: Path) -> None:
    info = open_videos(videos, DiTConfig(**SIZES)).info
    with pytest.raises(UserError, match="with text_len 48, the recipe's has 5"):
        open_videos(videos, DiTConfig(**SIZES | {"text_len": 5}))
    with pytest.raises(UserError, match="encoded with another codec"):
        load_codec(info, "random", torch.device("cpu"))


def torchrun(size: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command on several processes, as torchrun starts them."""
    words = ["-m", "torch.distributed.run", "--nproc-per-node", str(size), "--no-python"]
    command = [sys.executable, *words, str(Path(sys.executable).with_name("shotstream")), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800, check=False)


@pytest.mark.slow
def test_two_processes_train_the_shrunk_model_as_the_real_one_would(tmp_path: Path, videos: Path) -> None:
    recipe, out = small(tmp_path, videos), tmp_path / "run"
    done = torchrun(2, "train", "all", "--recipe", recipe, "--out", str(out))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == str(out)
    assert (out / "weights" / "dit.safetensors").exists()
    assert len(list((out / "intra").glob("checkpoint-*/*.safetensors"))) == 2
    done = torchrun(2, "train", "all", "--recipe", "none.yaml", "--out", str(out))
    assert done.returncode != 0
    assert done.stderr.count("error: recipe 'none.yaml' is neither a file") == 1


@pytest.mark.gpu
def test_a_gpu_trains_the_shrunk_model(tmp_path: Path, videos: Path) -> None:
    recipe, out = small(tmp_path, videos), tmp_path / "run"
    done = torchrun(1, "train", "all", "--recipe", recipe, "--out", str(out), "--device", "cuda")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "weights" / "dit.safetensors").exists()
    whole = small(tmp_path, videos, precision="float32")
    done = torchrun(1, "train", "teacher", "--recipe", whole, "--out", str(tmp_path / "b"), "--device", "cuda")
    assert done.returncode == 0, done.stderr[-2000:]
