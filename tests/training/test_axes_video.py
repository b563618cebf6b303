"""The axes on finished films: what is read from files, what the axes say of planted faults, and what bad input gets.

Films of the arithmetic's tests have a hero (the left half's colour) and a background (the right half's).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from shotstream.runtime.errors import UserError
from shotstream.runtime.sinks.base import FilmChunk, FilmInfo
from shotstream.runtime.sinks.mp4 import Mp4Sink
from shotstream.runtime.sinks.story_json import StoryJsonSink
from shotstream.training.evaluation import command as evaluate_command
from shotstream.training.evaluation.axes import AXES
from shotstream.training.evaluation.cuts import oracle_cuts
from shotstream.training.evaluation.features import Vectors
from shotstream.training.evaluation.sources import Frames, renders_of
from shotstream.training.evaluation.video import Asked, AskedShot, check_readable, read_asked, read_frames
from shotstream.training.evaluation.video_axes import (
    Extractors,
    extractors_of,
    film_tallies,
    inter_shot,
    intra_shot,
    video_axes,
)
from shotstream.training.world import Story, sample_story

pytest.importorskip("scenedetect")
RED, GREEN, BLUE = (230, 30, 30), (30, 230, 30), (30, 30, 230)
WORDS = {"red": RED, "green": GREEN, "blue": BLUE}
LENGTH = 20
Color = tuple[int, int, int]


class _Half:
    """The mean colour of one half; a caption's words are colours."""

    def __init__(self, left: bool) -> None:
        self.part = slice(0, 32) if left else slice(32, 64)

    def frames(self, frames_NHWC: Frames) -> Vectors:
        return _unit(frames_NHWC[:, :, self.part].mean((1, 2)))


class _Words(_Half):
    def captions(self, captions: Sequence[str]) -> Vectors:
        return _unit(np.array([WORDS[caption] for caption in captions], float))


def _unit(vectors: Any) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


EXTRACTORS = Extractors(_Words(left=True), _Half(left=False), _Words(left=True))
TRUTH = [(RED, GREEN, 0), (RED, GREEN, 1)]


def film(*shots: tuple[Color, Color, int]) -> Frames:
    """Frames [F, 40, 64, 3] of shots given as (hero, background, framing); a framing is a stripe somewhere else."""
    frames = np.zeros((LENGTH * len(shots), 40, 64, 3), np.uint8)
    for k, (hero, background, framing) in enumerate(shots):
        part = frames[k * LENGTH : (k + 1) * LENGTH]
        part[:, :, :32], part[:, :, 32:] = hero, background
        rows = slice(20 * framing, 20 * framing + 20)
        part[:, rows, :] = part[:, rows, :] // 3
    return frames


def asked(*captions: str) -> Asked:
    return Asked(tuple(AskedShot(c, k * LENGTH, (k + 1) * LENGTH) for k, c in enumerate(captions)))


def scores(frames: Frames, *captions: str) -> dict[str, float]:
    tallies = film_tallies(frames, asked(*captions), EXTRACTORS, oracle_cuts(torch.device("cpu")))
    return {axis: hits / tries for axis, (hits, tries) in tallies.items() if tries}


