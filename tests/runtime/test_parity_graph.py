"""The engine `graph` against the reference's numbers: exact in float32, near in 16 and 8 bits; mistakes are seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from shotstream.runtime.cli.app import make_app
from shotstream.runtime.graph.passes import FusedTransformer, Span
from shotstream.runtime.parity import Row, run_parity
from shotstream.runtime.parity.graph import GraphParity

SUBSET = Path(__file__).parents[1] / "vectors" / "subset.pt"


def rows(parity: GraphParity) -> list[Row]:
    report = run_parity(SUBSET, [parity.group()], claimed_only=True)
    return [row for row in report.rows if row.error is not None]


@pytest.mark.parametrize(
    ("dtype", "fp8"), [(None, "none"), (torch.bfloat16, "none"), (None, "cache"), (None, "linears"), (None, "all")]
)
def test_it_agrees_with_the_reference(dtype: torch.dtype | None, fp8: str) -> None:
    found = rows(GraphParity(torch.device("cpu"), dtype, fp8))
    assert {row.case for row in found} == {"student_A", "student_A_onecaption"}
    assert {row.status for row in found} == {"passed"}


def test_a_pass_that_sees_too_little_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    real = FusedTransformer._self_attention

    def short(self: FusedTransformer, h: torch.Tensor, layer: int, given: object) -> torch.Tensor:
        for span in given.spans:  # type: ignore[attr-defined]
            assert isinstance(span, Span)
            object.__setattr__(span, "filled", span.filled - 1)
        return real(self, h, layer, given)  # type: ignore[arg-type]

    monkeypatch.setattr(FusedTransformer, "_self_attention", short)
    assert {row.status for row in rows(GraphParity(torch.device("cpu")))} == {"failed"}


def test_the_command_says_which_engine_and_which_numbers() -> None:
    shell = CliRunner()
    done = shell.invoke(
        make_app(), ["parity", str(SUBSET), "--engine", "graph", "--dtype", "bfloat16", "--fp8", "cache"]
    )
    assert done.exit_code == 0, done.output
    assert "2 passed, 0 failed" in done.output
    assert "no check for it" not in done.output
