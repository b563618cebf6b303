"""What the kernels room may lean on, and that it is measured at the runtime's sizes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from shotstream.kernels.attention import tune
from shotstream.kernels.attention.bench_calls import shapes_of
from shotstream.kernels.sizes import MODELS, WAN
from shotstream.runtime.presets import DEFAULT_PLUGINS
from shotstream.runtime.runtime import assemble_registry

ROOT = Path(__file__).resolve().parents[2]
BARE = """
import sys
import torch, triton
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("yaml", "msgspec", "jinja2", "typer", "rich", "av", "PIL", "zmq"):
            raise ImportError(f"this machine has no {name}")
sys.meta_path.insert(0, Refuse())
import shotstream.kernels.attention.bench, shotstream.kernels.attention.tune, shotstream.kernels.fused.bench
import shotstream.kernels.report
"""


def imports(folder: Path) -> dict[str, set[str]]:
    """Modules that each file of a room names, inside functions too."""
    found: dict[str, set[str]] = {}
    for file in folder.rglob("*.py"):
        names = found.setdefault(str(file.relative_to(ROOT)), set())
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
    return found


def test_the_models_are_those_that_can_be_asked_for() -> None:
    assert set(MODELS) <= set(assemble_registry(DEFAULT_PLUGINS).names("model"))


def test_what_is_measured_are_the_calls_of_a_shot() -> None:
    shapes = shapes_of(WAN)
    first, last, context = shapes[0], shapes[6], shapes[7]
    assert last.flops == 4 * 4680 * 42120 * 1536
    assert (first.queries, first.keys, last.keys, last.capacity) == (4680, 14040, 42120, 42120)
    assert (context.queries, context.keys) == (9360, 9360)
    assert {width: shape.heads for width, shape in tune.SHAPES.items()} == {128: 12, 64: 4}


def test_the_runtime_names_no_kernel_and_kernels_lean_on_contracts_only() -> None:
    upwards = {
        file: [n for n in names if "kernels" in n.split(".")] for file, names in imports(ROOT / "runtime").items()
    }
    assert not {file: names for file, names in upwards.items() if names}
    allowed = (
        "config", "presets", "wan", "errors", "plugins", "noise", "graph.ops", "model.attention", "model.rope",
        "cli", "sinks.base",
    )  # fmt: skip
    for file, names in imports(ROOT / "kernels").items():
        for name in names:
            rest = name.removeprefix("shotstream.runtime.")
            fits = rest == name or any(rest == part or rest.startswith(f"{part}.") for part in allowed)
            assert fits, f"{file} imports {name}"
            assert name.split(".")[:2] not in (["shotstream", "bridge"], ["shotstream", "training"]), file


def test_measuring_needs_torch_triton_and_numpy_only() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
