"""Pictures of video files: frames by number, cuts, damaged files; and which frames of a shot are picked."""

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from data_videos import film, number_of, numbered, write_mp4, write_sound
from hypothesis import given, settings
from hypothesis import strategies as st

from shotstream.runtime.errors import UserError
from shotstream.runtime.model.context import choose_context
from shotstream.training.data.shot_plan import Pace, plan_story
from shotstream.training.data.video_frames import find_shots, frame_rate, read_frames
from shotstream.training.data.videos import BadVideo


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 numbered frames."""
    return write_mp4(tmp_path_factory.mktemp("counted") / "counted.mp4", numbered(80), index_first=True)


def numbers(video: Path | bytes, wanted: list[int], through: int = 0) -> list[int]:
    return [number_of(f) for f in read_frames(video, wanted, max(through, wanted[-1] + 1), (64, 64))]


def test_frames_come_by_their_number(counted: Path) -> None:
    assert numbers(counted, [0, 1, 17, 18, 63, 79]) == [0, 1, 17, 18, 63, 79]
    assert numbers(counted.read_bytes(), [40]) == [40]


def test_a_video_that_is_shorter_than_described_is_refused(counted: Path) -> None:
    with pytest.raises(BadVideo, match="ends after 80 frames, but its last shot should reach frame 81"):
        numbers(counted, [3], through=81)


@pytest.mark.parametrize(("seed", "lengths"), [(1, (25, 33, 17, 20)), (2, (17, 40, 19)), (4, (33, 21, 29))])
def test_found_cuts_are_the_true_cuts(tmp_path: Path, seed: int, lengths: tuple[int, ...]) -> None:
    filmed = film(tmp_path, seed, lengths)
    found = find_shots(filmed.path)
    assert len(found) == len(lengths)
    assert np.abs(np.array(found) - np.array(filmed.intervals)).max() <= 1
    assert find_shots(filmed.path.read_bytes()) == found


def test_a_crop_keeps_the_aspect_and_the_middle(tmp_path: Path) -> None:
    picture = np.zeros((9, 64, 128, 3), np.uint8)
    picture[:, :, 32:96] = 255  # the middle half is white
    path = write_mp4(tmp_path / "wide.mp4", picture)
    cropped = next(read_frames(path, [4], 5, (32, 32), "crop"))
    stretched = next(read_frames(path, [4], 5, (32, 32)))
    assert cropped.shape == stretched.shape == (32, 32, 3)
    assert cropped[:, 2:-2].min() > 200
    assert stretched[:, :6].max() < 60


def test_a_camera_held_upright_is_turned_back(tmp_path: Path) -> None:
    picture = np.zeros((9, 64, 96, 3), np.uint8)
    picture[:, :, :24] = 255  # the left edge of what the sensor saw
    path = write_mp4(tmp_path / "upright.mp4", picture)
    data = path.read_bytes()
    at = data.index(b"tkhd") + 4 + 40  # behind the box's name: the display matrix of the track
    one = 1 << 16
    clockwise = struct.pack(">9i", 0, one, 0, -one, 0, 0, 64 * one, 0, 1 << 30)
    turned = next(read_frames(data[:at] + clockwise + data[at + 36 :], [0], 1, (96, 64)))
    assert turned.shape == (96, 64, 3)
    assert turned[:16].min() > 200  # left has become up
    assert turned[32:].max() < 60


def damaged(path: Path) -> dict[str, bytes]:
    """A good file, broken in several ways, and files that are something else."""
    data = path.read_bytes()
    middle = data.index(b"mdat") + 2000
    noise = np.random.default_rng(0).bytes(3000)
    return {
        "empty": b"",
        "cut short": data[: len(data) // 2],
        "hurt": data[:middle] + noise + data[middle + len(noise) :],
        "text": b"not a video at all",
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/x.ts\n",
    }


@pytest.mark.parametrize("kind", ["empty", "cut short", "hurt", "text", "playlist"])
def test_damaged_files_are_refused_with_a_reason(counted: Path, kind: str) -> None:
    broken = damaged(counted)[kind]
    with pytest.raises(BadVideo, match=r"cannot be read|breaks off"):
        find_shots(broken)
    with pytest.raises(BadVideo, match=r"cannot be read|ends after"):
        numbers(broken, [79])


def test_files_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadVideo, match="no pictures, only sound or text"):
        frame_rate(write_sound(tmp_path / "sound.mp4"))
    with pytest.raises(BadVideo, match="cannot be read: No such file"):
        frame_rate(tmp_path / "nowhere.mp4")


def test_a_faster_video_is_thinned_to_the_models_pace() -> None:
    plan = plan_story([(10, 34)], Fraction(24), Pace(frames=9, fps=16), 6)[0]
    assert plan.length == 16  # 24 frames at 24 a second are one second
    assert plan.clip == (10, 11, 13, 14, 16, 17, 19, 20, 22)
    assert plan.positions == (0, 3, 6, 9, 12, 15)
    assert plan.singles == (10, 14, 19, 23, 28, 32)


def test_a_slower_video_keeps_its_frames() -> None:
    plan = plan_story([(0, 12)], Fraction(12), Pace(frames=33, fps=16), 6)[0]
    assert plan.length == 12
    assert plan.clip == tuple(range(9))


def test_the_references_pace_keeps_native_frames_and_spreads_a_long_clip() -> None:
    pace = Pace(frames=81, fps=16, kind="reference")
    short, long = plan_story([(0, 80), (100, 270)], Fraction(30), pace, 6)
    assert short.clip == tuple(range(77))
    assert short.length == 80
    assert long.clip == tuple(range(100, 262, 2))  # every 170 // 81 = 2nd, the first 81
    assert long.length == 170


@given(
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=9),
    gaps=st.lists(st.integers(0, 20), min_size=9, max_size=9),
    fps=st.sampled_from([Fraction(12), Fraction(16), Fraction(24), Fraction(30000, 1001), Fraction(60)]),
    kind=st.sampled_from(["model", "reference"]),
)
@settings(max_examples=60, deadline=None)
def test_every_frame_that_memory_can_name_is_planned(
    lengths: list[int], gaps: list[int], fps: Fraction, kind: str
) -> None:
    intervals, at = [], 0
    for length, gap in zip(lengths, gaps, strict=False):
        intervals.append((at + gap, at + gap + length))
        at += gap + length
    plans = plan_story(intervals, fps, Pace(33, 16, kind), 6)
    for plan, (start, end) in zip(plans, intervals, strict=True):
        assert len(plan.clip) % 4 == 1
        assert all(start <= n < end for n in (*plan.clip, *plan.singles))
        assert plan.singles
    for history in range(1, len(plans)):
        for shot, frame in choose_context([p.length for p in plans[:history]], 6):
            assert frame in plans[shot].positions


def test_a_clip_of_another_count_or_pace_is_refused() -> None:
    with pytest.raises(UserError, match="32 is not such a number"):
        Pace(32, 16)
    with pytest.raises(UserError, match="model, reference, not 'fast'"):
        Pace(33, 16, "fast")
