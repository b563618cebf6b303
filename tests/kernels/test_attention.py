"""Cache attention without a GPU: the interpreter, the compiler, schedule, tuning files and benchmark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shotstream.kernels.attention.backend import TritonAttention
from shotstream.kernels.attention.config import DTYPES, HEAD_DIMS, architectures, configs_of, key, nearest_architecture
from shotstream.kernels.attention.reference import reference_attention
from shotstream.kernels.attention.schedule import plan

HERE = Path(__file__).parent


def without_interpreter() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def test_the_kernels_agree_with_torch_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(HERE / "interpreted_attention.py")]
    done = subprocess.run(
        command, env={**without_interpreter(), "TRITON_INTERPRET": "1"}, cwd=HERE.parents[1],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


COMPILE = """
import json, sys
from shotstream.kernels import aot
names, architectures = json.loads(sys.argv[1])
specs = [spec for spec in aot.collect(["shotstream.kernels.attention.specs:specs"])
         if not names or spec.name in names]
rows = aot.compile_all(specs, architectures)
print(json.dumps([[row.name, row.arch, row.instructions, row.faults()] for row in rows]))
"""


def compiled(names: list[str], architectures: list[int]) -> list[tuple[str, int, str, list[str]]]:
    """Name, architecture, instructions and faults of every specialisation, in a process without the interpreter."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE, json.dumps([names, architectures])],
        env=without_interpreter(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_kernels_of_wan_compile_for_hopper_without_spills() -> None:
    names = [f"attention descriptor 128 bf16 128x128 {part}" for part in ("whole", "piece")]
    rows = compiled([*names, "attention combine 128 bf16"], [90])
    assert [row[3] for row in rows] == [[]] * 3
    assert all(row[2] == "wgmma tma setmaxnreg" for row in rows[:2]), "warps are specialised, copies and products async"


def test_the_pointer_kernel_compiles_for_a_small_gpu() -> None:
    rows = compiled(["attention pointer 128 bf16 128x32 whole"], [86])
    assert [(row[1], row[3]) for row in rows] == [(86, [])]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_configuration_compiles_within_the_limits_of_its_architecture() -> None:
    rows = compiled([], [80, 86, 89, 90, 100, 120])
    faults = [row for row in rows if row[3]]
    assert len(rows) > 120
    assert not faults, faults


def test_every_architecture_has_a_configuration_for_every_dtype_that_it_knows() -> None:
    assert architectures() == [80, 86, 89, 90, 100, 120]
    for arch in architectures():
        for head_dim in HEAD_DIMS:
            for dtype in DTYPES:
                expected = dtype != torch.float8_e4m3fn or arch >= 89
                assert (key("pointer", head_dim, dtype) in configs_of(arch)) == expected
    assert [nearest_architecture(gpu) for gpu in ((10, 3), (8, 7), (7, 5))] == [100, 86, None]


@given(tiles=st.integers(1, 2000), processors=st.integers(1, 200), most=st.integers(0, 16))
def test_a_plan_has_every_tile_once(tiles: int, processors: int, most: int) -> None:
    made = plan(tiles, processors, most)
    assert made.whole + made.split == tiles
    assert made.split < processors
    assert made.splits == 1 if made.split == 0 else 2 <= made.splits <= most
    assert made.split == 0 or made.whole % processors == 0


def test_a_chunk_on_an_h200_fills_three_waves_and_cuts_the_rest() -> None:
    made = plan(37 * 12, 132)
    assert (made.whole, made.split, made.splits) == (396, 48, 5)


def test_the_reference_is_softmax_attention_over_a_prefix() -> None:
    q, k, v = (torch.randn(2, n, 3, 64, dtype=torch.float64) for n in (5, 9, 9))
    scores = torch.einsum("blhd,bshd->bhls", q, k[:, :7]) / 8
    wanted = torch.einsum("bhls,bshd->blhd", scores.softmax(-1), v[:, :7])
    torch.testing.assert_close(reference_attention(q, k, v, 7, dtype=torch.float64), wanted)
    assert reference_attention(q, k, v, 0).abs().max() == 0


def test_masked_attention_goes_through_torch() -> None:
    q, k, v = (torch.randn(1, n, 2, 64) for n in (4, 6, 6))
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[:, 5] = False
    torch.testing.assert_close(TritonAttention()(q, k, v, mask), reference_attention(q, k, v, 5))


def test_nothing_imports_triton_before_a_session_asks_for_it() -> None:
    code = "import sys, shotstream.kernels.plugin, shotstream.kernels.aot, shotstream.runtime.runtime; "
    code += "from shotstream.runtime.plugins import Registry; Registry(entry_points=True); "
    code += "sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tuning_needs_a_gpu_and_says_so() -> None:
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, "-m", "shotstream.kernels.attention.tune"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "CUDA device" in done.stderr) == (2, True)
