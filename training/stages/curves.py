"""Loss curves of a stage as a picture, drawn from its ``log.jsonl``. Needs matplotlib (the ``train`` extra)."""

from __future__ import annotations

import json
import logging
from pathlib import Path

log = logging.getLogger(__name__)

_NOT_CURVES = ("step", "seconds", "elapsed_s", "steps_per_s")


def write_curves(log_file: Path, picture: Path) -> bool:
    """One panel per figure of the log against the step; False (and one line in the log) without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        log.info("no loss curves: matplotlib is not installed (pip install 'shotstream[train]')")
        return False
    series: dict[str, list[tuple[float, float]]] = {}
    for line in log_file.read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name not in _NOT_CURVES and "step" in row:
                series.setdefault(name, []).append((row["step"], value))
    if not series:
        return False
    figure = Figure(figsize=(7, 2.2 * len(series)), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (name, points) in enumerate(sorted(series.items()), start=1):
        axes = figure.add_subplot(len(series), 1, i)
        axes.plot(*zip(*points, strict=True), linewidth=1)
        axes.set_ylabel(name)
        axes.set_xlabel("step" if i == len(series) else "")
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=80)
    return True
