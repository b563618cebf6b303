"""Engines side by side: each makes the same film, in turns; what differs in frames and in time is seen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from shotstream.runtime.bench.engines import lines, side_by_side
from shotstream.runtime.cli.app import make_app
from shotstream.runtime.errors import UserError
from shotstream.runtime.runtime import Runtime
from shotstream.runtime.session import Session
from shotstream.runtime.story import parse_text

MakeRuntime = Callable[..., Runtime]
STORY = parse_text("A story.\nFirst.\nSecond.\nThird.\n", "test")


def test_equal_engines_make_equal_frames_and_others_do_not(small_runtime: MakeRuntime) -> None:
    runtimes = {name: small_runtime(engine="eager") for name in ("a", "b", "c")}
    engine: Any = runtimes["c"].engine
    real = engine.denoise
    engine.denoise = lambda *arguments: real(*arguments) + 0.05
    rows = side_by_side(runtimes, story=STORY, shots=2, chunks=3)
    assert [row.engine for row in rows] == ["a", "b", "c"]
    assert (rows[0].psnr_db, rows[1].psnr_db) == (None, None)
    assert rows[2].psnr_db is not None
    assert 20 < rows[2].psnr_db < 70
    assert rows[0].ratio is None
    assert rows[1].ratio is not None
    assert all(0 < row.steps_ms < row.chunk_ms for row in rows)
    shown = lines(rows)
    assert shown[1].endswith("-")
    assert shown[2].endswith("equal")
    assert shown[3].endswith(f"{rows[2].psnr_db:.1f}")


def test_a_slow_engine_is_seen(small_runtime: MakeRuntime) -> None:
    runtimes = {name: small_runtime(engine="eager") for name in ("quick", "slow")}
    engine: Any = runtimes["slow"].engine
    real = engine.denoise

    def late(*arguments: Any) -> torch.Tensor:
        time.sleep(0.2)
        out: torch.Tensor = real(*arguments)
        return out

    engine.denoise = late
    quick, slow = side_by_side(runtimes, story=STORY, shots=2, chunks=3)
    assert slow.steps_ms > quick.steps_ms + 150
    assert slow.ratio is not None
    assert slow.ratio.low > 1


def test_they_take_turns(small_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes = {name: small_runtime(engine="eager") for name in ("a", "b")}
    names, asked = {runtime: name for name, runtime in runtimes.items()}, []
    real = Session.next_chunk

    def noted(session: Session, *arguments: Any) -> Any:
        asked.append(names[session.runtime])
        return real(session, *arguments)

    monkeypatch.setattr(Session, "next_chunk", noted)
    side_by_side(runtimes, story=STORY, shots=1, chunks=2, warm_up=1)
    assert asked == list("abbaabba")


def test_the_command_writes_what_it_shows(tmp_path: Path) -> None:
    file = tmp_path / "engines.json"
    arguments = ["bench", "engines", "eager", "graph:capture=false", "--weights", "random", "--shots", "1"]
    done = CliRunner().invoke(make_app(), [*arguments, "--chunks", "1", "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert "graph:capture=false" in done.output
    assert [row["engine"] for row in json.loads(file.read_text())["rows"]] == ["eager", "graph:capture=false"]


@pytest.mark.parametrize("names", [["eager"], ["eager", "eager"]])
def test_one_engine_alone_is_refused(names: list[str]) -> None:
    done = CliRunner().invoke(make_app(), ["bench", "engines", *names])
    assert isinstance(done.exception, UserError)
    assert "name two engines or more" in str(done.exception)
