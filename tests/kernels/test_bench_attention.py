"""The benchmark of attentions, on a CPU: what it counts, what it says of what is not there, and its two commands."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

from shotstream.kernels.attention import bench, bench_calls
from shotstream.kernels.attention.bench_calls import Backends, Shape
from shotstream.kernels.cli import bench_attention
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.attention import Prefix, sdpa

TOY = Shape("toy", queries=12, keys=20, capacity=30, heads=2, head_dim=64)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def plan(monkeypatch: pytest.MonkeyPatch, **found: object) -> None:
    monkeypatch.setattr(bench, "backends", lambda device: Backends(found, {"away": "needs more"}))  # type: ignore[arg-type]


def half(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return 0.5 * sdpa(q, k, v)


class Refusing:
    eight_bit = True

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return sdpa(q, k, v)

    def over_prefix(self, q: Tensor, prefix: Prefix) -> Tensor:
        if prefix.k_scale_H is None:
            return sdpa(q, prefix.k_BSHK[:, : int(prefix.length_1)], prefix.v_BSHK[:, : int(prefix.length_1)])
        raise RuntimeError("no such instruction\nmore")


def test_errors_are_those_of_each_backend_and_failures_have_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    plan(monkeypatch, right=sdpa, half=half, refusing=Refusing())
    results = {r.name: r for r in bench.measure([TOY], device="cpu", dtype=torch.float32, repeats=1)}
    assert list(results) == ["right", "half", "refusing", "refusing float8"]
    assert results["right"].error < 1e-5
    assert results["half"].error == pytest.approx(0.5, abs=1e-3)
    assert results["refusing"].error < 1e-5, "keys behind the length are there, and are not to be seen"
    assert results["refusing float8"].note == "no such instruction"
    assert math.isnan(results["refusing float8"].milliseconds)
    right = results["right"]
    assert right.tflops == pytest.approx(4 * 12 * 20 * 128 / right.milliseconds * 1e3 / 1e12)


def test_the_error_of_a_long_call_is_taken_over_some_queries_from_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def last_query_wrong(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        out = sdpa(q, k, v).clone()
        out[:, -1] = 0
        return out

    asked = []
    exact = bench_calls.exact_result
    monkeypatch.setattr(bench, "exact_result", lambda q, *rest: asked.append(q.shape[1]) or exact(q, *rest))
    plan(monkeypatch, right=sdpa, wrong=last_query_wrong)
    shape = Shape("long", queries=1000, keys=20, capacity=20, heads=1, head_dim=64)
    right, wrong = bench.measure([shape], device="cpu", dtype=torch.float32, repeats=1)
    assert asked == [256]
    assert right.error < 1e-5
    assert wrong.error > 0.01


@no_gpu
def test_on_a_cpu_it_measures_the_embedded_model_and_refuses_the_released_one(tmp_path: Path) -> None:
    report = bench.run(repeats=1)
    assert report.model == "tiny"
    assert {result.name for result in report.results} == {"sdpa", "matmul_softmax"}
    assert {result.shape for result in report.results} == {*(f"chunk {i}" for i in range(7)), "context"}
    assert report.absent["triton"].startswith("needs ")
    assert any(line.startswith("not here: flash, which needs") for line in report.lines())
    assert any(line.startswith("| chunk 0 | sdpa |") for line in report.lines())
    with pytest.raises(UserError, match="need a CUDA device"):
        bench.run("wan-1.3b")
    with pytest.raises(UserError, match="there are wan"):
        bench.run("large")


def test_the_file_has_null_for_what_failed(tmp_path: Path) -> None:
    failed = bench.Result("toy", "one", float("nan"), float("nan"), float("nan"), "a NaN in its name")
    bench.Report("a machine", "tiny", "float32", [failed], {}).write_json(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["results"] == [
        {
            "shape": "toy",
            "name": "one",
            "milliseconds": None,
            "tflops": None,
            "error": None,
            "note": "a NaN in its name",
        }
    ]


@no_gpu
def test_both_commands_write_the_same_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "module.json", tmp_path / "command.json"]
    assert bench.main(["--repeats", "1", "--json", str(files[0])]) == 0
    code = "import sys; from shotstream.runtime.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "bench", "attention", "--repeats", "1", "--json", str(files[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| chunk 0 | matmul_softmax |" in done.stdout
    assert "| chunk 0 | matmul_softmax |" in capsys.readouterr().out
    rows = [[(row["shape"], row["name"]) for row in json.loads(file.read_text())["results"]] for file in files]
    assert rows[0] == rows[1]
    assert bench.main(["--model", "wan-1.3b"]) == 2
    assert "need a CUDA device" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_found_out_before_the_measurement(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    app = typer.Typer()
    app.command()(bench_attention)
    result = CliRunner().invoke(app, ["--json", str(tmp_path / "file" / "a.json")])
    assert isinstance(result.exception, UserError)


def test_its_help_imports_no_torch() -> None:
    code = (
        "import sys, typer; from typer.testing import CliRunner; from shotstream.kernels.cli import bench_attention;"
        "app = typer.Typer(); app.command()(bench_attention);"
        "result = CliRunner().invoke(app, ['--help']);"
        "assert result.exit_code == 0 and '--model' in result.output, result.output;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
