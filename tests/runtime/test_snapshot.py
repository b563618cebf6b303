"""Snapshots and forks: what continues, what diverges, and what is refused with which reason."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shotstream.runtime import snapshot as snapshots
from shotstream.runtime.errors import UserError
from shotstream.runtime.history import History, PastShot

CAPTIONS = [f"scene {i} with a fox" for i in range(8)]
MODEL = snapshots.ModelIdentity("small", "ab" * 32, "float32")
SHAPE = (4, 2, 3)


def play(session, captions, chunks=1):
    made = []
    for caption in captions:
        session.begin_shot(caption, chunks)
        made += [chunk.frames for chunk in session.chunks()]
    return np.concatenate(made)


def packed(model=MODEL, shots=3, first=0, value=1.0):
    past = [
        PastShot(first + i, f"caption {i}", 9, {f: torch.full(SHAPE, value) for f in range(9)}) for i in range(shots)
    ]
    history = History(6)
    for shot in past:
        history.add(shot)
    return snapshots.pack(snapshots.SavedSession(model, 7, "A forest. ", first + shots, 27, history))


# ------------------------------------------------------------------------------------ continuing
@pytest.mark.parametrize("shots_before", [0, 1, 3, 7])
def test_a_restored_session_continues_bit_for_bit(small_runtime, shots_before):
    runtime, other_process = small_runtime(), small_runtime()
    whole = runtime.open("A forest. ", seed=21)
    if shots_before:
        play(whole, CAPTIONS[:shots_before], 2)
    data = whole.snapshot()
    rest = play(whole, CAPTIONS[-2:], 2)
    restored = other_process.restore(data)
    assert restored.snapshot() == data
    assert np.array_equal(play(restored, CAPTIONS[-2:], 2), rest)
    assert restored.snapshot() == whole.snapshot()
    assert restored.frames_made == whole.frames_made


def test_a_restored_session_keeps_a_changed_global_caption(small_runtime):
    runtime = small_runtime()
    session = runtime.open("A forest. ")
    session.cut("a fox", chunks=1, global_caption="The sea. ")
    list(session.chunks())
    assert runtime.restore(session.snapshot()).global_caption == "The sea. "


def test_forks_diverge_by_what_they_are_told_and_by_nothing_else(small_runtime):
    session = small_runtime().open("A forest. ", seed=3)
    play(session, CAPTIONS[:2])
    same, other = session.fork(), session.fork()
    going_on = play(session, ["the fox sleeps", "it wakes"])
    assert np.array_equal(play(same, ["the fox sleeps", "it wakes"]), going_on)
    assert not np.array_equal(play(other, ["a whale jumps", "it wakes"]), going_on)


def test_a_fork_does_not_feel_what_its_origin_does(small_runtime):
    session = small_runtime().open("A forest. ", seed=3)
    play(session, CAPTIONS[:2])
    before = session.snapshot()
    fork = session.fork()
    play(session, CAPTIONS)
    session.close()
    assert fork.snapshot() == before


def test_a_snapshot_is_taken_between_shots_only(small_runtime):
    session = small_runtime().open()
    session.begin_shot("a fox", 2)
    for take in (session.snapshot, session.fork):
        with pytest.raises(UserError, match="between shots"):
            take()
    session.next_chunk()
    with pytest.raises(UserError, match="between shots"):
        session.snapshot()
    session.end_shot()
    assert len(session.snapshot()) < 100_000


def test_a_snapshot_of_the_real_model_stays_below_four_megabytes():
    real = (16, 60, 104)
    history, biggest = History(6), 0
    for shot in range(8):
        latents = {frame: torch.zeros(real) for frame in history.candidates(81)}
        history.add(PastShot(shot, "a caption of some length " * 20, 81, latents))
        data = snapshots.pack(snapshots.SavedSession(MODEL, 7, "A forest. " * 50, shot + 1, 81, history))
        biggest = max(biggest, len(data))
    assert biggest < 4_000_000


# ------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a session snapshot"),
        (b"\x89PNG\r\n\x1a\n and so on and so on, long enough", "not a session snapshot"),
        (packed()[:5], "truncated"),
        (packed()[:20], "truncated"),
        (packed()[:-1], "truncated"),
        (packed() + b"!", "damaged"),
    ],
)
def test_foreign_truncated_and_damaged_bytes_are_refused(data, reason):
    with pytest.raises(UserError, match=reason):
        snapshots.unpack(data, MODEL, SHAPE, 6)


def test_a_snapshot_of_a_newer_version_is_refused():
    data = bytearray(packed())
    struct.pack_into("<I", data, 8, snapshots.VERSION + 1)
    with pytest.raises(UserError, match="update shotstream"):
        snapshots.unpack(bytes(data), MODEL, SHAPE, 6)


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        (snapshots.ModelIdentity("wan-1.3b", "ab" * 32, "float32"), "belongs to the model 'small'"),
        (snapshots.ModelIdentity("small", "cd" * 32, "float32"), "other weights"),
        (snapshots.ModelIdentity("small", "ab" * 32, "bfloat16"), "made in float32"),
    ],
)
def test_a_snapshot_of_another_model_is_refused(here, reason):
    with pytest.raises(UserError, match=reason):
        snapshots.unpack(packed(), here, SHAPE, 6)


def test_another_context_size_and_latents_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="context has 6 frames"):
        snapshots.unpack(packed(), MODEL, SHAPE, 9)
    with pytest.raises(UserError, match="does not fit"):
        snapshots.unpack(packed(), MODEL, (4, 2, 4), 6)
    with pytest.raises(UserError, match="does not fit"):
        snapshots.unpack(packed(value=float("nan")), MODEL, SHAPE, 6)


def test_a_runtime_with_other_weights_refuses_a_session_of_this_one(small_runtime):
    data = small_runtime().open().snapshot()
    with pytest.raises(UserError, match="other weights"):
        small_runtime(weights_seed=1).restore(data)


GOOD = packed()


@settings(deadline=None, max_examples=150)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_no_single_changed_byte_is_accepted(position, change):
    data = bytearray(GOOD)
    data[position] ^= change
    with pytest.raises(UserError):
        snapshots.unpack(bytes(data), MODEL, SHAPE, 6)


@settings(deadline=None, max_examples=150)
@given(st.integers(24, len(GOOD) - 33), st.binary(min_size=1, max_size=8))
def test_changed_content_with_a_right_checksum_never_crashes(position, change):
    body = bytearray(GOOD[:-32])
    body[position : position + len(change)] = change
    body = body[: len(GOOD) - 32]
    data = bytes(body) + hashlib.sha256(bytes(body)).digest()
    try:
        saved = snapshots.unpack(data, MODEL, SHAPE, 6)
    except UserError:
        return
    assert len(saved.history.context()) == 6
