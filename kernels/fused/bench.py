"""``python -m shotstream.kernels.fused.bench``: what the small kernels take, beside torch as it is and torch compiled.

Bytes are those of `NOTES.md`: each operand once. Every call of a measurement has operands and results of its own,
together more than the second-level cache holds, so that what is measured is memory; the calls are captured in a graph,
so that launches from Python are not. ``--tune FILE`` tries warps and writes a tuning file, ``--toy`` runs tiny sizes
anywhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from shotstream.kernels.fused import launch
from shotstream.kernels.fused.bench_cases import REAL, TOY, Case, Sizes, cases
from shotstream.kernels.fused.gelu import gelu_tanh

BANDWIDTH = 4.3e12
"""Bytes per second that an H200 reaches in a copy; shares are of this."""

_SECOND_LEVEL_CACHE = 64 << 20
_WARPS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Row:
    """Median microseconds of one call; None where it cannot be run."""

    name: str
    megabytes: float
    floor_us: float
    ours_us: float
    eager_us: float
    compiled_us: float | None

    @property
    def share(self) -> float:
        """Of the bandwidth, for ours."""
        return self.floor_us / self.ours_us


def microseconds(calls: Sequence[Callable[[], object]], device: torch.device, rounds: int) -> float:
    """Median over rounds of the mean time of one of these calls."""
    for call in calls[:2]:
        call()
    run = _captured(calls) if device.type == "cuda" else lambda: [call() for call in calls]
    times = []
    for _ in range(rounds):
        times.append(_once(run, device) / len(calls))
    return statistics.median(times)


def _captured(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]  # freed one by one, all results would be one place that stays in the cache
    del kept
    graph.replay()
    return graph.replay


def _once(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        begin = time.perf_counter()
        run()
        return 1e6 * (time.perf_counter() - begin)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    run()
    after.record()
    after.synchronize()
    return 1e3 * before.elapsed_time(after)


def _sets(case: Case, device: torch.device) -> list[list[Tensor]]:
    """Operands for as many calls as together exceed the cache four times."""
    count = 1 if device.type != "cuda" else max(4, -(-4 * _SECOND_LEVEL_CACHE // case.bytes))
    return [case.operands() for _ in range(count)]


def measure(case: Case, device: torch.device, rounds: int) -> Row:
    """One row of the report."""
    sets = _sets(case, device)

    def timed(function: Callable[..., object]) -> float:
        return microseconds([partial(function, *operands) for operands in sets], device, rounds)

    compiled = timed(torch.compile(case.eager)) if device.type == "cuda" else None
    floor = 1e6 * case.bytes / BANDWIDTH
    return Row(case.name, case.bytes / 1e6, floor, timed(case.ours), timed(case.eager), compiled)


def tune(chosen: Sequence[Case], device: torch.device, rounds: int) -> dict[str, int]:
    """The quickest number of warps of every kernel, by name and width."""
    table = launch.tuned(device)
    best = {}
    for case in chosen:
        calls, times = [partial(case.ours, *operands) for operands in _sets(case, device)], {}
        for warps in _WARPS:
            table[case.key] = warps
            times[warps] = microseconds(calls, device, rounds)
        best[case.key] = table[case.key] = min(times, key=times.__getitem__)
    return best


def feed_forward(sizes: Sizes, device: torch.device, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """The first feed-forward product alone, with GELU as its epilogue, and with our kernel behind it; microseconds."""
    x = torch.randn(sizes.tokens, sizes.width, device=device, dtype=dtype)
    weight = torch.randn(sizes.hidden, sizes.width, device=device, dtype=dtype) / sizes.width**0.5
    bias = torch.randn(sizes.hidden, device=device, dtype=dtype)
    ways: dict[str, Callable[[], object]] = {
        "product and bias": lambda: F.linear(x, weight, bias),
        "product with epilogue": lambda: torch._addmm_activation(bias, x, weight.T, use_gelu=True),
        "product, then gelu_tanh": lambda: gelu_tanh(F.linear(x, weight), bias),
    }
    return {name: microseconds([call] * 4, device, rounds) for name, call in ways.items()}


def table(rows: Sequence[Row]) -> str:
    """The report as Markdown."""
    lines = ["| kernel | MB | floor us | ours us | GB/s | share | torch us | compiled us |", "|---|" + "---|" * 7]
    for row in rows:
        compiled = "-" if row.compiled_us is None else f"{row.compiled_us:.1f}"
        lines.append(
            f"| {row.name} | {row.megabytes:.1f} | {row.floor_us:.1f} | {row.ours_us:.1f} "
            f"| {1e3 * row.megabytes / row.ours_us:.0f} | {row.share:.0%} | {row.eager_us:.1f} | {compiled} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; returns 2 where there is no GPU and the sizes are not the toy's."""
    parser = argparse.ArgumentParser(prog="python -m shotstream.kernels.fused.bench", description=__doc__)
    parser.add_argument("--toy", action="store_true", help="tiny sizes, on the CPU where there is no GPU")
    parser.add_argument("--rounds", type=int, default=50, help="repetitions, of which the median counts")
    parser.add_argument("--kernel", default="", help="only kernels with this in their name")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--tune", type=Path, help="try warps first, and write a tuning file here")
    given = parser.parse_args(arguments)
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not given.toy:
        sys.stderr.write("There is no GPU here, and the real sizes need one; --toy runs the path on the CPU.\n")
        return 2
    device = torch.device("cuda") if on_gpu else torch.device("cpu")
    sizes, dtype = TOY if given.toy else REAL, torch.bfloat16 if on_gpu else torch.float32
    eight_bit = not on_gpu or torch.cuda.get_device_capability() >= (8, 9)
    chosen = [case for case in cases(sizes, device, dtype, eight_bit) if given.kernel in case.name]
    if given.tune is not None:
        warps = tune(chosen, device, given.rounds)
        note = f"measured on {_machine(device)}"
        given.tune.write_text(json.dumps({"note": note, "warps": warps}, indent=1) + "\n")
    rows = [measure(case, device, given.rounds) for case in chosen]
    products = feed_forward(sizes, device, dtype, given.rounds)
    sys.stdout.write(f"{_machine(device)}\n\n{table(rows)}\n\n")
    sys.stdout.writelines(f"{name}: {value:.1f} us\n" for name, value in products.items())
    if given.json is not None:
        report = {"machine": _machine(device), "rows": [asdict(row) for row in rows], "feed_forward_us": products}
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, Triton's interpreter"
    return f"{name}, torch {torch.__version__}, Triton {triton.__version__}"


if __name__ == "__main__":
    sys.exit(main())
