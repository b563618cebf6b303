"""Sinks: files that can be read whenever the film stops, and previews that never hold it up."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

from shotstream.runtime.errors import UserError
from shotstream.runtime.sinks.base import (
    FilmChunk,
    FilmInfo,
    Sink,
    ensure_writable,
    shot_frames,
)
from shotstream.runtime.sinks.contact_sheet import ContactSheetSink
from shotstream.runtime.sinks.mp4 import Mp4Sink
from shotstream.runtime.sinks.pace import Pacer
from shotstream.runtime.sinks.plugin import SINKS, SinksPlugin
from shotstream.runtime.sinks.story_json import StoryJsonSink
from shotstream.runtime.sinks.terminal import TerminalSink, half_blocks
from shotstream.runtime.storyline import Scene, Taken

INFO = FilmInfo(64, 40, 16, "test", 7, "A story about a red cat.", {"shotstream": "0"})
TIMES = {"text": 0.01, "context": 0.02, "denoise": 0.3, "clean": 0.1, "decode": 0.05, "total": 0.48}


def film(shots: int, chunks: int) -> list[FilmChunk]:
    found = []
    for shot in range(shots):
        for index in range(chunks):
            count = 12 if index else 9
            frames = np.full((count, 40, 64, 3), 40 * shot + 5 * index, np.uint8)
            frames[:, :20] = 255 - 30 * shot
            found.append(FilmChunk(shot, index, chunks, f"Wide shot: number {shot}.", frames, TIMES))
    return found


def play(sink: Sink, chunks: list[FilmChunk]) -> None:
    sink.open(INFO)
    for chunk in chunks:
        sink.write(chunk)


def count_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_the_video_holds_every_frame_at_the_right_speed_and_is_plain_h264(tmp_path: Path) -> None:
    target = tmp_path / "story.mp4"
    sink = Mp4Sink(target)
    play(sink, film(2, 2))
    assert sink.close() == [target]
    assert sink.close() == [target]
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.width, stream.height) == ("h264", "yuv420p", 64, 40)
        assert stream.average_rate == 16
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 42
    assert abs(int(pictures[30][30, 30, 0]) - 40) < 6
    head = target.read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")
    assert b"moof" not in head  # an ordinary file at the end, not a fragmented one
    assert list(tmp_path.iterdir()) == [target]


def test_the_video_is_playable_after_every_chunk_without_being_closed(tmp_path: Path) -> None:
    target = tmp_path / "story.mp4"
    sink = Mp4Sink(target)
    sink.open(INFO)
    made = 0
    for chunk in film(2, 2):
        sink.write(chunk)
        made += len(chunk.frames_FHWC)
        assert count_frames(target) >= made - 1
    sink.close(complete=False)


def test_odd_sizes_and_enlargement_are_handled(tmp_path: Path) -> None:
    odd = Mp4Sink(tmp_path / "odd.mp4")
    odd.open(FilmInfo(33, 21, 16, "t", 0, ""))
    odd.write(FilmChunk(0, 0, 1, "", np.zeros((9, 21, 33, 3), np.uint8)))
    assert count_frames(odd.close()[0]) == 9
    large = Mp4Sink(tmp_path / "large.mp4", {"scale": 3})
    play(large, film(1, 1))
    with av.open(str(large.close()[0])) as container:
        assert container.streams.video[0].width == 192
    with pytest.raises(UserError, match="scale"):
        Mp4Sink(tmp_path / "x.mp4", {"scale": 0})


def test_a_film_without_frames_leaves_no_empty_files(tmp_path: Path) -> None:
    for sink in (Mp4Sink(tmp_path / "a.mp4"), ContactSheetSink(tmp_path / "a.png")):
        play(sink, [])
        assert sink.close(complete=False) == []
    assert list(tmp_path.iterdir()) == []


def test_the_contact_sheet_has_a_row_and_a_caption_per_shot(tmp_path: Path) -> None:
    target = tmp_path / "sheet.png"
    sink = ContactSheetSink(target)
    play(sink, film(3, 2))
    assert sink.close() == [target]
    with Image.open(target) as sheet:
        assert sheet.width == 5 * 64 + 6 * 8
        assert sheet.height > 3 * (40 + 20)
        colours = np.asarray(sheet.convert("RGB"))
    for shot in range(3):
        exact = np.all(colours == 255 - 30 * shot, axis=-1) if shot else np.zeros(1)
        assert shot == 0 or exact.sum() >= 5 * 64 * 20  # the upper half of each of the row's five frames


def test_the_contact_sheet_of_a_film_stopped_in_the_middle_shows_what_there_is(tmp_path: Path) -> None:
    sink = ContactSheetSink(tmp_path / "sheet.png")
    play(sink, film(2, 7)[:8])
    assert sink.close(complete=False)


def test_long_captions_wrap_and_endless_films_end_the_sheet(tmp_path: Path) -> None:
    sink = ContactSheetSink(tmp_path / "sheet.png")
    sink.open(INFO)
    for shot in range(130):
        sink.write(FilmChunk(shot, 0, 1, "word " * 40 + "x" * 400, np.zeros((9, 20, 32, 3), np.uint8)))
    assert len(sink._rows) == 100
    sink.close()
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 5 * 32 + 6 * 8


def test_the_record_names_captions_seed_timings_and_the_hash_of_all_frames(tmp_path: Path) -> None:
    sink = StoryJsonSink(tmp_path / "story.json")
    chunks = film(2, 2)
    play(sink, chunks[:3])
    halfway = json.loads((tmp_path / "story.json").read_text())
    assert halfway["complete"] is False
    assert len(halfway["shots"]) == 1
    sink.write(chunks[3])
    sink.close()
    record = json.loads((tmp_path / "story.json").read_text())
    assert record["complete"] is True
    assert (record["model"], record["seed"], record["frames"]) == ("test", 7, 42)
    assert record["shots"][1]["caption"] == "Wide shot: number 1."
    assert record["shots"][0]["chunks"][0]["seconds"]["denoise"] == 0.3
    whole = b"".join(chunk.frames_FHWC.tobytes() for chunk in chunks)
    assert record["frames_sha256"] == hashlib.sha256(whole).hexdigest()


SEA = Scene("The sea.", keep_memory=True)
TAKEN = Taken("Where to?", "sea", "to the sea", ("sea", "city"))


def branching_film() -> list[FilmChunk]:
    """Two chunks a shot; a choice and a scene before the second of three shots."""
    return [replace(c, scene=SEA, taken=(TAKEN,)) if c.shot == 1 else c for c in film(3, 2)]


def test_the_record_names_what_was_asked_and_taken_and_the_scene_of_every_shot(tmp_path: Path) -> None:
    sink = StoryJsonSink(tmp_path / "story.json")
    play(sink, branching_film())
    record = json.loads(sink.close()[0].read_text())
    assert record["choices"] == [
        {"question": "Where to?", "option": "sea", "label": "to the sea", "options": ["sea", "city"], "before_shot": 1}
    ]
    assert [shot["global_caption"] for shot in record["shots"]] == [INFO.global_caption, "The sea.", "The sea."]
    assert [shot.get("scene") for shot in record["shots"]] == [None, {"keep_memory": True}, None]


def test_the_contact_sheet_writes_choices_and_scenes_above_their_shot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[float, str]] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, xy, text, **_: written.append((xy[1], text)))
    sink = ContactSheetSink(tmp_path / "sheet.png", {"columns": 12})
    play(sink, branching_film())
    sink.close()
    assert [text for _, text in sorted(written)] == [
        INFO.global_caption, "1. Wide shot: number 0.", "Where to? to the sea", "The sea.",
        "2. Wide shot: number 1.", "3. Wide shot: number 2.",
    ]  # fmt: skip
    tops = [top for top, _ in sorted(written)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(tops)]
    assert [gap > 40 for gap in gaps] == [True, False, False, True, True]  # a row of pictures stands in between


def test_a_folder_that_cannot_be_written_is_refused_before_the_film(tmp_path: Path) -> None:
    ensure_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to the folder"):
        ensure_writable(tmp_path / "file" / "out")


def test_a_shots_length_in_frames() -> None:
    assert [shot_frames(chunks) for chunks in (1, 2, 7)] == [9, 21, 81]


def test_half_blocks_keep_the_aspect_and_the_colours() -> None:
    picture = np.zeros((40, 64, 3), np.uint8)
    picture[:20] = (200, 10, 30)
    text = half_blocks(picture, 32, 100)
    lines = text.split("\n")
    assert len(lines) == 10
    assert all(line.count("▀") == 32 for line in lines)
    assert "38;2;200;10;30" in lines[0]
    assert "38;2;0;0;0" in lines[-1]


def test_without_a_terminal_one_picture_per_chunk_is_written() -> None:
    stream = io.StringIO()
    sink = TerminalSink(None, {"stream": stream})
    play(sink, film(1, 3))
    assert sink.close() == []
    assert stream.getvalue().count("▀") == 3 * 64 * 20


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_terminal_the_frames_are_drawn_in_place_with_the_caption() -> None:
    stream = FakeTerminal()
    sink = TerminalSink(None, {"stream": stream})
    play(sink, film(1, 1))
    sink.close()
    assert stream.getvalue().count("shot 1: Wide shot: number 0.") == 9
    assert stream.getvalue().endswith("\x1b[0m\n")


def test_a_slow_or_broken_preview_never_holds_up_the_film() -> None:
    shown = []

    def slow(picture: np.ndarray) -> None:
        shown.append(int(picture[0, 0, 0]))
        time.sleep(0.02)

    pacer = Pacer(100, slow)
    start = time.monotonic()
    for number in range(250):
        pacer.put(np.full((2, 2, 3), number, np.uint8))
    assert time.monotonic() - start < 0.5
    pacer.finish(0.0)

    def broken(picture: np.ndarray) -> None:
        raise BrokenPipeError

    pacer = Pacer(1000, broken)
    pacer.put(np.zeros((2, 2, 3), np.uint8))
    pacer.finish(1.0)
    assert isinstance(pacer.error, BrokenPipeError)
    pacer.put(np.zeros((2, 2, 3), np.uint8))


def test_every_sink_is_offered_by_name_and_loaded_only_when_asked_for(tmp_path: Path) -> None:
    found = {}

    class Registry:
        def register(self, slot: str, name: str, factory: object) -> None:
            found[name] = factory
            assert slot == "sink"

    SinksPlugin().build(Registry())  # type: ignore[arg-type]
    assert set(found) == set(SINKS)
    assert isinstance(found["story-json"](tmp_path / "x.json", {}), StoryJsonSink)
    code = (
        "import sys, shotstream.runtime.sinks.plugin; sys.exit(any(m in sys.modules for m in ('av', 'PIL', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
