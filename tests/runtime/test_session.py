"""Sessions: shots, cuts, context, captions, and what a film may depend on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shotstream.runtime.errors import UserError
from shotstream.runtime.history import History, PastShot, reachable_frames
from shotstream.runtime.model.context import choose_context
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.noise import normal

CAPTIONS = ["a red robot walks in", "the robot meets a fox", "they dance at night", "rain begins", "the end of it"]


def play(session, captions, chunks=2):
    """Frames of all shots, concatenated."""
    made = []
    for caption in captions:
        session.begin_shot(caption, chunks)
        made += [chunk.frames for chunk in session.chunks()]
    return np.concatenate(made)


# ------------------------------------------------------------------------------------ the loop of the reference
class PlainCache:
    """Caches as the reference has them: lists that are concatenated."""

    def __init__(self, visible):
        self.visible, self.own = visible, []

    def extend(self, layer, k, v):
        if layer == 0:
            self.own = []
        self.own.append((k, v))
        before = [kv[layer] for kv in self.visible]
        return torch.cat([*(b[0] for b in before), k], 1), torch.cat([*(b[1] for b in before), v], 1)


def plain_film(runtime, seed, global_caption, captions, chunks):
    """The reference's shot loop, step by step; returns the latents [F, C, h, w] of every shot."""
    parts = runtime.parts
    net, vae, config = parts.transformer, parts.decoder, parts.config
    schedule = NoiseSchedule(config.shift)
    steps = [schedule.timesteps[1000 - nominal] for nominal in (1000, 740, 500, 260)]
    sigmas = [float(schedule.sigmas[1000 - nominal]) for nominal in (1000, 740, 500, 260)]
    videos, latents_of_shots, strings = [], [], []
    for shot, caption in enumerate(captions):
        strings.append(f"{global_caption}shot{shot}:{caption}")
        text = net.embed_captions(torch.cat([parts.text.encode([s]) for s in strings]))
        if shot == 0:
            context, flags = torch.zeros(1, 6, *parts.latent_shape), [0] * 6
        else:
            base, rest = divmod(6, shot)
            frames, flags = [], []
            for past in range(shot):
                count = base + (past >= shot - rest)
                length = videos[past].shape[0]
                for i in range(count):
                    at = round((length - 1) * i / (count - 1)) if count > 1 else 0
                    frames.append(vae.encode_frames(videos[past][at][None]))
                    flags.append(past)
            context = torch.stack([torch.cat(frames)], 0)

        def index(values, text=text):
            return None if text[0][0].shape[0] == 1 else torch.tensor([values])

        keys = PlainCache([])
        zeros = torch.zeros(1, 6)
        net(context, zeros, text, index(flags), torch.arange(6)[None], torch.tensor([flags]), keys=keys)
        visible, target = [keys.own], flags[-1] + 1
        shape = (1, 3, *parts.latent_shape)
        done = []
        for chunk in range(chunks):
            draws = [torch.from_numpy(normal(seed, shot, chunk, i, int(np.prod(shape)))).view(shape) for i in range(4)]
            positions = (6 + 3 * chunk + torch.arange(3))[None]
            flag, caption_index = torch.tensor([[target] * 3]), index([shot] * 3)
            x = draws[0]
            for i in range(4):
                keys = PlainCache(visible)
                t = steps[i].expand(1, 3)
                flow = net(x, t, text, caption_index, positions, flag, keys=keys)
                x0 = (x.double() - sigmas[i] * flow.double()).float()
                if i < 3:
                    x = (1 - sigmas[i + 1]) * x0 + sigmas[i + 1] * draws[i + 1]
            keys = PlainCache(visible)
            net(x0, torch.zeros(1, 3), text, caption_index, positions, flag, keys=keys)
            visible.append(keys.own)
            done.append(x0)
        latents = torch.cat(done, 1)
        latents_of_shots.append(latents[0])
        videos.append(vae.decode(latents)[0])
    return latents_of_shots, videos


