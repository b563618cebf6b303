"""Readers of multi-shot videos: folders with sidecars, the reference's csv, our tar shards; and what they refuse."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from data_videos import numbered, write_mp4

from shotstream.runtime.errors import UserError
from shotstream.training.data.video_sources import open_source, write_shards
from shotstream.training.data.videos import BadVideo, Description, MultiShotVideo, Refused, read_description


@pytest.fixture(scope="module")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_mp4(tmp_path_factory.mktemp("one") / "one.mp4", numbered(10)).read_bytes()


def found(path: Path) -> list[MultiShotVideo | Refused]:
    return list(open_source(path).videos)


def description(*shots: Any, **more: Any) -> bytes:
    return json.dumps({"global_caption": "a walk.", "shots": list(shots)} | more).encode()


def test_a_folder_yields_its_videos_with_and_without_a_json(tmp_path: Path, mp4: bytes) -> None:
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.mp4").write_bytes(mp4)
    (folder / "a.json").write_bytes(description({"caption": "left", "interval": [0, 4]}, {"interval": [4, 10]}))
    (folder / "deep" / "b.MOV").write_bytes(mp4)
    (folder / "notes.txt").write_text("not a video")
    source = open_source(folder)
    assert source.total == 2
    first, second = source.videos
    assert isinstance(first, MultiShotVideo)
    assert first.name == "clips/a.mp4"
    assert first.description.intervals == [(0, 4), (4, 10)]
    assert [s.caption for s in first.description.shots] == ["left", ""]
    assert isinstance(second, MultiShotVideo)
    assert second.description == Description()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "its json cannot be used"),
        (b"\xff\xfe", "its json cannot be used"),
        (b"[]", "its json cannot be used"),
        (description(globl="x"), "unknown field `globl`"),
        (description({"interval": [0, "x"]}), r"Expected `int`, got `str` - at `\$.shots\[0\].interval"),
        (description({"interval": [0, 4]}, {}), "1 of its 2 shots have an interval; give all or none"),
        (description({"interval": [4, 4]}), r"\[4, 4\) holds no frames"),
        (description({"interval": [-2, 4]}), r"\[-2, 4\) holds no frames"),
        (description({"interval": [0, 5]}, {"interval": [4, 9]}), r"\[0, 5\) and \[4, 9\) overlap"),
        (description({"interval": [5, 9]}, {"interval": [0, 5]}), r"\[5, 9\) and \[0, 5\) are not in order"),
        (description(fps=0), "0 frames a second cannot be right"),
    ],
)
def test_a_wrong_description_is_refused_with_its_fault(data: bytes, reason: str) -> None:
    with pytest.raises(BadVideo, match=reason):
        read_description(data)


def test_one_wrong_json_does_not_end_the_folder(tmp_path: Path, mp4: bytes) -> None:
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(mp4)
    (tmp_path / "b.json").write_text("{")
    assert [type(each) for each in found(tmp_path)] == [MultiShotVideo, Refused, MultiShotVideo]


def table(folder: Path, *rows: dict[str, str], columns: tuple[str, ...] = ()) -> Path:
    path = folder / "table.csv"
    names = columns or ("shot_num_from_caption", "json_path", "video_path", "frame_number")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_the_references_csv_is_read(tmp_path: Path, mp4: bytes) -> None:
    (tmp_path / "one.mp4").write_bytes(mp4)
    (tmp_path / "one.json").write_text(json.dumps({"global_caption": "a walk.", "shot1": "left", "shot2": "right"}))
    good = {"video_path": "one.mp4", "json_path": "one.json"}
    good |= {"shot_num_from_caption": "2", "frame_number": "[[0, 4], [6, 10]]"}
    rows = [
        good,
        good | {"frame_number": "[[0, 4]]"},
        good | {"frame_number": "[[0, 4], [3, 10]]"},
        good | {"frame_number": "__import__('os').abort()"},
        good | {"frame_number": "[" * 400},
        good | {"shot_num_from_caption": "two"},
        good | {"video_path": "none.mp4"},
        good | {"json_path": ""},
        good | {"frame_number": "[[0, 4], [6, 8], [8, 10]]", "shot_num_from_caption": "3"},
    ]
    source = open_source(table(tmp_path, *rows))
    assert source.total == len(rows)
    first, *wrong, fewer = source.videos
    assert isinstance(first, MultiShotVideo)
    assert first.description.intervals == [(0, 4), (6, 10)]
    assert [s.caption for s in first.description.shots] == ["left", "right"]
    assert first.description.global_caption == "a walk."
    reasons = [w.reason for w in wrong if isinstance(w, Refused)]
    assert "has 1 intervals, but shot_num_from_caption says 2" in reasons[0]
    assert "overlap" in reasons[1]
    assert [r.startswith("frame_number is not a list") for r in reasons[2:5]] == [True] * 3
    assert reasons[5] == "there is no file none.mp4, neither beside table.csv nor in the working directory"
    assert reasons[6] == "the row names no file"
    assert isinstance(fewer, MultiShotVideo)
    assert [s.caption for s in fewer.description.shots] == ["left", "right", ""]


def test_a_csv_of_another_kind_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no column json_path, frame_number"):
        open_source(table(tmp_path, columns=("shot_num_from_caption", "video_path")))


def test_shards_bring_back_what_was_packed(tmp_path: Path, mp4: bytes) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("a.b", "c d", "e"):
        (clips / f"{name}.mp4").write_bytes(mp4)
    (clips / "e.json").write_bytes(description({"caption": "left", "interval": [0, 9]}, source="a camera", fps=12))
    packed = [v for v in found(clips) if isinstance(v, MultiShotVideo)]
    assert [p.name for p in write_shards(packed, tmp_path / "tars", 2)] == ["videos_00000.tar", "videos_00001.tar"]
    source = open_source(tmp_path / "tars")
    assert source.total is None
    again = list(source.videos)
    assert len(again) == 3
    for before, after in zip(packed, again, strict=True):
        assert isinstance(after, MultiShotVideo)
        assert after.video == mp4
        assert after.description.shots == before.description.shots
        assert after.description.source == (before.description.source or before.name)


def test_a_shard_that_breaks_off_gives_what_is_whole(tmp_path: Path, mp4: bytes) -> None:
    videos = [MultiShotVideo(f"v{n}", mp4, Description(global_caption="x")) for n in range(3)]
    shard = write_shards(videos, tmp_path)[0]
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size - len(mp4) - 12_000])
    whole, *rest = found(tmp_path)
    assert isinstance(whole, MultiShotVideo)
    assert all(isinstance(each, Refused) for each in rest)
    last = rest[-1]
    assert isinstance(last, Refused)
    assert "breaks off or is damaged" in last.reason


def test_nothing_to_read_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no videos"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="there is no folder or file"):
        open_source(tmp_path / "nowhere")
