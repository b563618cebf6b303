"""What a stage leaves to read: the log, the same figures in TensorBoard, each step once, its speed, and sheets."""

from __future__ import annotations

import errno
import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from distributed_jobs import ALONE, Codec, alone, make_stage, train
from torch import Tensor

from shotstream.runtime.errors import UserError
from shotstream.training.distributed.flops import Work
from shotstream.training.stages import trainer
from shotstream.training.stages.journal import Journal
from shotstream.training.stages.sheets import to_uint8
from shotstream.training.stages.trainer import LoopConfig, run_stage

needs_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")


def lines_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def scalars_of(out: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every figure, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard")).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


@needs_tensorboard
def test_tensorboard_shows_the_log_of_a_stage_that_failed_and_went_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read its videos"):
        alone(train, tmp_path, tmp_path / "out", "teacher", None, None, "refused")  # after step 5; saved at step 4
    assert [line["step"] for line in lines_of(tmp_path / "out")] == [1, 2, 3, 4, 5]
    alone(train, tmp_path, tmp_path / "out", "teacher")
    lines = lines_of(tmp_path / "out")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8]
    shown = scalars_of(tmp_path / "out")
    assert shown.keys() == {name for line in lines for name in line} - {"step"}
    assert {"grad_norm", "tokens_per_s", "tflops", "steps_per_s"} < shown.keys()
    for name, points in shown.items():
        logged = [(line["step"], line[name]) for line in lines if name in line]
        assert [step for step, _ in points] == [step for step, _ in logged], name
        assert [value for _, value in points] == pytest.approx([value for _, value in logged]), name


@needs_tensorboard
def test_a_line_that_a_killed_run_began_is_dropped(tmp_path: Path) -> None:
    first = Journal(tmp_path, 0)
    for step in (1, 2, 3):
        first.write({"step": step, "loss": float(step)})
    first.close()
    (tmp_path / "log.jsonl").open("a").write('{"step": 4, "lo')
    second = Journal(tmp_path, 2)
    second.write({"step": 3, "loss": 30.0})
    second.close()
    assert scalars_of(tmp_path)["loss"] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [line["loss"] for line in lines_of(tmp_path)] == [1.0, 2.0, 30.0]


def test_a_log_that_cannot_be_written_is_a_sentence_and_keeps_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n')

    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write .*log.jsonl: No space left on device"):
        Journal(tmp_path, 1)
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2]


def test_without_tensorboard_a_stage_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    journal = Journal(tmp_path, 0)
    journal.write({"step": 1, "loss": 1.0})
    journal.close()
    assert "no TensorBoard scalars" in caplog.text
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 1


class _Clocked:
    """A stage whose steps take two seconds, and whose checkpoints take a hundred, on a clock of its own."""

    name = "clocked"

    def __init__(self) -> None:
        self.now = 0.0

    def step(self, index: int, lr_factor: float) -> dict[str, float]:
        self.now += 2
        return {"loss": float(index)}

    def work(self, index: int) -> Work | None:
        return Work(tokens=300, flop=12e12)

    def state_dict(self) -> dict[str, Any]:
        self.now += 100
        return {"weight": torch.zeros(1)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def sample_sheet(self, path: Path) -> None:
        self.now += 100


def test_speed_is_that_of_the_steps_and_a_share_of_all_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = _Clocked()
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: stage.now))
    monkeypatch.setattr(trainer, "peak_tflops", lambda device: 24.0)
    run_stage(stage, LoopConfig(4, log_every=2, save_every=1, sheet_every=1), tmp_path)
    for line in lines_of(tmp_path):
        assert (line["tokens_per_s"], line["tflops"], line["of_peak"]) == (150.0, 6.0, 0.25)
    four = trainer._Gauge(replace(ALONE, size=4))
    four.add(stage, 0, 1.0)
    assert four.line(1, 0.0, 0)["of_peak"] == 0.0625


def test_on_a_gpu_the_log_has_the_most_memory_that_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "peak_tflops", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**29)
    alone = trainer._Gauge(ALONE)
    alone.add(_Clocked(), 0, 1.0)
    assert "peak_gib" not in alone.line(1, 0.0, 0)
    gpu = trainer._Gauge(replace(ALONE, device=torch.device("cuda")))
    gpu.add(_Clocked(), 0, 1.0)
    assert gpu.line(1, 0.0, 0)["peak_gib"] == 1.5


class _Half(Codec):
    """Pixels in bfloat16, as the codec of a GPU gives them."""

    def decode(self, z_BFCHW: Tensor) -> Tensor:
        return super().decode(z_BFCHW).bfloat16()


class _Rounded(_Half):
    """The same pixels in float32."""

    def decode(self, z_BFCHW: Tensor) -> Tensor:
        return super().decode(z_BFCHW).float()


@pytest.mark.parametrize("name", ["teacher", "intra"])
def test_sheets_of_a_codec_in_bfloat16_lose_nothing_more(tmp_path: Path, name: str) -> None:
    stage = make_stage(name, tmp_path, ALONE, precision="autocast")
    for vae in (_Half(), _Rounded()):
        stage.vae = vae
        stage.sample_sheet(tmp_path / f"{type(vae).__name__}.png")
    assert (tmp_path / "_Half.png").read_bytes() == (tmp_path / "_Rounded.png").read_bytes()


def test_pixels_become_the_nearest_of_256_levels() -> None:
    levels = torch.arange(256) / 127.5 - 1
    assert to_uint8(levels.reshape(1, 1, 16, 16).expand(1, 3, 16, 16))[0, ..., 1].flatten().tolist() == list(range(256))