def test_a_session_makes_what_the_reference_loop_makes(small_runtime):
    runtime = small_runtime()
    captions, chunks, seed = CAPTIONS[:4], 3, 11
    with torch.no_grad():
        latents, videos = plain_film(runtime, seed, "A forest. ", captions, chunks)
    frames = play(runtime.open("A forest. ", seed=seed), captions, chunks)
    made = [torch.cat([z[0] for _, z in runtime.engine.latents[i : i + chunks]]) for i in range(0, 12, chunks)]
    for ours, plain in zip(made, latents, strict=True):
        assert (ours - plain).abs().max() <= 3e-6 * plain.abs().max()
    pixels = torch.cat(videos).mul(0.5).add(0.5).mul(255).round().permute(0, 2, 3, 1).numpy()
    difference = np.abs(frames.astype(int) - pixels.astype(int))
    assert difference.max() <= 1  # a pixel on the edge between two byte values may round either way
    assert (difference > 0).mean() < 1e-3


# ------------------------------------------------------------------------------------ flags, captions, context
def test_context_frames_carry_the_flags_and_captions_of_their_shots(small_runtime):
    runtime = small_runtime()
    session = runtime.open("A forest. ", seed=1)
    words = [f"thing number {i}" for i in range(9)]
    play(session, words, chunks=1)
    table = [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 1],
        [0, 0, 1, 1, 2, 2],
        [0, 1, 2, 2, 3, 3],
        [0, 1, 2, 3, 4, 4],
        [0, 1, 2, 3, 4, 5],
        [1, 2, 3, 4, 5, 6],
        [2, 3, 4, 5, 6, 7],
    ]
    contexts = runtime.engine.contexts
    assert [list(c.flags) for c in contexts] == table
    assert runtime.engine.target_flags == [1, 1, 2, 3, 4, 5, 6, 7, 8]  # shot 0 has flag 1, as the reference
    assert contexts[0].latents_FCHW.abs().max() == 0
    for context, flags in zip(contexts[1:], table[1:], strict=True):
        for slot, flag in enumerate(flags):
            own = runtime.engine.embed_caption(runtime.parts.text.encode([f"A forest. shot{flag}:{words[flag]}"]))
            assert torch.equal(context.captions[context.caption_index[slot]][0][0], own[0][0])


def test_context_frames_keep_the_global_caption_they_were_made_with(small_runtime):
    session = small_runtime().open("A forest. ")
    play(session, ["a fox"], 1)
    session.cut("a whale", chunks=1, global_caption="The sea. ")
    list(session.chunks())
    session.cut("a crab", chunks=1)
    list(session.chunks())
    assert [s.caption for s in session.history.shots] == [
        "A forest. shot0:a fox",
        "The sea. shot1:a whale",
        "The sea. shot2:a crab",
    ]


# ------------------------------------------------------------------------------------ candidates
@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=14))
def test_history_holds_every_frame_that_is_ever_picked_and_no_other(lengths):
    history = History(6)
    for shot, length in enumerate(lengths):
        latents = {frame: torch.tensor([[[float(shot * 1000 + frame)]]]) for frame in history.candidates(length)}
        history.add(PastShot(shot, f"caption {shot}", length, latents))
        expected = choose_context(lengths[: shot + 1])
        picked = history.context()
        assert [(c.shot, c.frame) for c in picked] == expected
        assert [float(c.latent_CHW) for c in picked] == [s * 1000 + f for s, f in expected]
        # Nothing is kept in vain: every frame is picked at once, or by a later shot if all further shots are short.
        later = {p for more in range(7) for p in choose_context([*lengths[: shot + 1], *[1] * more])}
        kept = {(s.number, frame) for s in history.shots for frame in s.latents}
        assert kept == {p for p in later if p[0] <= shot}
        assert len(kept) <= 8
        assert len(history.shots) <= 6


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.lists(st.integers(1, 100), max_size=8))
def test_what_can_be_picked_does_not_depend_on_the_lengths_of_later_shots(lengths, later):
    picked = {p for n in range(len(later) + 1) for p in choose_context([*lengths, *later[:n]])}
    assert {p for p in picked if p[0] < len(lengths)} <= reachable_frames(lengths, 6)


