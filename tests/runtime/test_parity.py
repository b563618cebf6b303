"""The parity check passes on the reference's numbers, fails on mistakes that matter, and survives bad files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from shotstream.runtime.errors import UserError
from shotstream.runtime.model import rope, transformer
from shotstream.runtime.parity import ParityReport, VectorFile, run_parity, runtime_groups
from shotstream.runtime.parity import student as student_cases
from shotstream.runtime.parity.report import compare, relative_error
from shotstream.runtime.parity.window import ReferenceWindow, Window, window_of

SUBSET = Path(__file__).parents[1] / "vectors" / "subset.pt"


def check(path: Path = SUBSET, only: str | None = None) -> ParityReport:
    """Runs the runtime's own cases."""
    return run_parity(path, runtime_groups(), only=only)


def failures(report: ParityReport) -> list[str]:
    return [f"{row.case} {row.quantity}" for row in report.rows if row.status == "failed"]


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The subset with something changed, in a new file."""
    content = torch.load(SUBSET, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "changed.pt")
    return tmp_path / "changed.pt"


def test_our_code_agrees_with_the_reference() -> None:
    report = check()
    assert failures(report) == []
    assert report.exit_code == 0
    assert {row.case for row in report.rows if row.status == "passed"} >= {"schedule", "student_A", "rope_d32"}


def test_a_single_caption_serves_every_frame() -> None:
    assert check(only="onecaption").verdict == "1 passed, 0 failed"


def test_cases_that_a_file_lacks_are_reported_and_do_not_fail() -> None:
    report = check()
    assert "vae_tiny" in {row.case for row in report.rows if row.status == "absent"}
    assert report.failed == 0


def erf_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    build = VectorFile.model

    def with_erf(*args: Any, **changes: Any) -> nn.Module:
        model = build(*args, **changes)
        for module in model.modules():
            if isinstance(module, nn.GELU):
                module.approximate = "none"
        return model

    monkeypatch.setattr(VectorFile, "model", with_erf)


def swapped_rope_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    table = rope.rope_table

    def swapped(positions: Tensor, flags: Any, height: int, width: int, *rest: Any) -> tuple[Tensor, Tensor]:
        turned = table(positions, flags, width, height, *rest)

        def back(x: Tensor) -> Tensor:
            return x.unflatten(1, (-1, width, height)).transpose(2, 3).flatten(1, 3)

        return back(turned[0]), back(turned[1])

    monkeypatch.setattr(transformer, "rope_table", swapped)


def jump_scaled_by_frequency(monkeypatch: pytest.MonkeyPatch) -> None:
    table = rope.rope_table

    def scaled(positions: Tensor, flags: Any, height: int, width: int, head_dim: int, jump: float) -> Any:
        return table(positions + flags * jump, None, height, width, head_dim, jump)

    monkeypatch.setattr(transformer, "rope_table", scaled)


def last_noisy_step_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student_cases, "clean_pass", lambda *args, **options: None)


@pytest.mark.parametrize(
    "mistake", [erf_gelu, swapped_rope_axes, jump_scaled_by_frequency, last_noisy_step_in_the_cache]
)
def test_a_mistake_that_matters_fails(mistake: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch)
    report = check(only="student_A")
    assert "student_A output" in failures(report)
    assert report.exit_code == 1


def test_a_case_of_unknown_form_is_listed_and_does_not_fail(tmp_path: Path) -> None:
    def add(content: dict[str, Any]) -> None:
        content["a_case_from_the_future"] = {"x": torch.ones(2)}
        content["student_A_roll"] = content["student_A"]
        content["student_A_half"] = {"weights": "weights_A"}

    report = check(changed(tmp_path, add))
    unknown = {row.case for row in report.rows if row.status == "not understood"}
    assert unknown >= {"a_case_from_the_future", "student_A_roll", "student_A_half"}
    assert report.exit_code == 0


def test_a_model_that_a_case_needs_but_the_file_lacks_is_a_failure(tmp_path: Path) -> None:
    report = check(changed(tmp_path, lambda content: content.pop("weights_A")), only="student_A_onecaption")
    assert report.exit_code == 1
    assert "weights_A" in report.rows[0].note


def test_bfloat16_cases_are_compared_loosely(tmp_path: Path) -> None:
    def add(content: dict[str, Any]) -> None:
        content["student_A_bf16"] = dict(content["student_A"])

    report = check(changed(tmp_path, add), only="bf16")
    assert [row.tolerance for row in report.rows] == [2e-2]
    assert report.rows[0].error is not None
    assert report.rows[0].error > 1e-4


def test_the_report_ends_with_the_counts_and_writes_json() -> None:
    report = check(only="schedule")
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
    report.render(console)
    assert console.export_text().rstrip().splitlines()[-1] == "5 passed, 0 failed"
    written = json.loads(report.to_json())
    assert written["passed"] == 5
    assert written["rows"][0]["case"] == "schedule"


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UserError, match="student_A"):
        check(only="no such case")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.pt", b""),
        ("text.pt", b"this is not a vector file"),
        ("cut.pt", SUBSET.read_bytes()[:5000]),
        ("cut_late.pt", SUBSET.read_bytes()[:-3000]),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as refused:
        check(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_a_missing_file_a_folder_and_a_checkpoint_are_refused(tmp_path: Path) -> None:
    torch.save({"generator": {"a": torch.ones(1)}}, tmp_path / "checkpoint.pt")
    for path in (tmp_path / "missing.pt", tmp_path, tmp_path / "checkpoint.pt"):
        with pytest.raises(UserError):
            check(path)


def test_errors_are_relative_to_the_largest_reference_value() -> None:
    reference = torch.tensor([1.0, -4.0])
    assert relative_error(reference + 0.4, reference) == pytest.approx(0.1)
    assert relative_error(torch.zeros(3), reference) == float("inf")
    assert compare("c", "q", torch.tensor([float("nan"), 0.0]), reference).status == "failed"


def test_the_products_ring_equals_the_references_rolling_window(tmp_path: Path) -> None:
    """Nine frames in a window of six, with and without a sink: two caches, one film."""
    content = torch.load(SUBSET, weights_only=True)
    for sink in (0, 3):
        file = VectorFile(SUBSET, content | {f"student_A_roll_w6_sink{sink}": content["student_A"]})
        window = window_of(f"student_A_roll_w6_sink{sink}", content["student_A"])
        assert (window.frames, window.sink) == (6, sink)
        plan = student_cases._Plan.of(file, f"student_A_roll_w6_sink{sink}", window)
        stand_in = ReferenceWindow(plan.model.config, plan.cache.tokens_per_frame, Window(6, sink))
        films = []
        for cache in (plan.cache, stand_in):
            with torch.no_grad():
                conditions = student_cases.conditions_of(plan.model, plan.case["prompt_embeds"], plan.flags, 6)
                steps = file.steps(plan.case)
                films.append(student_cases._run_shot(plan.model, file.schedule(), steps, plan.case, conditions, cache))
        assert relative_error(films[0], films[1]) < 3e-6
        assert relative_error(films[0], content["student_A"]["output"]) > 1e-3
