"""Two measurements side by side: times by position with intervals, parts, misses, memory, and what else differs.

A verdict says what the two files can tell: the intervals cover the noise inside each run, not a machine that was slower
in one of them. Files of other models or machines are compared all the same, with the difference said first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from shotstream.runtime.bench.noise import FEWEST, Floats, Ratio, median_ratio, shots_ratio
from shotstream.runtime.bench.report import BenchReport, Machine
from shotstream.runtime.bench.samples import Spread, spread
from shotstream.runtime.bench.text import columns, machine_line
from shotstream.runtime.memory import MemoryUse

_EXPECTED = ("date", "load_average", "gpu_before", "gpu_after")
"""Facts that always differ, or are no setting."""
_WIDEST = 60


@dataclass(frozen=True)
class Difference:
    """A fact that is not the same."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Row:
    """One position in both; `ratio` None where one side has fewer than five samples."""

    chunk: int
    before: Spread
    after: Spread
    ratio: Ratio | None

    @property
    def verdict(self) -> str:
        """`faster`, `slower`, `same within noise` or `too few samples`: B as seen from A."""
        return "too few samples" if self.ratio is None else self.ratio.verdict


@dataclass(frozen=True)
class Comparison:
    """B (`after`) as seen from A (`before`)."""

    before: BenchReport
    after: BenchReport
    rows: list[Row]
    """Positions that both have."""
    overall: Ratio | None
    """All these positions together; None where there is a row without a ratio, or a shot without a chunk."""
    differences: list[Difference]

    def slower_than(self, percent: float) -> list[Row]:
        """Rows whose whole interval lies above so many percent more."""
        return [row for row in self.rows if row.ratio is not None and row.ratio.low > 1 + percent / 100]


def compare(before: BenchReport, after: BenchReport) -> Comparison:
    """Hold two reports side by side."""
    old, new = _times(before), _times(after)
    rows = [_row(chunk, old[chunk], new[chunk]) for chunk in sorted(old.keys() & new.keys())]
    return Comparison(before, after, rows, _overall(before, after, rows), differences(before, after))


def differences(before: BenchReport, after: BenchReport) -> list[Difference]:
    """What ran and where, as far as it is not the same; `device` is the machine's, which names the card."""
    sides = [asdict(report.setting) | asdict(report.machine) for report in (before, after)]
    names = [name for name in sides[0] if name not in _EXPECTED]
    return [
        Difference(name, _shown(sides[0][name]), _shown(sides[1][name]))
        for name in names
        if sides[0][name] != sides[1][name]
    ]


def lines(found: Comparison, fail_above: float | None = None) -> list[str]:
    """The comparison for people; fail_above: percent, as asked for on the command line."""
    out = [f"A: {machine_line(found.before.machine)}", f"B: {machine_line(found.after.machine)}"]
    out += _differences(found.differences)
    out += ["", *_times_table(found), "", *_parts_table(found), "", *_others(found)]
    if fail_above is not None:
        out.append(_judgement(found, fail_above))
    return out


def _times(report: BenchReport) -> dict[int, list[float]]:
    times: dict[int, list[float]] = {}
    for sample in report.samples:
        times.setdefault(sample.chunk, []).append(sample.took_s)
    return times


def _row(chunk: int, old: Sequence[float], new: Sequence[float]) -> Row:
    ratio = median_ratio(old, new) if min(len(old), len(new)) >= FEWEST else None
    return Row(chunk, spread(old), spread(new), ratio)


def _overall(before: BenchReport, after: BenchReport, rows: Sequence[Row]) -> Ratio | None:
    if not rows or any(row.ratio is None for row in rows):
        return None
    chunks = [row.chunk for row in rows]
    grids: list[Floats] = []
    for report in (before, after):
        times = _times(report)
        if len({len(times[chunk]) for chunk in chunks}) > 1:
            return None
        grids.append(np.array([times[chunk] for chunk in chunks]).T)
    return shots_ratio(grids[0], grids[1])


def _differences(found: Sequence[Difference]) -> list[str]:
    if not found:
        return ["the same model, setting and machine"]
    rows = [[one.name.replace("_", " "), one.before, one.after] for one in found]
    return ["not the same:", *(line.rstrip() for line in _left(rows))]


def _left(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]


