"""Time and error of every attention that is there, on the shapes of a model. Needs torch, Triton and numpy only.

``python -m shotstream.kernels.attention.bench`` and ``shotstream bench attention`` print the same table and write the
same json with ``--json``. Times are medians of single calls, after a warm-up; on a GPU between two events, the L2 cache
overwritten before each. The error is against float64, on some of the queries.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from shotstream.kernels.attention.bench_calls import Shape, backends, calls, exact_result, inputs, shapes_of
from shotstream.kernels.sizes import MODELS
from shotstream.runtime.errors import UserError

ERROR_QUERIES = 256
"""How many queries of a call the error is taken over, spread evenly: float64 of all would take longer than the rest."""
_FLUSH_BYTES = 2**28


@dataclass(frozen=True)
class Result:
    """One backend on one shape."""

    shape: str
    name: str
    milliseconds: float
    tflops: float
    error: float
    """Root of the mean square difference to float64, relative to the root mean square of float64."""
    note: str = ""
    """Why it failed, and then the figures are NaN."""


@dataclass(frozen=True)
class Report:
    """What was measured, on what. absent: why a backend is not there."""

    machine: str
    model: str
    dtype: str
    results: Sequence[Result]
    absent: Mapping[str, str]

    def lines(self) -> list[str]:
        """For people; a Markdown table inside."""
        away = [f"not here: {name}, which {reason}" for name, reason in self.absent.items()]
        return [f"{self.model} in {self.dtype} on {self.machine}", "", *table(self.results).splitlines(), *away]

    def write_json(self, path: Path) -> None:
        """All figures; what failed has null for them."""
        results = [
            {key: None if value != value else value for key, value in asdict(result).items()} for result in self.results
        ]
        path.write_text(json.dumps({**asdict(self), "results": results}, indent=1) + "\n")


def default_model() -> str:
    """The released model where a GPU can compute it, the embedded one elsewhere."""
    return "wan-1.3b" if torch.cuda.is_available() else "tiny"


def run(model: str | None = None, repeats: int = 20) -> Report:
    """Measure a model's shapes on this machine; UserError for a model that is not known or too large for a CPU."""
    model = model or default_model()
    if model not in MODELS:
        raise UserError(f"there are no sizes of a model '{model}'; there are {', '.join(MODELS)}")
    on_gpu = torch.cuda.is_available()
    if not on_gpu and model != default_model():
        raise UserError(f"the sizes of '{model}' need a CUDA device and torch sees none; measure '{default_model()}'")
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    results = measure(shapes_of(MODELS[model]), device=device, dtype=dtype, repeats=repeats)
    where = torch.cuda.get_device_name() if on_gpu else f"a CPU with {torch.get_num_threads()} threads"
    name = str(dtype).removeprefix("torch.")
    return Report(f"{where}, torch {torch.__version__}", model, name, results, backends(device).absent)


def measure(shapes: Sequence[Shape], *, device: str, dtype: torch.dtype, repeats: int = 20) -> list[Result]:
    """Every backend that can be made on ``device``, on every shape; one that fails is listed with its reason."""
    there, results = backends(device), []
    for number, shape in enumerate(shapes):
        q, k, v = inputs(shape, device, dtype, seed=number)
        rows = torch.linspace(0, shape.queries - 1, min(shape.queries, ERROR_QUERIES), device=device).long()
        exact = exact_result(q[:, rows], k, v, shape.keys)
        for name, call in calls(there, q, k, v, shape.keys).items():
            try:
                error = relative_error(call()[:, rows], exact)
                seconds = median_seconds(call, device, repeats)
            except Exception as failure:
                reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0][:120]
                results.append(Result(shape.name, name, float("nan"), float("nan"), float("nan"), reason))
                continue
            results.append(Result(shape.name, name, seconds * 1e3, shape.flops / seconds / 1e12, error))
        del q, k, v, exact
    return results


def relative_error(out: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference over that of ``exact``, both ``[B, L, H, K]``."""
    difference = out.double() - exact.double()
    return float(difference.square().mean().sqrt() / exact.double().square().mean().sqrt())


def table(results: Sequence[Result]) -> str:
    """A Markdown table."""
    lines = ["| shape | attention | ms | TFLOP/s | error to float64 |", "|---|---|---|---|---|"]
    for r in results:
        said = r.note or f"{r.error:.2e}"
        lines.append(f"| {r.shape} | {r.name} | {r.milliseconds:.3f} | {r.tflops:.3g} | {said} |")
    return "\n".join(lines)


def median_seconds(call: Callable[[], Tensor], device: str, repeats: int) -> float:
    """The median time of one call, after three that are not counted."""
    for _ in range(3):
        call()
    times = []
    if torch.device(device).type != "cuda":
        for _ in range(repeats):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)
    for _ in range(repeats):
        flush.zero_()
        begin_event, end_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin_event.record()
        call()
        end_event.record()
        end_event.synchronize()
        times.append(begin_event.elapsed_time(end_event) / 1e3)
    return statistics.median(times)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 2 for sizes that cannot be measured here."""
    parser = argparse.ArgumentParser(prog="python -m shotstream.kernels.attention.bench", description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), help="whose sizes; default: wan-1.3b on a GPU, else tiny")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args(arguments)
    try:
        report = run(given.model, given.repeats)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write("\n".join(report.lines()) + "\n")
    if given.json is not None:
        report.write_json(given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
