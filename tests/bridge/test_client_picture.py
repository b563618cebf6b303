"""A frame's bytes become a picture without being copied, and never a picture that they are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from shotstream.bridge.client import Frame
from shotstream.bridge.client.clock import ServerClock
from shotstream.bridge.client.picture import BrokenPicture
from shotstream.bridge.protocol import messages as m
from shotstream.runtime.errors import UserError


def header(**facts) -> m.Frame:
    return m.Frame(
        **{"session": "s", "shot": 0, "chunk": 0, "index": 0, "seq": 7, "epoch": 0, "pts": 0, "w": 3, "h": 2} | facts
    )


def jpeg(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "JPEG")
    return file.getvalue()


def test_rows_may_be_padded() -> None:
    data = bytes(range(12)) + bytes(range(100, 109))
    frame = Frame(header(stride=12), data, 0.0)
    assert frame.pixels.shape == (2, 3, 3)
    assert frame.pixels[1].ravel().tolist() == list(range(100, 109)), "the last row needs no padding"
    assert np.shares_memory(frame.pixels, np.frombuffer(data, np.uint8))


def test_blue_first_is_read_as_such() -> None:
    frame = Frame(header(enc="bgra32"), bytes([1, 2, 3, 255] * 6), 0.0)
    assert frame.pixels.shape == (2, 3, 4)
    assert frame.rgb[0, 0].tolist() == [3, 2, 1]


@pytest.mark.parametrize("facts", [{"w": 2**52, "h": 2**52}, {"h": 3}, {"stride": 8}, {"stride": 2**50}, {"w": 0}])
def test_a_header_that_claims_more_than_there_is_is_refused(facts) -> None:
    with pytest.raises(BrokenPicture):
        Frame(header(**facts), bytes(18), 0.0)


def test_a_frame_without_its_bytes_is_refused() -> None:
    with pytest.raises(BrokenPicture):
        Frame(header(), None, 0.0)


def test_a_jpeg_of_another_size_than_announced_is_not_decoded() -> None:
    assert Frame(header(enc="jpeg"), jpeg(3, 2), 0.0).pixels.shape == (2, 3, 3)
    with pytest.raises(UserError, match="announced as 3x2"):
        _ = Frame(header(enc="jpeg"), jpeg(64, 64), 0.0).pixels


def test_a_film_without_pictures_says_so() -> None:
    with pytest.raises(UserError, match="enc='none'"):
        _ = Frame(header(enc="none"), None, 0.0).pixels


def test_the_clock_believes_the_quickest_of_the_last_eight_pings() -> None:
    clock = ServerClock()
    assert clock.offset_us is None
    clock.add(0, 5_000_400, 5_000_500, 1_000)
    clock.add(10_000, 5_010_050, 5_010_050, 10_100)
    clock.add(20_000, 5_029_000, 5_029_000, 40_000)
    assert clock.offset_us == 5_000_000
    assert clock.round_trip_ms == 0.1
    for _ in range(8):
        clock.add(0, 7_000_100, 7_000_100, 200)
    assert clock.offset_us == 7_000_000
    clock.add(500, 1, 2, 0)
    assert clock.offset_us == 7_000_000, "what cannot be is left out"