def _times_table(found: Comparison) -> list[str]:
    with_p99 = all(row.before.p99_ms is not None and row.after.p99_ms is not None for row in found.rows)
    last = "p99" if with_p99 else "max"
    rows = [["ms, A then B", "samples", "p50", "p95", last, "B/A of p50", "95 % interval", "verdict"]]
    for row in found.rows:
        a, b = row.before, row.after
        rows.append(
            [
                f"  chunk {row.chunk + 1}",
                f"{a.samples} {b.samples}",
                _pair(a.p50_ms, b.p50_ms),
                _pair(a.p95_ms, b.p95_ms),
                _pair(a.p99_ms, b.p99_ms) if with_p99 else _pair(a.max_ms, b.max_ms),
                *_ratio(row.ratio),
                row.verdict,
            ]
        )
    if found.overall is not None:
        rows.append(["  together", "", "", "", "", *_ratio(found.overall), found.overall.verdict])
    out = columns(rows, indent="")
    counts = [len(_times(report)) for report in (found.before, found.after)]
    if counts[0] != counts[1]:
        out.append(f"  A has {counts[0]} chunks a shot and B {counts[1]}: only places in both are compared")
    if any(row.ratio is not None for row in found.rows):
        out.append("  intervals hold the noise inside each run, not a machine that was slower in one of them")
    if any(row.ratio is None for row in found.rows):
        out.append(f"  no verdict on fewer than {FEWEST} samples a side: measure with --shots {FEWEST} or more")
    return out


def _pair(a: float | None, b: float | None) -> str:
    return "  ".join("-" if value is None else f"{value:.1f}" for value in (a, b))


def _ratio(ratio: Ratio | None) -> tuple[str, str]:
    return ("-", "-") if ratio is None else (f"{ratio.value:.3f}", f"{ratio.low:.3f} .. {ratio.high:.3f}")


def _parts_table(found: Comparison) -> list[str]:
    sides = [_mean_parts(report) for report in (found.before, found.after)]
    names = sorted(dict.fromkeys([*sides[0], *sides[1]]), key=lambda name: name == "other")
    rows = [["mean ms a chunk", *names]]
    rows += [
        [f"  {label}", *(f"{side.get(name, 0.0):.1f}" for name in names)]
        for label, side in zip("AB", sides, strict=True)
    ]
    change = [f"{sides[1].get(name, 0.0) - sides[0].get(name, 0.0):+.1f}" for name in names]
    return columns([*rows, ["  B - A", *change]], indent="")


def _mean_parts(report: BenchReport) -> dict[str, float]:
    """Mean over all positions, which have as many samples each."""
    positions = report.summary.positions
    names = list(dict.fromkeys(name for position in positions for name in position.parts_ms))
    return {name: sum(p.parts_ms.get(name, 0.0) for p in positions) / len(positions) for name in names}


def _others(found: Comparison) -> list[str]:
    a, b = found.before, found.after
    rows = [
        ["", "A", "B"],
        ["late chunks", *(f"{r.summary.late} of {len(r.samples)}" for r in (a, b))],
        ["longer than their frames last", *(f"{r.summary.over_limit} of {len(r.samples)}" for r in (a, b))],
        ["longest stall, ms", *(f"{r.summary.longest_stall_ms:.0f}" for r in (a, b))],
        ["first frame p50, ms", *(f"{r.summary.first_frame.p50_ms:.1f}" for r in (a, b))],
        ["fps over the story", *(f"{r.summary.fps:.1f}" for r in (a, b))],
        ["history", *("-" if r.history is None else f"{100 * (r.history.ratio - 1):+.1f} %" for r in (a, b))],
        ["GPU clock before, after", *(_clocks(r.machine) for r in (a, b))],
        ["memory at most, MB", *(f"{_peak(r.memory):.0f}" for r in (a, b))],
        ["load average", *(_shown(r.machine.load_average) for r in (a, b))],
    ]
    return columns([row for row in rows if row[1:] != ["-", "-"]], indent="")


def _clocks(machine: Machine) -> str:
    states = [state for state in (machine.gpu_before, machine.gpu_after) if state is not None]
    return ", ".join(f"{state.sm_mhz:.0f}" if state.sm_mhz is not None else "unknown" for state in states) or "-"


def _peak(memory: MemoryUse) -> float:
    return memory.peak_mb if memory.gpu is None else memory.gpu.peak_mb


def _judgement(found: Comparison, percent: float) -> str:
    slower = found.slower_than(percent)
    if slower:
        named = ", ".join(f"{row.chunk + 1}" for row in slower)
        return f"slower by more than {percent:g} % beyond doubt: chunk {named}"
    unjudged = sum(row.ratio is None for row in found.rows)
    rest = f"; {unjudged} of {len(found.rows)} places have too few samples to tell" if unjudged else ""
    return f"no place is slower by more than {percent:g} % beyond doubt{rest}"


def _shown(value: object) -> str:
    text = "unknown" if value is None else str(value)
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."
