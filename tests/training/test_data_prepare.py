"""Preparing real mp4 files with the embedded model: right frames, right captions, and nothing lost or done twice."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from data_videos import Filmed, decoded, describe, film, number_of, numbered, write_mp4, write_sound
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from shotstream.runtime.errors import UserError
from shotstream.runtime.model.context import choose_context
from shotstream.training.data.clips import to_pixels
from shotstream.training.data.prepare import PrepareOptions, Report, prepare_videos
from shotstream.training.data.prepare_command import prepare
from shotstream.training.data.prepared import PreparedVideo, read_header
from shotstream.training.data.video_model import VideoModel, load_video_model
from shotstream.training.data.video_sources import open_source

FRAMES = 17
LENGTHS = ((20, 24, 17, 18), (17, 25, 19), (21, 18))


@pytest.fixture(scope="module")
def tiny() -> VideoModel:
    return load_video_model("tiny")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Filmed]:
    """Three described stories of the world as mp4 files."""
    folder = tmp_path_factory.mktemp("films")
    made = [film(folder, seed, lengths) for seed, lengths in zip((1, 2, 6), LENGTHS, strict=True)]
    for each in made:
        describe(each)
    return made


@pytest.fixture(scope="module")
def prepared(films: list[Filmed], tiny: VideoModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """All of them prepared in one go."""
    out = tmp_path_factory.mktemp("prepared")
    return out, run(films[0].path.parent, out, tiny)


def run(source: Path, out: Path, model: VideoModel, options: PrepareOptions | None = None) -> Report:
    report = Report()
    options = options or PrepareOptions(frames=FRAMES)
    prepare_videos(open_source(source), out, model, options, lambda *_: None, report)
    return report


def files(out: Path) -> list[Path]:
    return sorted((out / "stories").glob("*.safetensors"))


def load(out: Path, name: str) -> tuple[PreparedVideo, dict[str, Tensor]]:
    """Header and tensors of the video whose name ends like this."""
    path = next(p for p in files(out) if read_header(p).name.endswith(name))
    return read_header(path), load_file(path)


def encode(model: VideoModel, frames: np.ndarray) -> Tensor:
    """The same clip through the codec, directly."""
    with torch.inference_mode():
        return model.codec.encode(to_pixels(frames[None]))[0].half()


def test_latents_are_those_of_the_shots_own_frames(
    films: list[Filmed], tiny: VideoModel, prepared: tuple[Path, Report]
) -> None:
    out, report = prepared
    assert (len(report.made), report.refused, report.notes, report.shots) == (3, [], [], 9)
    for filmed in films:
        video = decoded(filmed.path)
        header, tensors = load(out, filmed.path.name)
        (story,) = header.stories
        assert [shot.interval for shot in story] == list(filmed.intervals)
        assert header.source == "story world"
        for k, (start, end) in enumerate(filmed.intervals):
            count = min(FRAMES, end - start)
            clip = video[start : start + count - (count - 1) % 4]
            assert torch.equal(tensors[f"clip.{k}"], encode(tiny, clip)), k
            assert story[k].latents == len(tensors[f"clip.{k}"])


def test_context_frames_are_the_frames_that_memory_names(
    films: list[Filmed], tiny: VideoModel, prepared: tuple[Path, Report]
) -> None:
    video = decoded(films[0].path)
    header, tensors = load(prepared[0], films[0].path.name)
    (story,) = header.stories
    for target in range(1, len(story)):
        for shot, frame in choose_context(LENGTHS[0][:target], 6):
            stored = tensors[f"singles.{shot}"][story[shot].positions.index(frame)]
            alone = video[films[0].intervals[shot][0] + frame]
            assert torch.equal(stored, encode(tiny, alone[None])[0]), (target, shot, frame)


def test_captions_are_embedded_whole(films: list[Filmed], tiny: VideoModel, prepared: tuple[Path, Report]) -> None:
    header, tensors = load(prepared[0], films[1].path.name)
    for k, shot in enumerate(header.stories[0]):
        assert shot.caption == f"{films[1].global_caption}shot{k}:{films[1].captions[k]}"
        rows = tiny.text.encode([shot.caption])[0]
        count = len(tensors[f"text.{k}"])
        torch.testing.assert_close(tensors[f"text.{k}"], rows[:count])
        assert not rows[count:].any()


def test_found_shots_give_the_same_file_as_given_ones(
    films: list[Filmed], tiny: VideoModel, prepared: tuple[Path, Report], tmp_path: Path
) -> None:
    run(films[0].path, tmp_path, tiny, PrepareOptions("detect", frames=FRAMES))
    (given, given_tensors), (found, found_tensors) = (load(o, films[0].path.name) for o in (prepared[0], tmp_path))
    assert given.stories == found.stories
    assert all(torch.equal(tensor, found_tensors[name]) for name, tensor in given_tensors.items())


def test_found_shots_without_captions_are_told_in_short_stories(
    films: list[Filmed], tiny: VideoModel, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.mp4"
    alone.write_bytes(films[0].path.read_bytes())
    report = run(alone, tmp_path / "out", tiny, PrepareOptions(frames=9, caption="a cartoon.", max_shots=3))
    assert report.notes == [("alone.mp4", "4 of 4 shots have no caption of their own; read: --caption")]
    header, tensors = load(tmp_path / "out", "alone.mp4")
    assert [[shot.caption[10:15] for shot in story] for story in header.stories] == [
        ["shot0", "shot1", "shot2"],
        ["shot0"],
    ]
    assert {f"clip.{k}" for k in range(4)} <= tensors.keys()
    assert header.stories[0][0].caption == "a cartoon.shot0:a cartoon."


def test_a_gap_between_shots_shifts_nothing(tiny: VideoModel, tmp_path: Path) -> None:
    write_mp4(tmp_path / "gap.mp4", numbered(249, 64))
    intervals = [[0, 39], [39, 75], [75, 120], [120, 155], [171, 249]]
    texts = {"global_caption": "numbers."} | {f"shot{k}": f"part {k}" for k in range(1, 6)}
    (tmp_path / "gap.json").write_text(json.dumps(texts))
    table = tmp_path / "table.csv"
    table.write_text(f'shot_num_from_caption,json_path,video_path,frame_number\n5,gap.json,gap.mp4,"{intervals}"\n')
    seen: list[list[int]] = []

    class Eyes:
        """A codec that remembers which numbered frames it was shown."""

        def encode(self, video_BTCHW: Tensor) -> Tensor:
            seen.append([number_of(((f.permute(1, 2, 0) + 1) * 127.5).numpy()) for f in video_BTCHW[0]])
            return torch.zeros(1, 1 + (video_BTCHW.shape[1] - 1) // 4, 32, 10, 16)

        def encode_frames(self, frames_NCHW: Tensor) -> Tensor:
            self.encode(frames_NCHW[None])
            return torch.zeros(len(frames_NCHW), 32, 10, 16)

    report = run(table, tmp_path / "out", replace(tiny, codec=Eyes()))
    assert report.refused == []
    clips, singles = seen[::2], seen[1::2]
    assert [clip[0] for clip in clips] == [0, 39, 75, 120, 171]
    assert clips[4] == list(range(171, 188))
    assert singles[0][0] == 0
    assert singles[0][-1] == 38  # the last frame of the first shot, not of the video
    assert singles[3] == [120, 154]
    captions = [shot.caption for shot in load(tmp_path / "out", "gap.mp4")[0].stories[0]]
    assert captions[4] == "numbers.shot4:part 5"


def test_what_cannot_be_used_is_reported_and_left_out(films: list[Filmed], tiny: VideoModel, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    good = films[2].path.read_bytes()
    named = films[2].path.with_suffix(".json").read_text()
    shots = json.loads(named)["shots"]
    cases = {
        "broken": (good[: len(good) // 2], named, "cannot be read"),
        "empty": (b"", named, "cannot be read"),
        "sound": (write_sound(tmp_path / "sound.mp4").read_bytes(), named, "no pictures"),
        "nameless": (good, "{}", "it has no caption"),
        "past": (good, named.replace("39]", "40]"), "ends after 39 frames, but its last shot should reach frame 40"),
        "wordy": (good, json.dumps({"global_caption": "word " * 60, "shots": shots}), "tokens, but the model reads 48"),
        "short": (good, json.dumps({"global_caption": "x", "shots": [{"interval": [0, 8]}]}), "it is too short"),
        "lonely": (good, json.dumps({"shots": [{"caption": "one"}] * 5}), "5 shot captions do not fit the 2 shots"),
        "whole": (good, named, ""),
    }
    for name, (video, described, _) in cases.items():
        (clips / f"{name}.mp4").write_bytes(video)
        (clips / f"{name}.json").write_text(described)
    report = run(clips, tmp_path / "out", tiny)
    assert report.made == ["clips/whole.mp4"]
    reasons = {refused.name: refused.reason for refused in report.refused}
    for name, (_, _, reason) in cases.items():
        assert reason in reasons.get(f"clips/{name}.mp4", ""), name
    (clips / "whole.json").write_text(json.dumps({"global_caption": "x"}))
    given = run(clips / "whole.mp4", tmp_path / "given", tiny, PrepareOptions("given", frames=FRAMES))
    assert given.refused[0].reason.startswith("no intervals of its shots are given")


def test_a_described_end_behind_the_last_frame_is_noticed_though_no_frame_there_is_read(
    tiny: VideoModel, tmp_path: Path
) -> None:
    path = write_mp4(tmp_path / "six.mp4", numbered(63))
    shots = [{"interval": [n, n + 10]} for n in range(0, 50, 10)] + [{"interval": [50, 64]}]
    path.with_suffix(".json").write_text(json.dumps({"global_caption": "numbers.", "shots": shots}))
    report = run(path, tmp_path / "out", tiny, PrepareOptions(frames=9))
    assert report.refused[0].reason == "it ends after 63 frames, but its last shot should reach frame 64"


def test_shots_without_a_caption_read_the_global_one(films: list[Filmed], tiny: VideoModel, tmp_path: Path) -> None:
    path = tmp_path / "some.mp4"
    path.write_bytes(films[2].path.read_bytes())
    shots = [{"interval": films[2].intervals[0], "caption": "first"}, {"interval": films[2].intervals[1]}]
    path.with_suffix(".json").write_text(json.dumps({"global_caption": "a day.", "shots": shots}))
    report = run(path, tmp_path / "out", tiny)
    assert report.notes == [("some.mp4", "1 of 2 shots have no caption of their own; read: the global caption")]
    captions = [shot.caption for shot in load(tmp_path / "out", "some.mp4")[0].stories[0]]
    assert captions == ["a day.shot0:first", "a day.shot1:a day."]


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of three clips of one short shot each."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in "abc":
        write_mp4(folder / f"{name}.mp4", numbered(9))
    return folder


SHORT = PrepareOptions(frames=9, caption="numbers.")


def test_a_second_run_keeps_what_fits_and_makes_anew_what_changed(
    clips: Path, tiny: VideoModel, tmp_path: Path
) -> None:
    path, out = clips / "a.mp4", tmp_path / "out"
    assert run(path, out, tiny, SHORT).made == ["a.mp4"]
    first = files(out)[0].stat().st_mtime_ns
    assert run(path, out, tiny, SHORT).kept == ["a.mp4"]
    assert files(out)[0].stat().st_mtime_ns == first
    other = replace(SHORT, caption="a night.")
    changed = run(path, out, tiny, other)
    assert changed.made == ["a.mp4"]
    assert changed.notes[0][1].startswith("made anew")
    files(out)[0].write_bytes(files(out)[0].read_bytes()[:-100])
    assert run(path, out, tiny, other).made == ["a.mp4"]
    with pytest.raises(UserError, match=r"prepared with another frames \(frames 9\)"):
        run(path, out, tiny, replace(SHORT, frames=33))


def test_a_full_disk_is_one_sentence_and_leaves_finished_videos_whole(
    clips: Path, tiny: VideoModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, out = Path.write_bytes, tmp_path / "out"

    def full(path: Path, data: bytes) -> int:
        if len(files(out)) == 1 and ".safetensors" in path.name:
            write(path, data[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device; .* run the same command again"):
        run(clips, out, tiny, SHORT)
    assert [p.suffix for p in (out / "stories").iterdir()] == [".safetensors"]
    assert load_file(files(out)[0])
    monkeypatch.undo()
    again = run(clips, out, tiny, SHORT)
    assert (len(again.kept), len(again.made)) == (1, 2)


def test_an_interruption_loses_the_current_video_only(clips: Path, tiny: VideoModel, tmp_path: Path) -> None:
    class Stopped:
        """The codec, until Ctrl-C comes in the middle of the second video."""

        calls = 0

        def encode(self, video_BTCHW: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 2:
                raise KeyboardInterrupt
            return tiny.codec.encode(video_BTCHW)

        def encode_frames(self, frames_NCHW: Tensor) -> Tensor:
            return tiny.codec.encode_frames(frames_NCHW)

    report, stopped = Report(), replace(tiny, codec=Stopped())
    with pytest.raises(KeyboardInterrupt):
        prepare_videos(open_source(clips), tmp_path / "out", stopped, SHORT, lambda *_: None, report)
    assert report.made == ["clips/a.mp4"]
    assert len(files(tmp_path / "out")) == 1
    again = run(clips, tmp_path / "out", tiny, SHORT)
    assert (again.kept, again.made) == (["clips/a.mp4"], ["clips/b.mp4", "clips/c.mp4"])


def test_a_killed_run_goes_on_to_the_same_files(
    films: list[Filmed], tiny: VideoModel, prepared: tuple[Path, Report], tmp_path: Path
) -> None:
    folder = films[0].path.parent
    arguments = [str(folder), "--out", str(tmp_path / "killed"), "--frames", str(FRAMES)]
    code = "import typer; from shotstream.training.data.prepare_command import prepare; typer.run(prepare)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    assert "shots" in process.stderr.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    survived = {p.name: p.stat().st_mtime_ns for p in files(tmp_path / "killed")}
    assert 1 <= len(survived) < 3
    report = run(folder, tmp_path / "killed", tiny)
    assert (len(report.kept), len(report.made)) == (len(survived), 3 - len(survived))
    killed, whole = files(tmp_path / "killed"), files(prepared[0])
    assert [p.name for p in killed] == [p.name for p in whole]
    for ours, other in zip(killed, whole, strict=True):
        assert ours.read_bytes() == other.read_bytes(), ours.name
        assert survived.get(ours.name, ours.stat().st_mtime_ns) == ours.stat().st_mtime_ns


def command(*arguments: object) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(prepare)
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output


def test_the_command_ends_with_1_and_a_sentence_when_nothing_is_usable(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    code, said = command(tmp_path / "bad.mp4", "--out", tmp_path / "out")
    assert code == 1
    assert "bad.mp4: refused: it cannot be read" in said
    assert f"nothing in {tmp_path / 'bad.mp4'} can be trained on" in " ".join(said.split())
    refused = json.loads((tmp_path / "out" / "report.json").read_text())["refused"]
    assert refused == [{"name": "bad.mp4", "reason": "it cannot be read: Invalid data found when processing input"}]


def test_the_command_says_what_it_made(films: list[Filmed], tmp_path: Path) -> None:
    code, said = command(films[2].path, "--out", tmp_path, "--frames", 9)
    assert code == 0
    assert f"{films[2].path.name}: 2 shots" in said
    assert "1 videos prepared, 0 kept, 0 left out; 2 shots" in said
    assert json.loads((tmp_path / "report.json").read_text())["shots"] == 2
