"""The installed `shotstream` command in processes of its own: films that can be played, whatever ends them."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import pytest
from PIL import Image

COMMAND = [sys.executable, "-c", "from shotstream.runtime.cli import main; main()"]
MODEL = ["--model", "tiny", "--weights", "random", "--threads", "1"]
PATIENCE = 600  # seconds; two are enough unless the machine is busy
TEXT_STORY = "A story about a red cat.\nWide shot: the red cat waves.\nClose-up: the red cat stands still.\n"


def play(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "play", *arguments, *MODEL],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@contextmanager
def playing(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A film in the making, with pipes; killed at the end if it is still running."""
    process = subprocess.Popen(
        [*COMMAND, "play", *arguments, *MODEL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def read_until(process: subprocess.Popen[bytes], text: bytes, seconds: float = PATIENCE) -> bytes:
    """What the process wrote to standard error up to `text`."""
    assert process.stderr is not None
    seen = b""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        while text not in seen:
            assert selector.select(max(0, deadline - time.monotonic())), f"only {seen!r} within {seconds} s"
            part = os.read(process.stderr.fileno(), 4096)
            assert part, f"ended with {seen!r}"
            seen += part
    return seen


def count_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_story_file_becomes_a_film_a_sheet_and_a_record_and_the_seed_decides(tmp_path: Path) -> None:
    story = tmp_path / "story.yaml"
    story.write_text(
        'global_caption: "A story about a {hero}."\ncast: {hero: red cat}\nshots:\n'
        '  - {caption: "Wide shot: the {hero} waves.", chunks: 2}\n  - {caption: "Close-up: the {hero}.", chunks: 1}\n'
    )
    records = []
    for out, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        done = play(str(story), "--out", str(tmp_path / out), "--seed", seed)
        assert done.returncode == 0, done.stderr
        records.append(json.loads((tmp_path / out / "story.json").read_text()))
    assert done.stdout.split() == [
        str(tmp_path / "c" / name) for name in ("story.mp4", "contact_sheet.png", "story.json")
    ]
    assert "shot 1/2: 2 chunks, 21 frames" in done.stderr
    assert "first frame after" in done.stderr
    assert count_frames(tmp_path / "c" / "story.mp4") == 30
    with av.open(str(tmp_path / "c" / "story.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate, stream.width, stream.height) == ("h264", 16, 256, 160)
    with Image.open(tmp_path / "c" / "contact_sheet.png") as sheet:
        assert sheet.width > 5 * 256
    record = records[0]
    assert (record["complete"], record["seed"], record["frames"], record["model"]) == (True, 5, 30, "tiny")
    assert [shot["caption"] for shot in record["shots"]] == ["Wide shot: the red cat waves.", "Close-up: the red cat."]
    assert {"context", "denoise", "clean", "decode"} <= set(record["shots"][0]["chunks"][0]["seconds"])
    assert record["frames_sha256"] == records[1]["frames_sha256"] != records[2]["frames_sha256"]


def test_lines_are_played_while_later_lines_are_not_written_yet(tmp_path: Path) -> None:
    with playing("-", "--chunks", "1", "--out", str(tmp_path)) as process:
        assert process.stdin is not None
        process.stdin.write(b"A story about a red cat.\nWide shot: the red cat waves.\n")
        process.stdin.flush()
        read_until(process, b"shot 1: 1 chunks, 9 frames")  # made, though nobody knows of a second shot
        assert count_frames(tmp_path / "story.mp4") >= 8
        process.stdin.write(b"Close-up: the red cat stands still.\n")
        process.stdin.flush()
        read_until(process, b"shot 2: 1 chunks, 9 frames")
        process.stdin.close()
        assert process.wait(PATIENCE) == 0
    assert count_frames(tmp_path / "story.mp4") == 18
    assert json.loads((tmp_path / "story.json").read_text())["complete"] is True


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_in_the_middle_leaves_everything_playable(tmp_path: Path, number: signal.Signals, code: int) -> None:
    story = tmp_path / "story.txt"
    story.write_text(TEXT_STORY)
    out = tmp_path / "out"
    with playing(str(story), "--chunks", "50", "--out", str(out)) as process:
        wait_for_frames(out / "story.mp4", 20)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert b"Traceback" not in err
    assert err.splitlines()[-1].startswith(b"stopped after ")
    frames = count_frames(out / "story.mp4")
    record = json.loads((out / "story.json").read_text())
    assert frames == record["frames"] >= 20
    assert record["complete"] is False
    assert (out / "contact_sheet.png").exists()


def test_a_killed_process_leaves_the_frames_made_so_far_playable(tmp_path: Path) -> None:
    story = tmp_path / "story.txt"
    story.write_text(TEXT_STORY)
    with playing(str(story), "--chunks", "50", "--out", str(tmp_path)) as process:
        wait_for_frames(tmp_path / "story.mp4", 20)
        process.kill()
        process.wait()
    assert count_frames(tmp_path / "story.mp4") >= 20


def wait_for_frames(path: Path, frames: int) -> None:
    """Wait until the growing file can be played up to that many frames."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if count_frames(path) >= frames:
                return
        except (OSError, ValueError, IndexError):  # not there yet, half a header, or no frame in it yet
            pass
        time.sleep(0.1)
    pytest.fail(f"{path} did not reach {frames} frames")


def test_a_live_line_that_is_too_long_ends_the_film_with_one_sentence_and_keeps_it(tmp_path: Path) -> None:
    lines = "A story about a red cat.\nthe red cat waves\n" + "word " * 900 + "\n"
    done = play("-", "--chunks", "1", "--out", str(tmp_path), stdin=lines)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("error: standard input, line 3:") for line in done.stderr.splitlines()) == 1
    assert count_frames(tmp_path / "story.mp4") == 9


def test_live_without_a_display_draws_frames_on_standard_output(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = subprocess.run(
        [*COMMAND, "play", "-", "--live", "--chunks", "1", "--out", str(tmp_path), *MODEL],
        input="A red cat.\nit waves\n", capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "drawing in the terminal" in done.stderr
    assert "▀" in done.stdout


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    story = tmp_path / "story.txt"
    story.write_text(TEXT_STORY)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    done = play(str(story), "--out", str(locked / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write to the folder")


def test_the_demo_plays_from_the_installed_package_and_takes_the_option_it_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "demo", "--chunks", "1", "--choose", "city", "--out", str(tmp_path), "--weights", "random",
         "--threads", "1"],
        capture_output=True, text=True, check=False, timeout=PATIENCE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Where does the red cat go? city:" in done.stderr
    record = json.loads((tmp_path / "story.json").read_text())
    assert (record["choices"][0]["option"], record["choices"][0]["before_shot"]) == ("city", 4)
    assert "city at night" in record["shots"][-1]["global_caption"]
    assert count_frames(tmp_path / "story.mp4") == 9 * 9


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are for Unix")
def test_in_a_terminal_the_story_asks_and_goes_on_as_it_is_told(tmp_path: Path) -> None:
    import pty

    story = tmp_path / "story.yaml"
    story.write_text(
        "global_caption: A red cat.\nshots:\n- caption: it waves\n- choice: Where to?\n  options:\n"
        "    sea: {label: to the sea, shots: [{caption: it swims}]}\n"
        "    city: {label: to the city, shots: [{caption: it walks}]}\n"
    )
    ours, theirs = pty.openpty()
    command = [*COMMAND, "play", str(story), "--chunks", "1", "--out", str(tmp_path), *MODEL]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    try:
        shown = b""
        while b"choose" not in shown:
            shown += os.read(ours, 4096)
        assert count_frames(tmp_path / "story.mp4") >= 8  # the first shot is there before the question
        os.write(ours, b"city\n")
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert process.returncode == 0, err
    assert b"to the sea" in shown
    record = json.loads((tmp_path / "story.json").read_text())
    assert [shot["caption"] for shot in record["shots"]] == ["it waves", "it walks"]
