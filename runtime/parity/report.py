"""Rows, tables and verdict of a parity run, and the loop that makes them. It knows no case of its own.

A case group claims cases of a vector file by name and yields one row per compared quantity. A case that nobody
claims, a case that a group expects but the file lacks, and a package that is not installed are reported and are
no failures; an error inside a check is one.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.runtime.parity.vectors import VectorFile

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)

FLOAT32 = 3e-6
"""Largest accepted max|ours - reference| / max|reference| in float32."""
LOSS = 1e-6
BFLOAT16 = 2e-2
EXACT = 0.0

Status = Literal["passed", "failed", "absent", "not understood", "skipped"]


@dataclass(frozen=True)
class Row:
    """One comparison, or one remark about a case (`error` is then None)."""

    case: str
    quantity: str
    status: Status
    error: float | None = None
    tolerance: float | None = None
    note: str = ""


class Skip(Exception):
    """Raised in a check for what cannot be checked here; the text says why."""


class NotUnderstood(Exception):
    """Raised in a check for a case whose format is not known; the text says what is missing."""


@dataclass(frozen=True)
class CaseGroup:
    """Cases that are checked alike.

    expected: names reported as absent when the file lacks them. claims: whether a case name belongs here.
    check: yields the rows of one case.
    """

    name: str
    expected: tuple[str, ...]
    claims: Callable[[str], bool]
    check: Callable[[VectorFile, str], Iterator[Row]]


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """max|ours - reference| / max|reference| in float64; infinite for other shapes or anything not finite."""
    if ours.shape != reference.shape:
        return math.inf
    a, b = ours.detach().double(), reference.detach().double()
    difference = (a - b).abs().max().item() if a.numel() else 0.0
    scale = b.abs().max().item() if b.numel() else 0.0
    error = difference / scale if scale else difference
    return error if math.isfinite(error) else math.inf


def compare(case: str, quantity: str, ours: Tensor, reference: Tensor, tolerance: float = FLOAT32) -> Row:
    """The row of one tensor against another."""
    return compare_all(case, quantity, [(ours, reference)], tolerance)


def compare_all(case: str, quantity: str, pairs: Iterable[tuple[Tensor, Tensor]], tolerance: float = FLOAT32) -> Row:
    """The row of several pairs of tensors: the worst error decides, each relative to its own largest value."""
    worst, note = 0.0, ""
    for ours, reference in pairs:
        error = relative_error(ours, reference)
        if ours.shape != reference.shape:
            note = f"shape {tuple(ours.shape)}, reference {tuple(reference.shape)}"
        worst = max(worst, error)
    return Row(case, quantity, "passed" if worst <= tolerance else "failed", worst, tolerance, note)


def compare_equal(case: str, quantity: str, ours: object, reference: object) -> Row:
    """The row of things that must be the same: index lists, strings, key names."""
    same = ours == reference
    note = "" if same else f"got {str(ours)[:60]}, reference {str(reference)[:60]}"
    return Row(case, quantity, "passed" if same else "failed", 0.0 if same else math.inf, EXACT, note)


@dataclass(frozen=True)
class ParityReport:
    """All rows of a run over one file."""

    path: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> int:
        """Number of comparisons within tolerance."""
        return sum(row.status == "passed" for row in self.rows)

    @property
    def failed(self) -> int:
        """Number of comparisons out of tolerance and of checks that broke."""
        return sum(row.status == "failed" for row in self.rows)

    @property
    def exit_code(self) -> int:
        """0 if nothing failed and at least one comparison was made, else 1."""
        return 0 if self.failed == 0 and self.passed > 0 else 1

    @property
    def verdict(self) -> str:
        """The last line of the table."""
        return f"{self.passed} passed, {self.failed} failed"

    def to_json(self) -> str:
        """All rows and the counts; an infinite error is written as the string "inf"."""

        def plain(row: Row) -> dict[str, object]:
            values = asdict(row)
            if row.error is not None and math.isinf(row.error):
                values["error"] = "inf"
            return values

        counts = Counter(row.status for row in self.rows)
        return json.dumps(
            {
                "file": self.path,
                "passed": self.passed,
                "failed": self.failed,
                "counts": dict(counts),
                "rows": [plain(row) for row in self.rows],
            },
            indent=1,
        )

    def render(self, console: Console) -> None:
        """Prints the table, what was not checked, and the verdict as the last line."""
        from rich.table import Table

        table = Table(title=f"parity: {self.path}", box=None, pad_edge=False)
        for name, justify in (("case", "left"), ("quantity", "left"), ("error", "right"), ("tolerance", "right")):
            table.add_column(name, justify="right" if justify == "right" else "left", overflow="fold")
        table.add_column("status")
        style = {"passed": "green", "failed": "bold red"}
        for row in self.rows:
            if row.status not in style:
                continue
            status = f"[{style[row.status]}]{row.status}[/]" + (f" ({_plain(row.note)})" if row.note else "")
            table.add_row(_plain(row.case), _plain(row.quantity), _number(row.error), _number(row.tolerance), status)
        console.print(table)
        remarks: dict[str, Status] = {
            "not in this file": "absent",
            "not understood": "not understood",
            "skipped": "skipped",
        }
        for title, wanted in remarks.items():
            found = [row.case + (f" ({row.note})" if row.note else "") for row in self.rows if row.status == wanted]
            if found:
                console.print(_plain(f"{title}: {', '.join(found)}"))
        console.print(self.verdict, style="green" if self.exit_code == 0 else "bold red", highlight=False)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _number(value: float | None) -> str:
    return "" if value is None else "exact" if value == 0 else f"{value:.1e}"


def run_parity(
    path: str | Path,
    groups: Sequence[CaseGroup],
    *,
    only: str | None = None,
    on_case: Callable[[str], None] | None = None,
    claimed_only: bool = False,
) -> ParityReport:
    """Checks every case of the vector file at `path` that one of `groups` claims.

    `only` keeps the cases whose name contains it. `on_case` is told each case before its check, for a progress
    display. `claimed_only`: cases that no group claims are not mentioned. Raises UserError for a file that cannot be
    read or is not a vector file, and when `only` matches nothing.
    """
    file = VectorFile.load(path)
    names = [name for name in file.case_names if only is None or only in name]
    if only is not None and not names:
        raise UserError(f"no case of {path} has {only!r} in its name; there are {', '.join(file.case_names)}")
    rows: list[Row] = []
    claimed: set[str] = set()
    for group in groups:
        for name in (n for n in names if n not in claimed and group.claims(n)):
            claimed.add(name)
            if on_case is not None:
                on_case(name)
            rows += _checked(group, file, name)
        if only is None:
            rows += [Row(name, "", "absent") for name in group.expected if name not in file.cases]
    if not claimed_only:
        rows += [Row(name, "", "not understood", note="no check for it") for name in names if name not in claimed]
    return ParityReport(str(path), tuple(rows))


def _checked(group: CaseGroup, file: VectorFile, name: str) -> list[Row]:
    """The rows of one case; what breaks inside a check becomes a row, so that the other cases still run."""
    rows: list[Row] = []
    try:
        with torch.random.fork_rng(devices=[]):
            rows.extend(group.check(file, name))
    except Skip as reason:
        rows.append(Row(name, "", "skipped", note=str(reason)))
    except NotUnderstood as reason:
        rows.append(Row(name, "", "not understood", note=str(reason)))
    except UserError as error:
        rows.append(Row(name, "", "failed", note=str(error)))
    except LookupError as error:
        # A variant that we do not know may lack an entry; one that every file has may not.
        status: Status = "failed" if name in group.expected else "not understood"
        rows.append(Row(name, "", status, note=f"it has no {error.args[0]}"))
    except Exception as error:
        log.debug("the check of %s broke", name, exc_info=True)
        rows.append(Row(name, "", "failed", note=f"the check broke: {type(error).__name__}: {error}"))
    return rows
