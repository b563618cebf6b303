"""The benchmark itself, on a model of a few thousand weights: what it records, and what it costs nobody."""

from __future__ import annotations

import itertools
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from shotstream.runtime.bench import machine
from shotstream.runtime.bench.machine import GpuReading, changed_files, parse_reading, read_gpu
from shotstream.runtime.bench.measure import late_over_early, measure
from shotstream.runtime.bench.report import BenchReport, GpuState, read_json, write_json
from shotstream.runtime.bench.text import lines
from shotstream.runtime.memory import MemoryWatch, Plan, PlanItem
from shotstream.runtime.runtime import Runtime
from shotstream.runtime.session import Session
from shotstream.runtime.story import parse_text
from shotstream.runtime.timing import Timings

MakeRuntime = Callable[..., Runtime]
STORY = parse_text("A story.\nFirst.\nSecond.\nThird.\n", "test")


@pytest.fixture
def report(small_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch) -> BenchReport:
    monkeypatch.setattr("shotstream.runtime.bench.measure.PAIRED_ROUNDS", 1)
    return measure(small_runtime(), shots=4, chunks=3, warm_up=1, story=STORY)


def test_every_chunk_is_recorded_on_one_clock(report: BenchReport) -> None:
    samples = report.samples
    assert [(s.shot, s.chunk, s.frames) for s in samples] == [
        (shot, chunk, 12 if chunk else 9) for shot in range(4) for chunk in range(3)
    ]
    assert all(s.took_s > 0 for s in samples)
    # Nothing happens between two chunks, so the clock hardly moves: snapshots and notes of memory do not count.
    assert all(0 <= b.asked_s - a.arrived_s < 0.5 for a, b in itertools.pairwise(samples))
    assert {name for s in samples for name in s.parts_s} == {field.name for field in fields(Timings)}
    assert report.summary.frames == 4 * (9 + 12 + 12)
    assert [p.time.samples for p in report.summary.positions] == [4, 4, 4]


def test_all_work_lies_inside_the_time_of_a_chunk(report: BenchReport) -> None:
    """Also the encoding of frames that a finished shot leaves behind: no chunk took less than its parts."""
    assert all(sum(s.parts_s.values()) <= s.took_s + 1e-6 for s in report.samples)
    firsts = [s for s in report.samples if s.chunk == 0 and s.shot]
    assert all(s.parts_s["context"] > 0 and s.parts_s["text"] > 0 and s.parts_s["clean"] == 0 for s in firsts)
    assert all(s.parts_s["encode"] > 0 for s in firsts)


