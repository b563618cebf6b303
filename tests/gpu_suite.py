"""Everything that a GPU is needed for, in one command and one folder: correctness first, then all benchmarks.

``make gpu-suite`` runs it from a checkout. It needs no network and no installation: Python with torch, Triton, numpy,
safetensors and pytest. Steps run one after the other in processes of their own, so that one that breaks costs nothing
but itself; a step that does not fit into the minutes left is not begun, and the summary says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PYTHON_PATH = ROOT / "build" / "mypy"
"""Where `make links` shows the rooms under the names they are installed by."""
MODELS = ROOT / "tests" / "gpu_models.py"
REFERENCE = "bench-reference"
"""The step that needs a checkout of the public reference: `tests/gpu_reference.py` says how to get one."""


@dataclass(frozen=True)
class Step:
    """One process. seconds: what it may take; least: with fewer left it is not begun."""

    name: str
    arguments: tuple[str, ...]
    seconds: int
    least: int = 20


@dataclass(frozen=True)
class Outcome:
    """How a step went: passed, skipped, failed, out of time, not begun, or not asked for."""

    name: str
    state: str
    seconds: float
    last_lines: tuple[str, ...]


def steps(out: Path, reference: Path | None = None) -> tuple[Step, ...]:
    """All of it, what matters most first. reference: folder of the public reference's checkout, if there is one."""
    pytest = ("-m", "pytest", "-p", "no:cacheprovider", "-m", "gpu", "--tb=short", "-rs")
    models = (str(MODELS), "--out", str(out))
    beside = ("tests/gpu_reference.py", "--reference", str(reference), "--shots", "3", "--out", f"{out}/reference.json")
    return (
        Step(
            "test-kernels",
            (*pytest, *(f"tests/kernels/test_{name}_gpu.py" for name in ("fused", "attention", "ops"))),
            150,
        ),
        Step("test-engine", (*pytest, "tests/runtime/test_graph_gpu.py", "tests/runtime/test_decoder_gpu.py"), 120),
        Step("bench-wan", (*models, "--model", "wan-1.3b"), 240, 60),
        *([Step(REFERENCE, beside, 150, 60)] if reference else []),
        Step("bench-attention", ("-m", "shotstream.kernels.attention.bench", "--json", f"{out}/attention.json"), 90),
        Step("bench-fused", ("-m", "shotstream.kernels.fused.bench", "--json", f"{out}/fused.json"), 60),
        Step("bench-tiny", (*models, "--model", "tiny"), 60),
    )


def run(step: Step, out: Path, seconds_left: float) -> Outcome:
    """Run one step with its output in ``<name>.log``."""
    if seconds_left < step.least:
        return Outcome(step.name, "not begun", 0.0, ())
    begin = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(PYTHON_PATH)}
    log = out / f"{step.name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *step.arguments], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        try:
            state = "passed" if process.wait(min(step.seconds, seconds_left)) == 0 else "failed"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            state = "out of time"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if state == "passed" and lines and " skipped" in lines[-1] and " passed" not in lines[-1]:
        state = "skipped"
    return Outcome(step.name, state, round(time.monotonic() - begin, 1), tuple(lines[-6:]))


def summary(outcomes: Sequence[Outcome], facts: dict[str, Any], out: Path) -> str:
    """The folder's table of contents."""
    lines = ["# GPU suite", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += ["| step | state | seconds |", "|---|---|---|"]
    lines += [f"| {each.name} | {each.state} | {each.seconds} |" for each in outcomes]
    for path in sorted(out.glob("*.txt")):
        lines += ["", f"## {path.stem}", "", "```", path.read_text().rstrip(), "```"]
    for each in outcomes:
        if each.state in ("failed", "out of time"):
            lines += ["", f"## {each.name}: {each.state}", "", "```", *each.last_lines, "```"]
    return "\n".join(lines) + "\n"


def facts() -> dict[str, Any]:
    """Machine and commit."""
    code = (
        "import json, torch; from shotstream.runtime.bench.machine import machine_facts, read_gpu; "
        "from dataclasses import asdict; d = torch.device('cuda' if torch.cuda.is_available() else 'cpu'); "
        "print(json.dumps(asdict(machine_facts(d, read_gpu(d), None))))"
    )
    environment = {**os.environ, "PYTHONPATH": str(PYTHON_PATH)}
    asked = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    if asked.returncode:
        raise SystemExit(f"This Python cannot import ShotStream's rooms: {asked.stderr.strip().splitlines()[-1]}")
    return json.loads(asked.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> int:
    """Run it; the exit code is 1 if anything failed or found no time."""
    parser = argparse.ArgumentParser(prog="make gpu-suite", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu-suite", help="folder for all results")
    parser.add_argument("--minutes", type=float, default=9.0, help="no step begins or goes on after that")
    parser.add_argument("--only", default="", help="only steps with this in their name")
    parser.add_argument(
        "--reference", type=Path, help="checkout of the public reference, to measure its loop beside ours"
    )
    parser.add_argument("--anyway", action="store_true", help="also without a GPU: what needs one is skipped or fails")
    given = parser.parse_args(arguments)
    begin = time.monotonic()
    found = facts()
    if found["device"] == "cpu" and not given.anyway:
        raise SystemExit("There is no GPU here, or this torch was built without CUDA; see --anyway.")
    given.out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for step in steps(given.out.resolve(), given.reference and given.reference.resolve()):
        if given.only in step.name:
            outcomes.append(run(step, given.out, given.minutes * 60 - (time.monotonic() - begin)))
            sys.stdout.write(f"{outcomes[-1].name}: {outcomes[-1].state}, {outcomes[-1].seconds} s\n")
            sys.stdout.flush()
    if given.reference is None and given.only in REFERENCE:
        outcomes.append(Outcome(REFERENCE, "not asked for", 0.0, ()))
        sys.stdout.write(f"{REFERENCE}: not asked for, it wants --reference FOLDER\n")
    text = summary(outcomes, found, given.out)
    (given.out / "summary.md").write_text(text)
    (given.out / "outcomes.json").write_text(json.dumps([asdict(each) for each in outcomes], indent=1) + "\n")
    sys.stdout.write(f"\n{text}")
    return 0 if all(each.state in ("passed", "not asked for") for each in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
