"""Files of the benchmark: what is refused, two of them side by side, and a picture of one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from shotstream.runtime.bench.compare import compare, lines
from shotstream.runtime.bench.plot import write_plot
from shotstream.runtime.bench.report import BenchReport, HistoryCost, Machine, Setting, read_json, write_json
from shotstream.runtime.bench.samples import ChunkSample, summarise
from shotstream.runtime.cli import run
from shotstream.runtime.errors import UserError
from shotstream.runtime.memory import MemoryUse, Plan, PlanItem

SETTING = Setting(
    model="tiny", device="cpu", dtype="float32", threads=1, engine="eager", engine_options="", attention="default",
    ops="default", run_ahead=False, decoder="default", weights="default", weights_sha256="ab" * 32,
    frame_size="256x160", frames_per_second=16, steps="4", chunks=3, shots=8, warm_up=2,
)  # fmt: skip
MACHINE = Machine(
    date="2026-11-22T10:00:00+00:00", commit="0123456789abcdef", changed_files=0, shotstream="0.1", python="3.11",
    torch="2.13", triton="3.6", cuda="none", platform="Linux", processor="a processor", cores=1, load_average=0.5,
    device="cpu", driver="none",
)  # fmt: skip


def report_of(
    scale: float = 1.0, *, shots: int = 8, chunks: int = 3, slow_place: int | None = None, parts: str = "denoise"
) -> BenchReport:
    """Chunks of 100, 200, 300 ms with 2 % of regular noise; `slow_place` takes half as long again."""
    samples: list[ChunkSample] = []
    clock = 0.0
    for shot in range(shots):
        for chunk in range(chunks):
            took = scale * 0.1 * (chunk + 1) * (1 + 0.02 * ((shot * 5 + chunk) % 7 - 3) / 3)
            took *= 1.5 if chunk == slow_place else 1.0
            samples.append(ChunkSample(shot, chunk, 12 if chunk else 9, clock, clock + took, {parts: 0.8 * took}))
            clock += took
    return BenchReport(
        setting=replace(SETTING, shots=shots, chunks=chunks),
        machine=MACHINE,
        summary=summarise(samples, 16),
        memory=MemoryUse(Plan([PlanItem("weights", 50_000_000)]), 200.0, 240.0, [250.0] * shots, 260.0),
        samples=samples,
        history=HistoryCost(2, shots, 1.01, [1.0, 1.01, 1.02]),
    )


# ---------------------------------------------------------------------------------- the file
def test_the_file_has_its_format_and_every_sample(tmp_path: Path) -> None:
    report = report_of()
    write_json(report, tmp_path / "a.json")
    plain = json.loads((tmp_path / "a.json").read_text())
    assert plain["format"] == 2
    assert len(plain["samples"]) == 24
    assert plain["summary"]["positions"][1]["time"]["samples"] == 8
    assert plain["summary"]["positions"][1]["time"]["p99_ms"] is None
    assert read_json(tmp_path / "a.json") == report


def broken(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        write_json(report_of(), path)
        plain = json.loads(path.read_text())
        change(plain)
        path.write_text(json.dumps(plain))

    return write


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: None, "cannot read .*: No such file"),
        (lambda path: path.mkdir(), "cannot read .*: Is a directory"),
        (lambda path: path.write_bytes(b""), "is not a benchmark of format 2"),
        (lambda path: path.write_bytes(b"\xff\xfe{"), "is not a benchmark of format 2"),
        (lambda path: path.write_text("[1, 2]"), "is not a benchmark of format 2"),
        (lambda path: path.write_text('{"model": "tiny", "fps": 50}'), "is not a benchmark of format 2"),
        (broken(lambda plain: plain.update(format=3)), "is a benchmark of format 3, but this version reads format 2"),
        (broken(lambda plain: plain.pop("machine")), "is damaged: .*machine"),
        (broken(lambda plain: plain["samples"][4].update(asked_s="now")), r"is damaged: .*samples\[4\].asked_s"),
        (broken(lambda plain: plain.update(samples=[])), "is damaged: it has no samples"),
        (broken(lambda plain: plain["samples"][0].update(arrived_s=0.0)), "took no time"),
        (broken(lambda plain: plain["setting"].update(frames_per_second=0)), "is damaged"),
    ],
)
def test_files_that_cannot_be_used_get_one_sentence(
    write: Callable[[Path], None], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = tmp_path / "bad.json", tmp_path / "good.json"
    write(bad)
    write_json(report_of(), good)
    with pytest.raises(UserError, match=sentence):
        read_json(bad)
    assert run(["bench", "compare", str(good), str(bad)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert str(bad) in err


def test_figures_that_were_changed_by_hand_do_not_survive_reading(tmp_path: Path) -> None:
    broken(lambda plain: plain["summary"].update(fps=1000.0, positions=[]))(tmp_path / "a.json")
    assert read_json(tmp_path / "a.json") == report_of()


# ---------------------------------------------------------------------------------- side by side
def test_equal_runs_are_the_same_within_noise() -> None:
    found = compare(report_of(), report_of())
    assert [row.verdict for row in found.rows] == ["same within noise"] * 3
    assert found.overall is not None
    assert found.overall.verdict == "same within noise"
    assert found.differences == []
    assert "the same model, setting and machine" in lines(found)


def test_a_slower_run_is_slower_everywhere_and_seen_from_it_the_other_is_faster() -> None:
    found = compare(report_of(), report_of(1.1))
    assert [row.verdict for row in found.rows] == ["slower"] * 3
    assert found.overall is not None
    assert found.overall.value == pytest.approx(1.1, rel=1e-3)
    assert [row.verdict for row in compare(report_of(1.1), report_of()).rows] == ["faster"] * 3


def test_one_slow_place_is_found_where_it_is() -> None:
    found = compare(report_of(), report_of(slow_place=1))
    assert [row.verdict for row in found.rows] == ["same within noise", "slower", "same within noise"]
    assert [row.chunk for row in found.slower_than(30)] == [1]
    assert found.slower_than(60) == []
    text = lines(found, fail_above=30)
    row = next(line for line in text if line.startswith("  chunk 2"))
    assert re.search(r"8 8 .* 1\.500 .*slower$", row)
    assert text[-1] == "slower by more than 30 % beyond doubt: chunk 2"


def test_a_change_that_may_be_noise_does_not_count_as_slower() -> None:
    """Half of B's chunks take 30 % longer: the median does, but its interval reaches down to no change at all."""
    before, after = report_of(), report_of()
    samples = [
        replace(s, arrived_s=s.arrived_s + 0.3 * s.took_s) if s.shot % 2 else s for s in after.samples if s.shot < 7
    ]
    samples += [replace(s, arrived_s=s.arrived_s + 0.3 * s.took_s) for s in after.samples if s.shot in (6, 7)]
    found = compare(before, replace(after, samples=samples))
    assert all(row.ratio is not None and row.ratio.value > 1.2 for row in found.rows)
    assert found.slower_than(10) == []


