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
from shotstream.runtime.chunk import ChunkCancelled
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


def test_a_fork_and_its_origin_do_not_feel_each_other_while_both_go_on(small_runtime):
    """Chunk by chunk in turns, with cuts, against the same two films made alone."""

    def tell(session, words):
        session.begin_shot(words, 3)
        yield session.next_chunk().frames
        session.cut(f"{words} again", chunks=2)
        for chunk in session.chunks():
            yield chunk.frames

    runtime = small_runtime()
    alone = []
    for words in ("the fox sleeps", "a whale jumps"):
        session = runtime.open("A forest. ", seed=3)
        play(session, CAPTIONS[:2])
        alone.append(np.concatenate(list(tell(session, words))))
    origin = runtime.open("A forest. ", seed=3)
    play(origin, CAPTIONS[:2])
    fork = origin.fork()
    turns = zip(tell(origin, "the fox sleeps"), tell(fork, "a whale jumps"), strict=True)
    for film, frames in zip(alone, zip(*turns, strict=True), strict=True):
        assert np.array_equal(np.concatenate(frames), film)


@pytest.mark.parametrize("shots_before", [0, 1, 7])
@pytest.mark.parametrize("made", [0, 1, 3])
def test_a_fork_of_a_running_shot_goes_on_as_if_the_shot_had_ended_there(small_runtime, shots_before, made):
    """And the shot plays on as if nobody had forked it."""
    runtime = small_runtime()
    forked, ended, plain = (runtime.open("A forest. ", seed=3) for _ in range(3))
    frames = []
    for session in (forked, ended, plain):
        if shots_before:
            play(session, CAPTIONS[:shots_before])
        session.cut("a fox walks", chunks=5, global_caption="The sea. ")
        frames.append([session.next_chunk().frames for _ in range(made)])
    ended.end_shot()
    fork = forked.fork(mid_shot=True)
    assert fork.snapshot() == ended.snapshot() == forked.snapshot(mid_shot=True)
    assert np.array_equal(play(fork, CAPTIONS[-2:], 2), play(ended, CAPTIONS[-2:], 2))
    rest = [np.concatenate([c.frames for c in session.chunks()]) for session in (forked, plain)]
    assert np.array_equal(*rest)
    assert forked.snapshot() == plain.snapshot()


def test_the_first_chunk_of_every_option_can_be_made_while_the_shot_before_still_plays(small_runtime):
    """What a game does at a choice: prepare all options, take one, drop the others, and go on with the fork."""
    runtime = small_runtime()
    session = runtime.open("A forest. ", seed=3)
    session.cut("a fox waits", chunks=4)
    frames = [session.next_chunk().frames for _ in range(2)]
    ways = {way: session.fork(mid_shot=True) for way in ("a fox swims", "a fox climbs", "a fox sleeps")}
    prepared = {}
    for way, fork in ways.items():
        fork.cut(way, chunks=2)
        prepared[way] = fork.next_chunk()
    session.close()  # the player has taken one: the shot ends with the chunk that was forked
    taken = ways.pop("a fox climbs")
    for fork in ways.values():
        fork.close()
    frames += [prepared["a fox climbs"].frames, *(c.frames for c in taken.chunks())]
    plain = runtime.open("A forest. ", seed=3)
    expected = [play(plain, ["a fox waits"], 2), play(plain, ["a fox climbs"], 2)]
    assert np.array_equal(np.concatenate(frames), np.concatenate(expected))
    assert taken.snapshot() == plain.snapshot()
    assert prepared["a fox climbs"].first_frame == 21


def test_a_fork_of_a_running_shot_leaves_out_a_shot_that_waits_and_one_never_seen(small_runtime):
    session = small_runtime().open("A forest. ", seed=3)
    session.begin_shot("a fox", 3)
    waiting = session.fork(mid_shot=True)
    asked = []
    with pytest.raises(ChunkCancelled):
        session.next_chunk(lambda: asked.append(1) or len(asked) > 3)
    begun = session.fork(mid_shot=True)
    for fork in (waiting, begun):
        assert fork.at_boundary
        assert (fork.shots_begun, fork.frames_made) == (0, 0)
    assert np.array_equal(play(waiting, ["a crab"]), play(begun, ["a crab"]))
    session.close()
    with pytest.raises(UserError, match="closed"):
        session.fork(mid_shot=True)


@pytest.mark.parametrize("version", [1, 2])
def test_a_film_without_steering_is_saved_in_a_format_that_older_versions_read(version):
    (written,) = struct.unpack_from("<I", packed(), 8)
    assert written == 2 < snapshots.VERSION
    data = bytearray(packed())[:-32]
    struct.pack_into("<I", data, 8, version)
    restored = snapshots.unpack(bytes(data) + hashlib.sha256(bytes(data)).digest(), MODEL, SHAPE, 6)
    assert all(not shot.earlier for shot in restored.history.shots)


def test_captions_of_frames_that_are_not_there_are_refused():
    shot = PastShot(0, "caption", 9, {f: torch.zeros(SHAPE) for f in range(9)}, {9: "another caption"})
    data = snapshots.pack(snapshots.SavedSession(MODEL, 7, "A forest. ", 1, 9, History(6, [shot])))
    assert struct.unpack_from("<I", data, 8) == (3,)
    with pytest.raises(UserError, match="captions make no sense"):
        snapshots.unpack(data, MODEL, SHAPE, 6)


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