def test_a_snapshot_is_in_no_chunks_time(small_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    take, taken = Session.snapshot, []

    def slow(session: Session) -> bytes:
        time.sleep(0.5)
        taken.append(session.shots_begun)
        return take(session)

    monkeypatch.setattr(Session, "snapshot", slow)
    monkeypatch.setattr("shotstream.runtime.bench.measure.PAIRED_ROUNDS", 1)
    made = measure(small_runtime(), shots=3, chunks=1, warm_up=1, story=STORY)
    assert taken == [1, 2]
    assert all(s.took_s < sum(s.parts_s.values()) + 0.4 for s in made.samples)


def test_the_report_says_what_ran_on_what(report: BenchReport) -> None:
    setting, facts = report.setting, report.machine
    assert (setting.model, setting.engine, setting.dtype, setting.device) == ("small", "recording", "float32", "cpu")
    assert (setting.frame_size, setting.steps) == ("96x64", "4 (1000 740 500 260)")
    assert (setting.decoder, setting.attention) == ("default (TinyVAE)", "sdpa")
    assert (setting.ops, setting.engine_options, setting.run_ahead) == ("default", "", False)
    assert (setting.shots, setting.chunks, setting.warm_up, setting.threads) == (4, 3, 1, 1)
    assert len(setting.weights_sha256) == 64
    assert (facts.torch, facts.device, facts.driver) == (str(torch.__version__), "cpu", "none")
    assert facts.cores >= 1
    assert (facts.gpu_before, facts.gpu_after) == (None, None)


def test_memory_is_noted_after_every_shot(report: BenchReport) -> None:
    assert len(report.memory.after_shot_mb) == 4
    assert report.memory.peak_mb >= max(report.memory.after_shot_mb)
    assert report.memory.of_plan is None
    assert "none for this model" in "\n".join(lines(report))


def test_a_watch_from_before_loading_brings_its_plan(small_runtime: MakeRuntime) -> None:
    watch = MemoryWatch(torch.device("cpu"), Plan([PlanItem("weights", 1_000_000), PlanItem("room", 500_000, False)]))
    made = measure(small_runtime(), shots=1, chunks=1, warm_up=0, story=STORY, memory=watch)
    text = "\n".join(lines(made))
    assert f"{made.memory.taken_mb / 1.5:.2f} x the plan of 1.5 MB" in text
    assert "~0.5 MB" in text


def test_warm_up_shots_are_made_but_not_counted(small_runtime: MakeRuntime) -> None:
    runtime = small_runtime()
    told: list[int] = []
    made = measure(runtime, shots=2, chunks=2, warm_up=3, story=STORY, on_shot=told.append)
    assert told == [-3, -2, -1, 0, 1]
    assert len(made.samples) == 4
    assert len(runtime.engine.latents) == (3 + 2) * 2  # type: ignore[attr-defined]


def test_a_short_benchmark_says_nothing_about_history(small_runtime: MakeRuntime) -> None:
    made = measure(small_runtime(), shots=1, chunks=1, warm_up=0, story=STORY)
    assert made.history is None
    text = "\n".join(lines(made))
    assert "not measured: fewer than three shots" in text
    assert "in the only shot" in text


def test_a_report_survives_its_file_unchanged(report: BenchReport, tmp_path: Path) -> None:
    write_json(report, tmp_path / "bench.json")
    assert read_json(tmp_path / "bench.json") == report


def test_the_text_has_every_position_and_never_speed_alone(report: BenchReport) -> None:
    text = lines(report)
    assert max(map(len, text)) <= 150
    assert sum(line.startswith("  chunk ") for line in text) == 2 * 3
    speed = next(line for line in text if line.startswith("speed"))
    assert "fps" in speed
    assert "real time" in speed
    assert "slowest chunk" in speed
    assert any("fewer than 100 samples: p95 and max are the largest" in line for line in text)
    assert any(line.startswith("history") and "shot 4 against shot 2" in line for line in text)


def test_the_cost_of_history_is_measured_in_turns(small_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session with three shots behind it is made to look a quarter slower than one with a single shot."""
    runtime = small_runtime()
    saved = []
    with runtime.open("A story.") as session:
        for number in range(3):
            session.begin_shot(f"Shot {number}.", 1)
            list(session.chunks())
            saved.append(session.snapshot())
    clock = [0.0]
    make = Session.next_chunk

    def next_chunk(session: Session) -> object:
        clock[0] += 1.25 if session.shots_begun > 2 else 1.0
        return make(session)

    monkeypatch.setattr(Session, "next_chunk", next_chunk)
    monkeypatch.setattr("shotstream.runtime.bench.measure.time.perf_counter", lambda: clock[0])
    assert late_over_early(runtime, saved[0], saved[2], "Next.", chunks=2, rounds=2) == pytest.approx([1.25] * 2)


def test_a_story_is_kept_when_there_is_no_memory_to_measure_history(
    small_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("shotstream.runtime.bench.measure.late_over_early", fail)
    made = measure(small_runtime(), shots=3, chunks=1, warm_up=0, story=STORY)
    assert len(made.samples) == 3
    assert any("no memory for a second session" in line for line in lines(made))


# ---------------------------------------------------------------------------------- the machine
def test_what_nvidia_smi_says_is_read() -> None:
    found = parse_reading("575.57.08, 1980, 3201, 1980, 41, 118.52\n")
    assert found == GpuReading("575.57.08", GpuState(1980, 3201, 1980, 41, 118.52))
    assert parse_reading("575.57.08, 1980, 3201, 1980, 41, [N/A]\n").state == GpuState(1980, 3201, 1980, 41, None)
    for nonsense in ("", "\n", "No devices were found\n"):
        assert parse_reading(nonsense) == GpuReading("unknown", None)


@pytest.mark.parametrize(
    ("script", "driver"),
    [
        ("echo '550.1, 1000, 2000, 1500, 40, 100.0'", "550.1"),
        ("echo 'Field \"clocks.sm\" is not a valid field'; exit 2", "unknown"),
        ("sleep 60", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_gpu_is_asked_by_its_uuid_and_silence_is_unknown(
    script: str | None, driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Card:
        uuid = "1234-abcd"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    monkeypatch.setattr(machine, "_PATIENCE_S", 1.0)
    program = tmp_path / "nvidia-smi"
    if script is not None:
        program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n{script.replace("sleep", "exec sleep")}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    found = read_gpu(torch.device("cuda"), str(program))
    assert found is not None
    assert found.driver == driver
    if script is not None:
        assert "--id=GPU-1234-abcd" in (tmp_path / "asked").read_text()
    assert read_gpu(torch.device("cpu")) is None


def test_changed_files_are_counted_where_git_tells(tmp_path: Path) -> None:
    assert changed_files(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    try:
        subprocess.run([*git, "init", "-q"], check=True)
    except OSError:
        pytest.skip("no git here")
    (tmp_path / "file").write_text("one")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    assert changed_files(tmp_path) == 0
    (tmp_path / "file").write_text("two")
    (tmp_path / "new").write_text("not tracked")
    assert changed_files(tmp_path) == 1


def test_help_loads_no_torch_and_other_rooms_measurements_are_found() -> None:
    script = (
        "import sys; from shotstream.runtime.cli import run\n"
        "assert run(['bench', '--help']) == run(['bench', 'compare', '--help']) == 0\n"
        "assert 'torch' not in sys.modules, 'torch was loaded for --help'\n"
        "assert run(['bench', 'bridge', '--help']) == 0"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for option in ("--warm-up", "--decoder", "--dtype", "--plot", "compare", "--fail-above", "--soak"):
        assert option in done.stdout


@pytest.mark.gpu
def test_on_a_gpu_clocks_driver_and_peak_are_in_the_report(small_runtime: MakeRuntime) -> None:
    device = torch.device("cuda")
    watch = MemoryWatch(device, Plan([PlanItem("all", 10_000_000)]))
    made = measure(small_runtime(device="cuda"), shots=3, chunks=2, story=STORY, memory=watch)
    assert made.setting.dtype == "bfloat16"
    assert made.memory.gpu is not None
    assert 0 < made.memory.gpu.after_load_mb <= made.memory.gpu.peak_mb <= made.memory.gpu.reserved_peak_mb
    assert made.machine.device == torch.cuda.get_device_name()
    assert made.machine.driver != "none"
    assert lines(made)