def test_four_shots_are_too_few_for_a_verdict() -> None:
    found = compare(report_of(), report_of(2.0, shots=4))
    assert {row.verdict for row in found.rows} == {"too few samples"}
    assert found.overall is None
    assert found.slower_than(0) == []
    text = lines(found, fail_above=5)
    assert any("no verdict on fewer than 5 samples a side" in line for line in text)
    assert text[-1].endswith("3 of 3 places have too few samples to tell")


def test_only_places_in_both_are_compared() -> None:
    found = compare(report_of(chunks=2), report_of(chunks=3))
    assert [row.chunk for row in found.rows] == [0, 1]
    assert found.overall is not None
    assert any("A has 2 chunks a shot and B 3" in line for line in lines(found))
    assert [row.chunk for row in compare(report_of(chunks=3), report_of(chunks=2)).rows] == [0, 1]


def test_what_differs_between_machines_and_settings_is_said_first() -> None:
    before = report_of()
    gpu = replace(MACHINE, device="NVIDIA H200", commit="fedcba", changed_files=2, date="2027-01-01", load_average=9.0)
    after = replace(before, machine=gpu, setting=replace(before.setting, dtype="bfloat16", weights_sha256="cd" * 32))
    found = compare(before, after)
    assert {one.name for one in found.differences} == {"device", "commit", "changed_files", "dtype", "weights_sha256"}
    text = lines(found)
    table = text.index("not the same:")
    assert table == 2
    assert ["dtype", "float32", "bfloat16"] in [line.split() for line in text]
    assert ["device", "cpu", "NVIDIA", "H200"] in [line.split() for line in text]


