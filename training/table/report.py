"""The table of all rows, as text for a README and as a plot. Figures come from the rows' json files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shotstream.runtime.errors import UserError
from shotstream.training.table.methods import METHODS, OURS

COLUMNS: Mapping[str, str] = {
    "all_asked": "all but action",
    "action": "action",
    "same_hero": "same hero",
    "same_hero_hidden": "same belly",
    "background_kept": "same house",
    "cuts_exact": "cuts exact",
}
"""Metric of `evaluation.scores` -> head of its column."""

AXES: Mapping[str, str] = {
    "prompt_following": "prompt following",
    "intra_subject": "subject, in a shot",
    "intra_background": "background, in a shot",
    "inter_subject": "subject, between shots",
    "inter_background": "background, between shots",
    "cut_f1": "cuts, F1",
}
"""Axis of `evaluation.axes` -> head of its column."""


def figures_of(result: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Every column of a row: mean, and ends of its 95 % interval, shares as they are."""
    axes = result["report"]["axes"][0]["scores"]
    found = {name: axes[name] for name in AXES if name in axes}
    found |= {name: result["pooled"][name] for name in COLUMNS if name in result["pooled"]}
    return {name: (e["mean"], e["low"], e["high"]) for name, e in found.items()}


def table_lines(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A markdown table: percent with half the 95 % interval's width, frames per second, seconds to first frames."""
    heads = {**AXES, **COLUMNS}
    lines = ["| | " + " | ".join([*heads.values(), "frames/s", "first frames, s"]) + " |"]
    lines.append("|---" * (len(heads) + 3) + "|")
    for ablation in (False, True):
        for name, method in METHODS.items():
            if name in results and method.ablation == ablation:
                lines.append(_line(name, results[name], list(heads)))
        if not ablation and any(METHODS[n].ablation for n in results):
            lines.append("| *ours with one change:* |" + " |" * (len(heads) + 2))
    return lines


def _line(name: str, result: Mapping[str, Any], columns: list[str]) -> str:
    method, figures, speed = METHODS[name], figures_of(result), result["speed"]
    title = f"{method.title} ({method.like})" if method.like else method.title
    cells = [f"**{title}**" if name == OURS else title]
    for column in columns:
        if column in figures:
            mean, low, high = figures[column]
            cells.append(f"{100 * mean:.0f} ± {50 * (high - low):.0f}")
        else:
            cells.append("-")
    cells += [f"{speed['fps']:.1f}", f"{speed['wait_s']:.2f}"]
    return "| " + " | ".join(cells) + " |"


def write_plot(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """One panel per axis, one bar with its interval per row, ours in another colour; needs matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("the plot needs matplotlib: pip install 'shotstream[train]'") from error
    names = [name for name in METHODS if name in results]
    figure = Figure(figsize=(11, 0.9 + 0.27 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(AXES), sharey=True)
    for panel, (axis, head) in zip(panels, AXES.items(), strict=True):
        for row, name in enumerate(names):
            figures = figures_of(results[name])
            if axis not in figures:
                continue
            mean, low, high = (100 * v for v in figures[axis])
            panel.barh(row, mean, color="#c05a2e" if name == OURS else "#8aa0b4")
            panel.plot([low, high], [row, row], color="black", linewidth=1)
        panel.set_title(head.replace(", ", ",\n"), fontsize=8)
        panel.set_xlim(min(0, panel.get_xlim()[0]), 100)
        panel.tick_params(labelsize=7)
    panels[0].set_yticks(range(len(names)), [METHODS[name].title for name in names])
    panels[0].invert_yaxis()
    panels[0].margins(y=0.01)
    figure.savefig(path, dpi=110)
