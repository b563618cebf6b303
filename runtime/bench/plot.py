"""A report as a picture: times by position, where they go, and the whole story chunk by chunk. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shotstream.runtime.bench.report import BenchReport, Setting
from shotstream.runtime.bench.samples import ChunkSample, Position
from shotstream.runtime.bench.text import counted, machine_line
from shotstream.runtime.errors import UserError
from shotstream.runtime.optional import require

ENDINGS = (".png", ".svg", ".pdf")
_COLOURS = {
    "text": "#0072b2", "context": "#e69f00", "denoise": "#009e73", "clean": "#cc79a7", "decode": "#56b4e9",
    "copy": "#d55e00", "encode": "#f0e442", "other": "#bbbbbb",
}  # fmt: skip
"""A part has the same colour in every picture; colour-blind readers tell these apart."""
_NEW_PARTS = ("#444444", "#8c564b", "#999933")
_LIMIT, _POINT = "#b00020", "#1f4e79"
_FAR = 2.5
"""A limit this many times above the slowest chunk is named instead of drawn: it would press everything flat."""
_LINES_NAMED = 12
"""At most so many positions are named one by one."""
_POINTS = 60
"""At most so many samples of a position are drawn as points as well."""


def check_plot(path: Path) -> None:
    """Raise UserError if a picture cannot be made: no matplotlib, or a name that says no format."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"{path} does not say what picture it is; let its name end in {', '.join(ENDINGS)}")
    require("matplotlib", "drawing a measurement", extra="plot")


def write_plot(report: BenchReport, path: Path) -> None:
    """Draw a report; UserError without matplotlib, or where the file cannot be written."""
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, height_ratios=(1.15, 1))
    figure.suptitle(_title(report.setting), fontsize=13, fontweight="bold", x=0.01, ha="left")
    _times(figure.add_subplot(grid[0, 0]), report)
    _split(figure.add_subplot(grid[0, 1]), report.summary.positions)
    _story(figure.add_subplot(grid[1, :]), report)
    figure.supxlabel(_facts(report), fontsize=8.5, x=0.01, ha="left", color="#444444")
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def _title(s: Setting) -> str:
    return (
        f"{s.model}, {s.frame_size}, {s.device} {s.dtype}, {s.engine} engine: "
        f"{counted(s.shots, 'shot')} of {counted(s.chunks, 'chunk')}, {s.weights} weights"
    )


def _facts(report: BenchReport) -> str:
    s = report.summary
    return (
        f"{machine_line(report.machine)}; {counted(report.setting.threads, 'CPU thread')}\n"
        f"{s.late} of {len(report.samples)} chunks late, longest stall {s.longest_stall_ms:.0f} ms; "
        f"{s.fps:.1f} fps over the story, {s.realtime:.2f} x real time"
    )


def _times(axes: Any, report: BenchReport) -> None:
    """Boxes over all samples of a position, the samples themselves, and the limit."""
    positions = report.summary.positions
    places = [position.chunk + 1 for position in positions]
    times = [_milliseconds(report.samples, position.chunk) for position in positions]
    axes.boxplot(
        times, positions=places, widths=0.55, whis=(0, 100), showfliers=False, manage_ticks=False,
        medianprops={"color": _POINT, "linewidth": 2}, boxprops={"color": "#777777"},
        whiskerprops={"color": "#777777"}, capprops={"color": "#777777"},
    )  # fmt: skip
    for place, values in zip(places, times, strict=True):
        shown = _thinned(values)
        spread = [place + 0.36 * (index / max(1, len(shown) - 1) - 0.5) for index in range(len(shown))]
        axes.plot(spread, shown, ".", color=_POINT, alpha=0.55, markersize=5)
    _limits(axes, places, [position.limit_ms for position in positions], max(max(values) for values in times))
    axes.set(title="Time of a chunk: median, middle half, extremes", ylabel="ms from asking to frames")
    _by_position(axes, places)