def half_way(frames: Frames, shot: int, part: slice, color: Color) -> Frames:
    """The film with another colour in the second half of a shot, slowly, so that it is no cut."""
    made, begin = frames.astype(float), shot * LENGTH + LENGTH // 2
    share = np.linspace(0, 1, LENGTH // 2)[:, None, None, None]
    rows = made[begin : begin + LENGTH // 2, :, part]
    made[begin : begin + LENGTH // 2, :, part] = (1 - share) * rows + share * np.array(color)
    return made.round().astype(np.uint8)


def fallen(frames: Frames, *captions: str) -> set[str]:
    true, now = scores(film(*TRUTH), "red", "red"), scores(frames, *captions)
    assert all(value == pytest.approx(1, abs=0.02) for axis, value in true.items() if axis != "prompt_following")
    return {axis for axis in true if now.get(axis, 1) < true[axis] - 0.02}


def test_a_true_film_has_all_axes() -> None:
    assert set(scores(film(*TRUTH), "red", "red")) == set(AXES) - {"fps", "chunk_latency"}
    assert fallen(film(*TRUTH), "red", "red") == set()


def test_a_hero_that_changes_inside_a_shot() -> None:
    changed = half_way(film(*TRUTH), 1, slice(0, 32), BLUE)
    assert fallen(changed, "red", "red") == {"intra_subject", "inter_subject", "prompt_following"}


def test_a_background_that_changes_inside_a_shot() -> None:
    changed = half_way(film(*TRUTH), 1, slice(32, 64), BLUE)
    assert fallen(changed, "red", "red") == {"intra_background", "inter_background"}


def test_a_hero_and_a_background_that_change_between_shots() -> None:
    assert fallen(film((RED, GREEN, 0), (BLUE, GREEN, 1)), "red", "blue") == {"inter_subject"}
    assert fallen(film((RED, GREEN, 0), (RED, BLUE, 1)), "red", "red") == {"inter_background"}


def test_cuts_that_are_missing_or_too_many() -> None:
    still = film((RED, GREEN, 0), (RED, GREEN, 0))
    assert fallen(still, "red", "red") == {"cut_recall", "cut_f1", "cuts_exact"}
    restless = film(*TRUTH)
    restless[6:14] = film(*TRUTH)[LENGTH : LENGTH + 8]
    assert fallen(restless, "red", "red") == {"cut_precision", "cut_f1", "cuts_exact"}


def test_captions_that_are_swapped() -> None:
    two = film((RED, GREEN, 0), (BLUE, GREEN, 1))
    assert scores(two, "red", "blue")["prompt_following"] > 0.99
    assert scores(two, "blue", "red")["prompt_following"] < 0.5


def test_frames_are_compared_with_the_first_and_the_one_before_and_shots_by_their_means() -> None:
    one, other = np.array([[1, 0], [0, 1], [1, 0]], np.float32), np.array([[0, 1], [0.6, 0.8]], np.float32)
    assert intra_shot([one, other]) == (pytest.approx((0 + 0) / 2 + (1 + 0) / 2 + 0.8), 3)
    means = np.array([2, 1]) / 5**0.5, np.array([0.6, 1.8]) / 3.6**0.5
    assert inter_shot([one, other]) == (pytest.approx(float(means[0] @ means[1])), 1)
    assert inter_shot([one]) == (0, 0)


def test_the_first_extractor_is_for_subjects_and_the_last_for_backgrounds() -> None:
    half, words = _Half(left=True), _Words(left=True)
    assert extractors_of([]) == Extractors()
    one = extractors_of([("clip", words)])
    assert (one.subject, one.background, one.text) == (words, words, words)
    two = extractors_of([("dino", half), ("clip", words)])
    assert (two.subject, two.background, two.text) == (half, words, words)
    assert two.names == "subjects by dino, backgrounds by clip, captions by clip"
    assert extractors_of([("clip", words), ("dino", half)]).text is words
    assert extractors_of([("dino", half)]).text is None


# ------------------------------------------------------------------------------------ files
def write_film(path: Path, shots: Sequence[Frames], captions: Sequence[str]) -> None:
    """As `shotstream play` writes it: an mp4 and its json."""
    _, height, width, _ = shots[0].shape
    info = FilmInfo(width, height, 16, "tiny", 0, "A story.")
    sinks = [Mp4Sink(path), StoryJsonSink(path.with_suffix(".json"))]
    for sink in sinks:
        sink.open(info)
        for k, (frames, caption) in enumerate(zip(shots, captions, strict=True)):
            half = len(frames) // 2
            for index, part in enumerate((frames[:half], frames[half:])):
                sink.write(FilmChunk(k, index, 2, caption, part, {"denoise": 0.1, "total": 0.25}))
        sink.close()


STORY: Story = sample_story(70_000_001, 3)


@pytest.fixture
def played(tmp_path: Path) -> Path:
    """A folder with one film of true renders, as a player leaves it."""
    (tmp_path / "films").mkdir()
    shots = [np.repeat(np.repeat(shot, 2, 1), 2, 2) for shot in renders_of(STORY)]
    write_film(tmp_path / "films" / "story.mp4", shots, [STORY.shot_caption(k) for k in range(3)])
    return tmp_path / "films"


def test_a_played_film_is_read_back_with_its_record(played: Path) -> None:
    record = read_asked(played / "story.mp4")
    assert [(shot.start, shot.end) for shot in record.shots] == [(0, 33), (33, 66), (66, 99)]
    assert record.shots[1].caption == STORY.shot_caption(1)
    assert record.pace is not None
    assert (record.pace.frames, record.pace.seconds, len(record.pace.chunk_seconds)) == (99, 1.5, 6)
    frames = read_frames(played / "story.mp4", record)
    assert frames.shape == (99, 160, 256, 3)
    true = np.concatenate(renders_of(STORY)).astype(float)
    assert np.abs(frames[:, ::2, ::2] - true).mean() < 8
    later = Asked(record.shots[1:])
    np.testing.assert_array_equal(read_frames(played / "story.mp4", later), frames[33:])


def test_a_film_that_was_stopped_is_measured_as_far_as_it_is_asked(tmp_path: Path) -> None:
    """What a killed player leaves says nowhere how long it is."""
    sink = Mp4Sink(tmp_path / "story.mp4")
    sink.open(FilmInfo(64, 40, 16, "tiny", 0, "A story."))
    sink.write(FilmChunk(0, 0, 1, "red", film(TRUTH[0])))
    part = Asked((AskedShot("red", 0, 12),))
    check_readable(tmp_path / "story.mp4", part)
    assert len(read_frames(tmp_path / "story.mp4", part)) == 12
    whole = Asked((AskedShot("red", 0, 40),))
    check_readable(tmp_path / "story.mp4", whole)
    with pytest.raises(UserError, match=r"has (19|20) frames, .* ends at 40"):
        read_frames(tmp_path / "story.mp4", whole)
    sink.close()


@pytest.mark.parametrize("cuts", ["oracle", "pyscenedetect"])
def test_the_command_measures_a_played_film(played: Path, cuts: str) -> None:
    figures = played / "figures.json"
    result = command(
        "--video", str(played), "--features", "oracle, oracle-scene", "--cuts", cuts, "--json", str(figures)
    )
    assert result.exit_code == 0, result.output + repr(result.exception)
    (axes,) = json.loads(figures.read_text())["axes"]
    found = {axis: score["mean"] for axis, score in axes["scores"].items()}
    assert found["intra_subject"] > 0.9
    assert found["intra_background"] > 0.9
    assert found["inter_subject"] < found["intra_subject"]
    assert found["cuts_exact"] == found["cut_f1"] == 1
    assert found["fps"] == pytest.approx(66)
    assert found["chunk_latency"] == pytest.approx(250)
    assert set(axes["missing"]) == {"prompt_following"}
    assert "missing: prompt following: no extractor named knows text" in result.stdout


def test_what_nobody_gave_is_missing_with_a_reason(tmp_path: Path) -> None:
    write_film(tmp_path / "one.mp4", [film(TRUTH[0])], ["red"])
    plain = {"global_caption": "all", "shots": [{"caption": "red", "start": 5, "end": 20}], "more": 1}
    (tmp_path / "one.json").write_text(json.dumps(plain))
    find = oracle_cuts(torch.device("cpu"))
    none = video_axes("one", [tmp_path / "one.mp4"], Extractors(), find)
    assert "--features" in none.missing["intra_subject"]
    assert "--features" in none.missing["prompt_following"]
    some = video_axes("one", [tmp_path / "one.mp4"], EXTRACTORS, find)
    assert some.missing["inter_subject"] == "no film has two shots"
    assert set(some.missing) == {
        "inter_subject", "inter_background", "fps", "chunk_latency", "cut_precision", "cut_recall", "cut_f1",
    }  # fmt: skip
    timed = plain | {"seconds": 3.0}
    (tmp_path / "one.json").write_text(json.dumps(timed))
    assert video_axes("one", [tmp_path / "one.mp4"], EXTRACTORS, find).scores["fps"].mean == 5


# ------------------------------------------------------------------------------------ bad input
def command(*arguments: str) -> Any:
    app = typer.Typer()
    evaluate_command.mount(app)
    return CliRunner().invoke(app, list(arguments))


def _shots(*shots: dict[str, Any]) -> str:
    return json.dumps({"shots": [{"caption": "red"} | shot for shot in shots]})


def _no_film(path: Path) -> None:
    path.write_bytes(b"this is no film")


def _no_video(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux([*stream.encode(frame), *stream.encode(None)])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda mp4: mp4.with_suffix(".json").unlink(), "story.json is not beside it"),
        (lambda mp4: mp4.with_suffix(".json").write_text("{"), "is not a record of a film"),
        (lambda mp4: mp4.with_suffix(".json").write_text('{"shots": [{"start": 0}]}'), r"is not a record .*caption"),
        (lambda mp4: mp4.with_suffix(".json").write_text(_shots()), "names no shots"),
        (lambda mp4: mp4.with_suffix(".json").write_text(_shots({"start": 0})), "neither where it ends"),
        (lambda mp4: mp4.with_suffix(".json").write_text(_shots({"start": 9, "end": 9})), "from 9 to 9"),
        (
            lambda mp4: mp4.with_suffix(".json").write_text(_shots({"end": 40}, {"start": 33, "end": 66})),
            "from 33 to 66, behind one that ends at 40",
        ),
        (lambda mp4: mp4.with_suffix(".json").write_text(_shots({"end": 100})), "has 99 frames, .* ends at 100"),
        (_no_film, "cannot be read as a video"),
        (_no_video, "cannot be read as a video"),
        (lambda mp4: mp4.unlink(), "no mp4 in"),
    ],
)  # fmt: skip
def test_bad_files_are_answered_with_one_sentence(played: Path, spoil: Callable[[Path], Any], says: str) -> None:
    spoil(played / "story.mp4")
    result = command("--video", str(played))
    assert isinstance(result.exception, UserError), result.output + repr(result.exception)
    with pytest.raises(UserError, match=says):
        raise result.exception
    assert "\n" not in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--video", "nowhere"], "no film at nowhere"),
        (["--video", "{films}", "--run", "x"], "give one of them"),
        (["--features", "dino"], "films of --video"),
        (["--video", "{films}", "--features", "resnet"], "there is no features 'resnet'; there is dino, clip"),
        (["--video", "{films}", "--features", "dino"], "give its folder with --features-weights"),
        (["--video", "{films}", "--features", "clip", "--features-weights", "{films}/none"], "no config.json"),
        (["--video", "{films}", "--cuts", "eyes"], "there is no cuts 'eyes'; there is oracle, pyscenedetect"),
        (["--video", "{films}", "--device", "tpu7"], "there is no device 'tpu7'"),
        (["--cuts", "eyes"], "there is no cuts 'eyes'"),
    ],
)
def test_a_wrong_wish_is_answered_with_one_sentence(played: Path, arguments: list[str], says: str) -> None:
    result = command(*(a.format(films=played) for a in arguments))
    assert isinstance(result.exception, UserError), result.output + repr(result.exception)
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)