def test_a_session_of_fifty_shots_stays_as_small_as_after_six(small_runtime):
    session = small_runtime().open("A forest. ")
    sizes, kept = [], []
    for shot in range(50):
        session.begin_shot(f"thing {shot % 7}", 1 + shot % 2)
        for _ in session.chunks():
            pass
        kept.append(sum(len(s.latents) for s in session.history.shots))
        sizes.append((len(session.snapshot()), len(session._captions)))
    assert max(kept) <= 8
    assert set(kept[6:]) == {6}
    assert max(size for size, _ in sizes[10:]) <= sizes[8][0] + 64
    assert max(count for _, count in sizes) <= 7


# ------------------------------------------------------------------------------------ cuts
def test_chunks_have_nine_frames_then_twelve_and_are_numbered_through_the_film(small_runtime):
    session = small_runtime().open()
    session.begin_shot("a fox", 3)
    chunks = list(session.chunks())
    session.begin_shot("a crab", 2)
    chunks += list(session.chunks())
    assert [len(c.frames) for c in chunks] == [9, 12, 12, 9, 12]
    assert [c.first_frame for c in chunks] == [0, 9, 21, 33, 42]
    assert [(c.shot, c.chunk, c.last) for c in chunks] == [
        (0, 0, False), (0, 1, False), (0, 2, True), (1, 0, False), (1, 1, True),
    ]  # fmt: skip
    assert chunks[0].frames.shape[1:] == (64, 96, 3)
    assert chunks[0].frames.dtype == np.uint8
    first, second = chunks[0].timings, chunks[1].timings
    assert min(first.text, first.context, first.denoise, first.decode) > 0
    assert first.clean == 0
    assert second.clean > 0
    assert second.context == second.text == 0


def test_a_cut_ends_the_running_shot_after_the_chunk_it_has_reached(small_runtime):
    runtime = small_runtime()
    session = runtime.open(seed=4)
    session.begin_shot("a fox", 7)
    seen = []
    for chunk in session.chunks():
        seen.append((chunk.shot, chunk.chunk))
        if seen == [(0, 0), (0, 1)]:
            session.cut("a crab", chunks=2)
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert runtime.engine.cleaned == [0, 0]  # no clean pass after a shot's last chunk, planned or cut
    assert session.history.shots[0].length == 21


def test_a_shot_that_is_cut_equals_one_that_was_planned_as_long(small_runtime):
    runtime = small_runtime()
    cut, planned = runtime.open("A forest. ", seed=4), runtime.open("A forest. ", seed=4)
    cut.begin_shot("a fox", 6)
    first = [cut.next_chunk(), cut.next_chunk(), cut.next_chunk()]
    cut.cut("a crab", chunks=2)
    frames = np.concatenate([c.frames for c in (*first, *cut.chunks())])
    planned.begin_shot("a fox", 3)
    other = list(planned.chunks())
    planned.begin_shot("a crab", 2)
    assert np.array_equal(frames, np.concatenate([c.frames for c in (*other, *planned.chunks())]))
    assert cut.snapshot() == planned.snapshot()


def test_a_shot_longer_than_the_local_cache_goes_on_through_the_ring(small_runtime):
    runtime = small_runtime()
    session = runtime.open()
    held = session._state.nbytes
    session.begin_shot("a fox", 10)
    chunks = list(session.chunks())
    assert sum(len(c.frames) for c in chunks) == 9 + 9 * 12
    assert session._state.nbytes == held
    session.begin_shot("a crab", 1)
    list(session.chunks())
    assert all(bool(z.isfinite().all()) for _, z in runtime.engine.latents)