def test_a_gpu_and_a_cpu_both_say_what_they_are() -> None:
    """`device` is a setting (cpu or cuda) and a fact of the machine (which card): neither may hide the other."""
    before = report_of()
    cards = [replace(MACHINE, device=name) for name in ("NVIDIA H200", "NVIDIA L4")]
    sides = [replace(before, machine=card, setting=replace(before.setting, device="cuda")) for card in cards]
    assert [(one.before, one.after) for one in compare(*sides).differences] == [("NVIDIA H200", "NVIDIA L4")]


def test_parts_that_only_one_side_has_count_as_nothing_on_the_other() -> None:
    text = lines(compare(report_of(parts="denoise"), report_of(parts="copy")))
    header = next(line for line in text if line.startswith("mean ms a chunk")).split()[4:]
    change = next(line for line in text if line.startswith("  B - A")).split()[3:]
    assert header == ["denoise", "copy", "other"]
    assert dict(zip(header, change, strict=True)) == {"denoise": "-159.8", "copy": "+159.8", "other": "+0.0"}


def test_the_exit_code_is_one_only_beyond_the_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(tmp_path / name) for name in ("a.json", "b.json")]
    for path, scale in zip(paths, (1.0, 1.1), strict=True):
        write_json(report_of(scale), Path(path))
    assert run(["bench", "compare", *paths]) == 0
    assert run(["bench", "compare", *paths, "--fail-above", "20"]) == 0
    assert run(["bench", "compare", *paths, "--fail-above", "5"]) == 1
    assert run(["bench", "compare", *paths[::-1], "--fail-above", "0"]) == 0
    assert "beyond doubt: chunk 1, 2, 3" in capsys.readouterr().out


# ---------------------------------------------------------------------------------- the picture
def test_a_report_becomes_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_plot(report_of(20.0), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50


@pytest.mark.parametrize(("scale", "words"), [(1.0, "ms"), (0.01, "ms: above this scale")])
def test_a_limit_far_above_all_chunks_is_named_and_not_drawn(scale: float, words: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_plot(report_of(scale), tmp_path / "a.svg")
    assert f"<!-- its frames last 562 / 750 {words} -->" in (tmp_path / "a.svg").read_text()


def test_a_picture_can_be_drawn_from_a_file_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    write_json(report_of(chunks=30, shots=2), tmp_path / "a.json")
    assert run(["bench", "plot", str(tmp_path / "a.json"), str(tmp_path / "new" / "a.svg")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "new" / "a.svg")
    assert (tmp_path / "new" / "a.svg").read_text().lstrip().startswith("<?xml")


def test_without_matplotlib_the_bench_says_so_before_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    monkeypatch.setattr("shotstream.runtime.bench.measure.measure", lambda *_, **__: pytest.fail("it measured"))
    assert run(["bench", "--plot", str(tmp_path / "a.png")]) == 2
    assert "pip install shotstream[plot]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--plot", "a.bmp"], "a.bmp does not say what picture it is"),
        (["--json", "."], ". is a folder; give the name of a file"),
        (["--dtype", "float8"], "there is no number format 'float8' here"),
        (["--engine-option", "fp8=all"], "the engine 'eager' has no options"),
        (["--engine", "graph", "--engine-option", "fp8"], "'fp8' is no option of an engine; write it as NAME=VALUE"),
        (["--engine", "graph", "--engine-option", "fp8=["], "'fp8=[' is no option of an engine"),
        (["--engine", "graph", "--engine-option", "fp8=most"], "fp8 is one of none, cache, linears, all, not 'most'"),
        (["--decoder", "none"], "there is no decoder 'none'; there is"),
        (["--device", "abacus"], "there is no device 'abacus'"),
        (["--model", "huge"], "there is no model 'huge'"),
    ],
)
def test_options_that_cannot_be_met_get_one_sentence(
    options: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["bench", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err.splitlines()[-1]
    assert sum(line.startswith("error:") for line in err.splitlines()) == 1
