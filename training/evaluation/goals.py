"""The goals of a model of the story world, and a report held against them, row by row. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from shotstream.training.evaluation.scores import ATTRIBUTES, GROUPS, METRICS, Change, Estimate, Report, Row, worst

SCORES = ("all_asked_action", *ATTRIBUTES, "same_hero", "same_hero_hidden", "background_kept", "cuts_exact")
"""Metrics that have a goal; for them a change may not exceed the points allowed either."""

ALL_RIGHT, EACH_RIGHT, KEPT, CUTS = 0.95, 0.90, 0.95, 1.0
DRIFT_POINTS, TEACHER_POINTS, WORDING_POINTS = 0.03, 0.03, 0.05
CODEC_DB = 32.0

_AIMS = {"all_asked_action": ALL_RIGHT, **dict.fromkeys(ATTRIBUTES, EACH_RIGHT), "same_hero": KEPT,
         "same_hero_hidden": KEPT, "background_kept": KEPT, "cuts_exact": CUTS}  # fmt: skip
_NAMES = {"all_asked_action": "all attributes right in a shot", "same_hero": "same hero, captioned look",
          "same_hero_hidden": "same hero, uncaptioned look", "background_kept": "background kept",
          "cuts_exact": "cuts exactly where asked"}  # fmt: skip

SHARE, POINTS, DECIBEL = "share", "points", "dB"
_WIDE = 25  # the longest cell is a change of -100.0 with its interval


@dataclass(frozen=True)
class Goal:
    """One goal. `figure` is on held-out stories and decides; for changes and dB it is over all stories.

    figure: None when it was not measured. others: the same figure elsewhere ("in distribution", ceilings). unit:
    `SHARE` and `POINTS` are in 0..1, `DECIBEL` in dB. aim: the least that is asked for.
    """

    name: str
    figure: Estimate | None
    others: Mapping[str, Estimate]
    aim: float
    unit: str = SHARE

    @property
    def met(self) -> bool | None:
        """Whether the figure reaches the aim; None when it was not measured."""
        return None if self.figure is None else self.figure.mean >= self.aim

    @property
    def verdict(self) -> str:
        """The answer in words; "within error" says that the interval holds the aim."""
        if self.figure is None:
            return "not measured"
        doubt = self.figure.low < self.aim <= self.figure.high
        return ("met" if self.met else "missed") + (", within error" if doubt else "")


def goals_of(report: Report, model: str = "model", *, teacher: str | None = None) -> list[Goal]:
    """All goals for one source of the report; `teacher` is the source that the student is held against."""
    ceilings = [source for source in ("renders", "codec") if _row(report, source, GROUPS[1])]
    held_out, known = (_row(report, model, group) for group in (GROUPS[1], GROUPS[0]))
    goals = []
    for metric in SCORES:
        others = {GROUPS[0]: known} | {source: _row(report, source, GROUPS[1]) for source in ceilings}
        measured = {name: row.scores[metric] for name, row in others.items() if row and metric in row.scores}
        figure = held_out.scores.get(metric) if held_out else None
        goals.append(Goal(_NAMES.get(metric, f"  {metric}"), figure, measured, _AIMS[metric]))
    for kind, name in (("drift", "drift in ten shots"), ("drift of last chunks", "drift of last chunks")):
        goals += _change_goals(name, report.change(kind, model), -DRIFT_POINTS, report.change(kind, "renders"))
    goals += _change_goals("free wording", _from(report, "free wording", model), -WORDING_POINTS)
    if teacher is not None:
        change = next((c for c in report.changes if (c.before, c.after) == (teacher, model)), None)
        goals += _change_goals("student - teacher", change, -TEACHER_POINTS)
    return [*goals, Goal("codec PSNR", report.codec_psnr, {}, CODEC_DB, DECIBEL)]


def goal_lines(goals: Sequence[Goal]) -> list[str]:
    """The goals as aligned text; shares in percent, changes in percentage points, each with its 95 % interval."""
    names = list(dict.fromkeys(name for goal in goals for name in goal.others))
    head = f"{'goal (95 % intervals)':44}{'held out':>{_WIDE}}" + "".join(f"{n:>{_WIDE}}" for n in names)
    lines = [f"{head}{'asked':>10}  verdict"]
    for goal in goals:
        cells = [_cell(e, goal.unit) for e in (goal.figure, *(goal.others.get(name) for name in names))]
        asked = f">= {goal.aim:.0f}" if goal.unit == DECIBEL else f">= {100 * goal.aim:.0f}"
        lines.append(f"{goal.name:44}" + "".join(f"{c:>{_WIDE}}" for c in cells) + f"{asked:>10}  {goal.verdict}")
    return [*lines, "shares in %; changes in points, over all stories, as the codec's dB are"]


def goals_as_dict(goals: Sequence[Goal]) -> list[dict[str, object]]:
    """Plain values for JSON."""
    return [asdict(goal) | {"name": goal.name.strip(), "met": goal.met, "verdict": goal.verdict} for goal in goals]


def gain_lines(report: Report, sources: Sequence[str]) -> list[str]:
    """Stages side by side, over all stories: per metric the score, and under it the gain over the column before.

    The last column is the last source less the first.
    """
    columns = {source: report.pooled(source) for source in sources}
    gains = [_between(report, a, b) for a, b in pairwise(sources)]
    lines = [f"{'':26}" + "".join(f"{source:>{_WIDE}}" for source in sources)]
    overall = _between(report, sources[0], sources[-1]) if len(sources) > 2 else None
    if overall is not None:
        lines[0] += f"{f'{sources[-1]} - {sources[0]}':>{_WIDE}}"
    for metric in METRICS:
        cells = [_cell(columns[source].scores.get(metric), SHARE) for source in sources]
        total = _cell(overall.scores.get(metric), POINTS) if overall else ""
        lines.append(f"{metric:26}" + "".join(f"{c:>{_WIDE}}" for c in cells) + f"{total:>{_WIDE}}".rstrip())
        steps = [_cell(gain.scores.get(metric), POINTS) if gain else "-" for gain in gains]
        if steps:
            lines.append(f"{'':26}{'':{_WIDE}}" + "".join(f"{c:>{_WIDE}}" for c in steps))
    return [*lines, "shares in %, under them the gain over the column before in points; 95 % intervals over stories"]


def _row(report: Report, source: str, group: str) -> Row | None:
    try:
        return report.row(source, group)
    except KeyError:
        return None


def _from(report: Report, name: str, before: str) -> Change | None:
    return next((c for c in report.changes if (c.name, c.before) == (name, before)), None)


def _between(report: Report, before: str, after: str) -> Change | None:
    return next((c for c in report.changes if (c.name, c.before, c.after) == ("stage", before, after)), None)


def _change_goals(name: str, change: Change | None, aim: float, truth: Change | None = None) -> list[Goal]:
    """Two rows: everything captioned at once, and the metric that fell most."""
    found = worst(change, SCORES) if change else None
    fell = found[0] if found else None
    rows = {"all attributes": "all_asked_action", f"worst: {fell}" if fell else "worst": fell}
    return [
        Goal(
            f"{name}, {label}", change.scores.get(metric) if change and metric else None,
            {"renders": truth.scores[metric]} if truth and metric and metric in truth.scores else {}, aim, POINTS,
        )
        for label, metric in rows.items()
    ]  # fmt: skip


def _cell(estimate: Estimate | None, unit: str) -> str:
    if estimate is None:
        return "-"
    if unit == DECIBEL:
        return f"{estimate.mean:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"
    sign = "+" if unit == POINTS else ""
    mean, low, high = (100 * v for v in (estimate.mean, estimate.low, estimate.high))
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