def test_the_decoder_starts_afresh_at_every_shot(small_runtime):
    session = small_runtime().open()
    session.begin_shot("a fox", 2)
    list(session.chunks())
    session.begin_shot("a fox", 1)
    assert len(session.next_chunk().frames) == 9


# ------------------------------------------------------------------------------------ independence
def test_interleaved_sessions_equal_the_same_sessions_alone(small_runtime):
    runtime = small_runtime()
    alone = [play(runtime.open("A forest. ", seed=s), CAPTIONS[s:], 2) for s in (1, 2)]
    together = [runtime.open("A forest. ", seed=s) for s in (1, 2)]
    made = [[], []]
    for step in range(3):
        for session, captions in zip(together, (CAPTIONS[1:], CAPTIONS[2:]), strict=True):
            session.begin_shot(captions[step], 2)
        for _ in range(2):
            for frames, session in zip(made, together, strict=True):
                frames.append(session.next_chunk().frames)
    for frames, whole in zip(made, alone, strict=True):
        mixed = np.concatenate(frames)
        assert np.array_equal(mixed, whole[: len(mixed)])


def test_settling_early_changes_nothing(small_runtime):
    runtime = small_runtime()
    plain = play(runtime.open(seed=5), CAPTIONS[:3], 3)
    session, made = runtime.open(seed=5), []
    for caption in CAPTIONS[:3]:
        session.begin_shot(caption, 3)
        for chunk in session.chunks():
            made.append(chunk.frames)
            session.settle()
            session.settle()
    assert np.array_equal(np.concatenate(made), plain)


def test_another_seed_makes_another_film(small_runtime):
    runtime = small_runtime()
    assert not np.array_equal(play(runtime.open(seed=1), ["a fox"]), play(runtime.open(seed=2), ["a fox"]))


def test_closed_sessions_lend_their_caches_to_new_ones(small_runtime):
    runtime = small_runtime()
    with runtime.open(seed=1) as first:
        before = play(first, CAPTIONS[:2])
        state = first._state
    second = runtime.open(seed=1)
    assert second._state is state
    assert np.array_equal(play(second, CAPTIONS[:2]), before)


# ------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("caption", "chunks", "reason"),
    [
        ("", 1, "empty"),
        ("   ", 1, "empty"),
        ("fox " * 900, 1, "at most 24"),
        ("a fox", 0, "1 to 100"),
        ("a fox", 101, "1 to 100"),
        ("a fox", 2.5, "1 to 100"),
    ],
)
def test_an_impossible_shot_is_refused_and_the_session_plays_on(small_runtime, caption, chunks, reason):
    session = small_runtime().open("A forest. ")
    session.begin_shot("a fox", 2)
    session.next_chunk()
    with pytest.raises(UserError, match=reason):
        session.cut(caption, chunks=chunks)
    assert session.next_chunk().chunk == 1


def test_a_shot_cannot_begin_inside_another_and_nothing_runs_in_a_closed_session(small_runtime):
    session = small_runtime().open()
    session.begin_shot("a fox", 2)
    with pytest.raises(UserError, match="still running"):
        session.begin_shot("a crab", 1)
    session.close()
    session.close()
    for call in (session.next_chunk, session.snapshot, session.fork, lambda: session.cut("a crab")):
        with pytest.raises(UserError, match="closed"):
            call()


def test_without_a_shot_there_is_no_chunk(small_runtime):
    session = small_runtime().open()
    assert session.next_chunk() is None
    session.begin_shot("a fox", 1)
    session.end_shot()
    assert session.next_chunk() is None
    assert session.shots_begun == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's size from /proc")
def test_the_process_stays_as_large_as_after_ten_shots(small_runtime):
    session, sizes = small_runtime(engine="eager").open("A forest. "), []
    for shot in range(50):
        session.begin_shot(f"thing {shot}", 3)
        for _ in session.chunks():
            pass
        session.settle()
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    assert sizes[-1] - sizes[10] < 4_000_000
