"""The GPU suite runs on a bare machine: with torch, Triton, numpy, safetensors and pytest, and nothing else of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HIDDEN = """
import sys

class Bare:
    names = set("typer click rich msgspec yaml av aiohttp zmq diffusers transformers huggingface_hub peft "
                "PIL matplotlib tqdm hypothesis".split())
    def __init__(self, others):
        self.others = others
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            return None
        found = (other.find_spec(name, path, target) for other in self.others if hasattr(other, "find_spec"))
        return next((spec for spec in found if spec is not None), None)

sys.meta_path[:] = [Bare(list(sys.meta_path))]
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment whose Python finds none of the packages that a GPU machine may lack."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(HIDDEN)
    subprocess.run(["make", "-s", "links"], cwd=ROOT, check=True)
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'bare'}:{ROOT / 'build' / 'mypy'}", "OMP_NUM_THREADS": "1"}


def call(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_a_model_is_measured_without_our_other_dependencies(bare: dict[str, str], tmp_path: Path) -> None:
    arguments = ["--model", "tiny", "--device", "cpu", "--shots", "1", "--chunks", "1", "--out", str(tmp_path)]
    done = call(["tests/gpu_models.py", *arguments, "--variant", "graph-"], bare)
    assert "graph-triton: not here: " in done.stdout, done.stderr
    assert done.returncode == 1  # nothing could be measured
    done = call(["tests/gpu_models.py", *arguments, "--variant", "eager"], bare)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "bench-tiny-eager.json").read_text())
    assert len(report["samples"]) == 1
    assert "eager" in (tmp_path / "bench-tiny.txt").read_text()


@pytest.mark.parametrize("files", ["tests/runtime/test_graph_gpu.py", "tests/kernels"])
def test_its_tests_can_be_collected_there(bare: dict[str, str], files: str) -> None:
    wanted = [files] if files.endswith(".py") else [str(path) for path in (ROOT / files).glob("test_*_gpu.py")]
    done = call(["-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", "-q", "--collect-only", *wanted], bare)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error" not in done.stdout.lower()


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = call(["tests/gpu_suite.py", "--out", str(tmp_path)], environment)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("There is no GPU here, or this torch was built without CUDA; see --anyway.")


def test_a_step_that_breaks_or_takes_too_long_is_told_and_the_others_run(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        import gpu_suite
    finally:
        sys.path.pop(0)
    breaks = gpu_suite.Step("breaks", ("-c", "print('oh no'); raise SystemExit(3)"), 60)
    sleeps = gpu_suite.Step("sleeps", ("-c", "import time; time.sleep(60)"), 1)
    late = gpu_suite.Step("late", ("-c", "pass"), 60)
    idle = gpu_suite.Step("idle", ("-c", "print('3 skipped in 0.1s')"), 60)
    given = ((breaks, 99), (sleeps, 99), (late, 5), (idle, 99))
    outcomes = [gpu_suite.run(step, tmp_path, left) for step, left in given]
    assert [each.state for each in outcomes] == ["failed", "out of time", "not begun", "skipped"]
    (tmp_path / "bench-tiny.txt").write_text("variant  fps")
    text = gpu_suite.summary(outcomes, {"device": "none"}, tmp_path)
    for expected in (
        "| breaks | failed |",
        "| sleeps | out of time |",
        "| late | not begun |",
        "oh no",
        "variant  fps",
    ):
        assert expected in text
