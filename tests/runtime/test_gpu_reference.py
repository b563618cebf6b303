"""The public reference's own loop runs through our script, and makes the latents that our engines make.

That comparison needs a checkout of the reference in ``out/reference`` (which git ignores) and is skipped without:
``git clone https://github.com/KlingAIResearch/ShotStream out/reference``.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "out" / "reference"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    return importlib.import_module("gpu_reference")


def call(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what the script puts in place of packages would stay in this one."""
    arguments = ["tests/gpu_reference.py", "--reference", str(folder), "--toy", "--device", "cpu", *options]
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="there is no checkout of the reference in out/reference")
def test_our_engines_make_the_latents_of_the_references_own_loop(tmp_path: Path) -> None:
    done = call(REFERENCE, "--shots", "3", "--out", str(tmp_path / "reference.json"))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "reference.json").read_text())
    reference, *ours = report["results"]
    assert reference["name"] == "reference"
    assert [each["name"] for each in ours] == ["eager", "graph"]
    assert all(each["differs"] < 1e-5 for each in ours)
    assert [len(reference[times]) for times in ("chunk_ms", "denoise_ms", "clean_ms")] == [7, 7, 7]
    assert min(*reference["chunk_ms"], *reference["denoise_ms"], *reference["clean_ms"], reference["context_ms"]) > 0
    assert reference["shot_s"] * 1000 > sum(reference["denoise_ms"]) + sum(reference["clean_ms"])
    assert "scaled_dot_product_attention" in (tmp_path / "reference.txt").read_text()


def test_a_folder_that_is_not_the_reference_is_one_sentence(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        assert script.main(["--reference", str(folder), "--toy", "--device", "cpu"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"{folder} is not a checkout of the reference, it has no pipeline/")
        assert said.count("\n") == 1


def test_another_version_of_it_is_one_sentence(script: ModuleType, tmp_path: Path) -> None:
    for name in script.FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("from model.base import Gone\n")
    done = call(tmp_path)
    assert done.returncode == 2
    assert "cannot be imported" in done.stderr
    assert done.stderr.count("\n") == 1


def test_axes_are_ordered_as_the_loop_asks(script: ModuleType) -> None:
    x = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    rearrange = importlib.import_module("gpu_reference_loop").rearrange
    assert torch.equal(rearrange(x, "f h w c -> f c 1 h w"), x.permute(0, 3, 1, 2).unsqueeze(2))
    assert torch.equal(rearrange(x[:, None], "f 1 c h w -> 1 f c h w"), x[None])


def test_the_suite_runs_it_only_when_given_a_folder(script: ModuleType) -> None:
    steps = importlib.import_module("gpu_suite").steps
    without, given = ({step.name for step in steps(Path("out"), folder)} for folder in (None, Path("reference")))
    assert given - without == {"bench-reference"}