def _split(axes: Any, positions: Sequence[Position]) -> None:
    """Means by part, stacked, and the mean time, which is less where parts overlap. What is too small to see is left
    out."""
    places = [position.chunk + 1 for position in positions]
    names = list(dict.fromkeys(name for position in positions for name in position.parts_ms))
    totals = [sum(position.parts_ms.values()) for position in positions]
    foot = [0.0] * len(places)
    new = iter(_NEW_PARTS)
    for name in names:
        values = [max(0.0, position.parts_ms.get(name, 0.0)) for position in positions]
        colour = _COLOURS[name] if name in _COLOURS else next(new, "#000000")
        if max(values) < 0.002 * max(totals):
            continue
        axes.bar(places, values, 0.62, bottom=foot, label=name, color=colour, edgecolor="white", linewidth=0.5)
        foot = [below + value for below, value in zip(foot, values, strict=True)]
    axes.plot(places, totals, "_", color="black", markersize=14, label="what its caller waits")
    style = {"ha": "center", "fontsize": 9, "bbox": {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}}
    for place, total in zip(places, totals, strict=True) if len(places) <= _LINES_NAMED else ():
        axes.annotate(_rounded(total), (place, total), (0, 5), textcoords="offset points", **style)
    _limits(axes, places, [position.limit_ms for position in positions], max(foot))
    axes.set(title="Where it goes: means by part", ylabel="ms")
    _by_position(axes, places)
    _legend(axes)


def _story(axes: Any, report: BenchReport) -> None:
    """A line per position over all shots: what drifts and what stands out."""
    from matplotlib import colormaps

    positions = report.summary.positions
    step = -(-len(positions) // _LINES_NAMED)
    for index, position in enumerate(positions):
        here = [sample for sample in report.samples if sample.chunk == position.chunk]
        colour = colormaps["viridis"](0.92 * index / max(1, len(positions) - 1))
        name = f"chunk {position.chunk + 1}" if index % step == 0 else None
        axes.plot(
            [sample.shot + 1 for sample in here], [1000 * sample.took_s for sample in here], "o-", color=colour,
            linewidth=1, markersize=4 if len(here) <= 50 else 2, label=name,
        )  # fmt: skip
    _limits(axes, (), [position.limit_ms for position in positions], max(p.time.max_ms for p in positions))
    shots = report.setting.shots
    axes.set(title="Chunk times over the story", xlabel="shot", ylabel="ms", xlim=(0.5, shots + 0.5))
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    _legend(axes)


def _limits(axes: Any, places: Sequence[int], limits: Sequence[float], slowest: float) -> None:
    """How long each chunk's own frames are shown, as a dashed line; as words where it is far above all chunks.

    places: positions to draw it over; none: as level lines."""
    named = f"its frames last {' / '.join(dict.fromkeys(f'{limit:.0f}' for limit in limits))} ms"
    if min(limits) > _FAR * slowest:
        axes.set_ylim(0, 1.22 * slowest)
        place = {"transform": axes.transAxes, "ha": "right", "va": "top"}
        axes.text(0.99, 0.97, f"{named}: above this scale", color=_LIMIT, fontsize=9, **place)
        return
    axes.set_ylim(0, 1.16 * max(slowest, *limits))
    style = {"color": _LIMIT, "linewidth": 1.3, "linestyle": "--"}
    if not places:
        for limit in sorted(set(limits)):
            axes.axhline(limit, **style, label=named if limit == max(limits) else None)
        return
    edges = [edge for place in places for edge in (place - 0.5, place + 0.5)]
    doubled = [limit for limit in limits for _ in range(2)]
    axes.plot(edges, doubled, **style, label=named)


def _legend(axes: Any) -> None:
    """Beside the panel, in the order in which bars are stacked."""
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _by_position(axes: Any, places: Sequence[int]) -> None:
    axes.set_xticks(places if len(places) <= 20 else places[:: 1 + len(places) // 20])
    axes.set(xlabel="chunk of its shot", xlim=(min(places) - 0.6, max(places) + 0.6))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _milliseconds(samples: Sequence[ChunkSample], chunk: int) -> list[float]:
    return [1000 * sample.took_s for sample in samples if sample.chunk == chunk]


def _thinned(values: Sequence[float]) -> list[float]:
    step = -(-len(values) // _POINTS)
    return list(values[::step])


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
