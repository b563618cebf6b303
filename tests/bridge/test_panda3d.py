"""The Panda3D example, played by a script of key presses without a window, against the server that it starts itself."""

from __future__ import annotations

import ctypes.util
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

GAME = [sys.executable, "-m", "shotstream.bridge.examples.panda3d"]
STEPS = ["1-start", "2-meet", "3-choice", "4-beach", "5-dance"]


def play(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*GAME, *map(str, arguments)]
    env = {**os.environ, **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)


def needs_panda3d() -> None:
    if importlib.util.find_spec("panda3d") is None:
        pytest.skip("panda3d is missing; it comes with: pip install 'shotstream[panda3d]'")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """One play for all tests; small pictures, quickly made."""
    needs_panda3d()
    if ctypes.util.find_library("EGL") is None:
        pytest.skip("EGL is missing; on Debian and Ubuntu: apt-get install libegl1 libgl1 libgl1-mesa-dri")
    out = tmp_path_factory.mktemp("panda3d")
    options = ["--model", "mock", "--size", "128x80", "--chunk-s", "0.2", "--window", "480x270"]
    done = play("--script", out, *options)
    if "cannot open anything to draw on" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return done, out


@pytest.fixture(scope="module")
def report(played: tuple[subprocess.CompletedProcess[str], Path]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((played[1] / "report.json").read_text())
    return found


def picture(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(float)


def on_screen(window: Path, corners: list[list[float]], width: int, height: int) -> Any:
    """What stands on the screen in the scene, straightened to a frame's size."""
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, ((0, 0), (width, 0), (width, height), (0, height)), strict=True):
        rows += [[u, v, 1, 0, 0, 0, -u * x, -v * x], [0, 0, 0, u, v, 1, -u * y, -v * y]]
        values += [x, y]
    matrix = tuple(np.linalg.solve(np.array(rows), np.array(values)))
    with Image.open(window) as image:
        flat = image.convert("RGB").transform(
            (width, height), Image.Transform.PERSPECTIVE, matrix, Image.Resampling.BILINEAR
        )
    return np.asarray(flat).astype(float)


def test_the_script_leaves_nothing_to_say(played: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    assert "Traceback" not in played[0].stderr
    assert {file.name for file in played[1].glob("*.png")} == {f"{n}{end}.png" for n in STEPS for end in ("", "-frame")}


@pytest.mark.parametrize("step", STEPS)
def test_the_window_shows_a_scene(played: tuple[subprocess.CompletedProcess[str], Path], step: str) -> None:
    window = picture(played[1] / f"{step}.png")
    assert window.shape == (270, 480, 3)
    assert min(window.std((0, 1))) > 15
    assert len(np.unique(window.reshape(-1, 3).astype(int) // 16, axis=0)) > 60


@pytest.mark.parametrize("place", range(len(STEPS)))
def test_the_screen_in_the_scene_shows_the_received_frame(
    played: tuple[subprocess.CompletedProcess[str], Path], report: dict[str, Any], place: int
) -> None:
    taken = report["pictures"][place]
    frame = picture(played[1] / f"{taken['name']}-frame.png")
    seen = on_screen(played[1] / f"{taken['name']}.png", taken["corners"], frame.shape[1], frame.shape[0])
    inside = np.s_[4:-4, 4:-4]
    # the ground is one colour and must be met exactly; letters and squares are smaller than the window's pixels
    assert np.median(np.abs(seen - frame)[inside]) <= 3
    assert np.abs(seen - frame)[inside].mean() < 14
    # colours of shots are drawn: two may be close, but not all of them
    others = [each for each in report["pictures"] if each["caption"] != taken["caption"]]
    apart = [np.median(np.abs(seen - picture(played[1] / f"{each['name']}-frame.png"))[inside]) for each in others]
    assert max(apart) > 12


def test_the_caption_below_the_screen_is_what_the_model_was_given(report: dict[str, Any]) -> None:
    asked = {each["name"]: each["caption"] for each in report["asked"]}
    shown = {each["name"]: each["caption"] for each in report["pictures"]}
    assert shown["2-meet"] == asked["meet"]
    assert shown["5-dance"] == asked["dance"]
    assert "the red cat waves and the white rabbit waves" in asked["meet"]
    assert "the green robot dances" in asked["beach"], "the way to the beach brings the robot into the film"


def test_no_frame_is_missing_and_nothing_was_refused(report: dict[str, Any]) -> None:
    assert report["gaps"] == 0
    assert report["broken"] == 0
    assert report["refusals"] == []
    assert all(0 < each["seen_ms"] < 10_000 for each in report["asked"])


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_server_that_is_not_there_is_one_sentence(played: object, tmp_path: Path) -> None:
    done = play("--connect", f"tcp://127.0.0.1:{closed_port()}", "--script", tmp_path, "--window", "128x72")
    assert done.returncode == 2
    assert "no server answers at tcp://127.0.0.1:" in done.stderr.splitlines()[-1]


def test_a_server_that_cannot_start_is_one_sentence(played: object, tmp_path: Path) -> None:
    done = play("--model", "mock", "--size", "huge", "--script", tmp_path, "--window", "128x72")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("panda3d example: the server has stopped: ")
    assert "--size 'huge' is no size" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there always is a display")
def test_no_display_is_one_sentence() -> None:
    needs_panda3d()
    done = play(DISPLAY="", WAYLAND_DISPLAY="")
    assert done.returncode == 2
    assert "needs a display; --script DIR needs none" in done.stderr.splitlines()[-1]


def test_panda3d_missing_is_one_sentence(tmp_path: Path) -> None:
    for name in ("panda3d", "direct"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not here')\n")
    done = play("--script", tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "Panda3D is not installed; it comes with: pip install 'shotstream[panda3d]'" in done.stderr
