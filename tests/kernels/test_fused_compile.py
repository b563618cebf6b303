"""Every specialisation of the small kernels compiles without a GPU and spills nothing.

In a process of its own, since Triton's interpreter, which the other tests run in, compiles nothing. The default run
takes one old and one new architecture and a few kernels; `pytest -m slow` takes all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

CODE = """
import json, sys
from dataclasses import asdict
from shotstream.kernels import aot
names, architectures = json.loads(sys.argv[1])
specs = aot.collect(["shotstream.kernels.fused.specs:specs"])
assert all(any(name in spec.name for spec in specs) for name in names), "a kernel of that name is gone"
chosen = [spec for spec in specs if not names or any(name in spec.name for name in names)]
rows = aot.compile_all(chosen, architectures)
print(json.dumps([{**asdict(row), "faults": row.faults()} for row in rows]))
"""


def compiled(names: list[str], architectures: list[int]) -> list[dict]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"
    command = [sys.executable, "-c", CODE, json.dumps([names, architectures])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def faults(rows: list[dict]) -> list[str]:
    return [f"{row['name']} on sm_{row['arch']}: {fault}" for row in rows for fault in row["faults"]]


def test_the_largest_kernels_compile_for_the_oldest_and_for_hopper() -> None:
    rows = compiled(["qk_prologue bf16 to bf16 1536 ring", "gated_residual_norm_fp8 bf16 1536 gated mod"], [80, 90])
    assert {(row["name"].split()[0], row["arch"]) for row in rows} == {
        ("fused/qk_prologue", 80),
        ("fused/qk_prologue", 90),
        ("fused/gated_residual_norm_fp8", 90),
    }
    assert not faults(rows)
    for row in rows:
        assert row["registers"] <= 96, "a block of a row is to leave room for others beside it"
        assert row["shared"] <= 8 << 10


def test_noise_in_float64_keeps_nothing_on_the_stack() -> None:
    rows = compiled(["draw_normal bf16"], [80, 90, 120])
    assert [(row["arch"], row["stack"]) for row in rows] == [(80, 0), (90, 0), (120, 0)]
    assert not faults(rows)


@pytest.mark.slow
def test_every_specialisation_compiles_for_every_architecture() -> None:
    rows = compiled([], [80, 86, 89, 90, 100, 120])
    assert len(rows) > 100
    assert not faults(rows)
