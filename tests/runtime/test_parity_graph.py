"""Engines against the reference's numbers: exact in float32, near in 16 and 8 bits; mistakes are seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from shotstream.runtime.cli.app import make_app
from shotstream.runtime.engine import EagerEngine
from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.passes import FusedTransformer, Span
from shotstream.runtime.parity import Row, run_parity
from shotstream.runtime.parity.engines import EngineParity
from shotstream.runtime.parity.multishot import _Story
from shotstream.runtime.parity.vectors import VectorFile

SUBSET = Path(__file__).parents[1] / "vectors" / "subset.pt"


def rows(parity: EngineParity) -> list[Row]:
    report = run_parity(SUBSET, [parity.group()], claimed_only=True)
    return [row for row in report.rows if row.error is not None]


@pytest.mark.parametrize(
    ("dtype", "fp8"), [(None, "none"), (torch.bfloat16, "none"), (None, "cache"), (None, "linears"), (None, "all")]
)
def test_it_agrees_with_the_reference(dtype: torch.dtype | None, fp8: str) -> None:
    found = rows(EngineParity(torch.device("cpu"), dtype, {"fp8": fp8, "exact_blocks": 0}))
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
    assert {row.status for row in rows(EngineParity(torch.device("cpu")))} == {"failed"}


def test_other_engines_are_checked_too_and_eager_like_ones_refused() -> None:
    shell = CliRunner()
    done = shell.invoke(make_app(), ["parity", str(SUBSET), "--engine", "torch-segments", "--only", "onecaption"])
    assert done.exit_code == 0, done.output
    assert "1 passed, 0 failed" in done.output
    refused = shell.invoke(make_app(), ["parity", str(SUBSET), "--engine-option", "fp8=all"])
    assert isinstance(refused.exception, UserError)
    assert "go with another --engine than eager" in str(refused.exception)


def test_an_engine_that_is_not_built_on_graph_fails_with_a_sentence() -> None:
    report = run_parity(SUBSET, [EngineParity(torch.device("cpu"), engine="mine", make=EagerEngine).group()])
    row = next(row for row in report.rows if row.case == "student_A")
    assert row.status == "failed"
    assert "'mine' is neither" in row.note


@pytest.mark.parametrize("spoilt", [False, True])
def test_stories_choose_their_context_as_the_product_does(spoilt: bool) -> None:
    """No story is in the subset: one is made by the loop that is held against the reference's."""
    subset = VectorFile.load(SUBSET)
    shot = subset.cases["student_A"]
    noise, shots, generator = shot["noise"][:, :6], 3, torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    toy = {"A": draw(noise.shape[2], 3) * 0.5, "b": draw(noise.shape[2]) * 0.1, "B": draw(3, noise.shape[2]) * 0.3}
    captions = draw(shots, *shot["prompt_embeds"].shape[1:])
    steps = len(subset.steps(shot)) - 1
    chunk = noise[:, :3].flatten(0, 1)
    case = {
        "weights": shot["weights"],
        "toy_vae": toy,
        "prompt_embeds": [captions[: k + 1] for k in range(shots)],
        "draws": [draw(*s) for _ in range(shots) for s in [noise.shape, *[tuple(chunk.shape)] * (2 * steps)]],
        "latents": [torch.zeros_like(noise)] * shots,
    }
    with torch.no_grad():
        story = _Story(VectorFile(SUBSET, {**subset.content, "multishot_T": case}), "multishot_T")
        made = [story.play(number, record=False) for number in range(shots)]
    case |= {"cond_latents": [cond for cond, _ in made], "latents": [z for _, z in made]}
    if spoilt:
        case["latents"][-1] = case["latents"][-1] + 1e-4
    file = VectorFile(SUBSET, {**subset.content, "multishot_T": case})
    found = list(EngineParity(torch.device("cpu")).check(file, "multishot_T"))
    assert [row.status for row in found] == ["passed"] * 5 + ["failed" if spoilt else "passed"]


def test_the_command_says_which_engine_and_which_numbers() -> None:
    shell = CliRunner()
    done = shell.invoke(
        make_app(), ["parity", str(SUBSET), "--engine", "graph", "--dtype", "bfloat16", "--fp8", "cache"]
    )
    assert done.exit_code == 0, done.output
    assert "2 passed, 0 failed" in done.output
    assert "no check for it" not in done.output
