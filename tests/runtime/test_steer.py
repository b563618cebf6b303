"""Steering: a running shot follows another caption without a cut, as if its past had been made under it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from shotstream.runtime.engine import ShotContext, ShotState
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.cache import RecordingKeys
from shotstream.runtime.model.rollout import chunk_pass, clean_pass, denoise_chunk
from shotstream.runtime.noise import NoiseSource
from shotstream.runtime.runtime import Runtime
from shotstream.runtime.session import Chunk, ChunkCancelled, Session

MakeRuntime = Callable[..., Runtime]
Keys = list[tuple[Tensor, Tensor]]


def made(session: Session, count: int = 1) -> list[Chunk]:
    chunks = [session.next_chunk() for _ in range(count)]
    assert None not in chunks
    return [chunk for chunk in chunks if chunk is not None]


def pixels(chunks: list[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in chunks])


def begun(runtime: Runtime, shots_before: int = 0, chunks: int = 7, caption: str = "a fox waits") -> Session:
    """A session in whose current shot nothing has been made yet."""
    session = runtime.open("A forest. ", seed=4)
    for number in range(shots_before):
        session.begin_shot(f"thing number {number}", 2)
        list(session.chunks())
    session.begin_shot(caption, chunks)
    return session


def embedded(runtime: Runtime, full: str) -> Keys:
    return runtime.engine.embed_caption(runtime.parts.text.encode([full]))


def forced(session: Session) -> None:
    """Have the caches made anew although the caption is the same."""
    assert session._running is not None
    session._running.cached_caption = ""


# ------------------------------------------------------------------------------------ what is made anew
@pytest.mark.parametrize("shots_before", [0, 2])
@pytest.mark.parametrize("steered_after", [1, 2, 6])
@torch.inference_mode()
def test_after_a_steer_the_caches_are_those_of_a_shot_that_always_had_the_new_caption(
    small_runtime: MakeRuntime, shots_before: int, steered_after: int
) -> None:
    runtime = small_runtime()
    engine = runtime.engine
    session = begun(runtime, shots_before)
    made(session, steered_after)
    latents = [z for _, z in engine.latents[-steered_after:]]  # type: ignore[attr-defined]
    context: ShotContext = engine.contexts[-1]  # type: ignore[attr-defined]
    session.steer("a fox dances")
    session.settle()

    new = embedded(runtime, f"A forest. shot{shots_before}:a fox dances")
    if not shots_before:  # the null frames of a first shot read the shot's caption, all others their own
        context = ShotContext(context.latents_FCHW, context.flags, [new], context.caption_index)
    always: ShotState = engine.new_state()
    engine.begin_shot(always, context, new)
    for number, z in enumerate(latents):
        engine.clean(always, 3 * number, z)
    visible = (6 + 3 * steered_after) * always.cache.tokens_per_frame
    for ours, theirs in zip(session._state.cache.k, always.cache.k, strict=True):
        assert torch.equal(ours[:, :visible], theirs[:, :visible])
    for ours, theirs in zip(session._state.cache.v, always.cache.v, strict=True):
        assert torch.equal(ours[:, :visible], theirs[:, :visible])

    made(session)
    noise = NoiseSource(4, runtime.device, runtime.dtype)
    shape = (1, *latents[0].shape[1:])
    draws = [noise.draw(shots_before, steered_after, step, shape) for step in range(4)]
    expected = engine.denoise(always, 3 * steered_after, draws[0], lambda step: draws[1 + step])
    assert torch.equal(engine.latents[-2][1], expected)  # type: ignore[attr-defined]


@pytest.mark.parametrize("sink_frames", [0, 3])
@pytest.mark.parametrize("steered_after", [7, 8, 11])
@torch.inference_mode()
def test_in_a_shot_longer_than_the_local_cache_the_chunks_it_holds_are_made_anew(
    small_runtime: MakeRuntime, sink_frames: int, steered_after: int
) -> None:
    """Against a functional cache: every kept chunk sees the kept ones before it, and nothing of the old caption."""
    runtime = small_runtime(model_options={"sink_frames": sink_frames})
    engine, net = runtime.engine, runtime.parts.transformer
    session = begun(runtime, shots_before=1, chunks=20)
    made(session, steered_after)
    latents = [z for _, z in engine.latents[-steered_after:]]  # type: ignore[attr-defined]
    session.steer("a fox dances")
    made(session, 2)
    ours = [z for _, z in engine.latents[-2:]]  # type: ignore[attr-defined]

    state: ShotState = engine.new_state()
    new = embedded(runtime, "A forest. shot1:a fox dances")
    engine.begin_shot(state, engine.contexts[-1], new)  # type: ignore[attr-defined]
    tokens = 6 * state.cache.tokens_per_frame
    context = [(k[:, :tokens], v[:, :tokens]) for k, v in zip(state.cache.k, state.cache.v, strict=True)]
    assert state.conditions is not None

    def joined(parts: list[Keys]) -> Keys:
        layers = zip(context, *parts, strict=True)
        return [(torch.cat([k for k, _ in each], 1), torch.cat([v for _, v in each], 1)) for each in layers]

    def window(before: int, chunks: int) -> list[int]:
        """The chunks that are held when `chunks` more are to be seen with those below `before`."""
        sink = [0] if sink_frames else []
        return sink + [n for n in range(len(sink), before) if n >= before - (chunks - len(sink))]

    own: dict[int, Keys] = {}
    for number in window(steered_after, 7):
        keys = RecordingKeys(joined(list(own.values())))
        clean_pass(net, latents[number], 3 * number, state.conditions, keys)
        own[number] = keys.own
    noise = NoiseSource(4, runtime.device, runtime.dtype)
    for number in (steered_after, steered_after + 1):
        seen = joined([own[n] for n in window(number, 6)])
        draws = [noise.draw(1, number, step, (1, *latents[0].shape[1:])) for step in range(4)]
        z = denoise_chunk(
            net, engine.schedule, engine.steps, draws[0], draws[1:], 3 * number, state.conditions, RecordingKeys(seen)
        )  # type: ignore[attr-defined]
        assert (ours[number - steered_after] - z).abs().max() <= 3e-6 * z.abs().max()
        keys = RecordingKeys(seen)
        chunk_pass(net, z, torch.zeros(()), 3 * number, state.conditions, keys, kv_only=True)
        own[number] = keys.own


def test_the_context_of_a_later_shot_is_not_made_anew(small_runtime: MakeRuntime) -> None:
    runtime = small_runtime()
    session = begun(runtime, shots_before=2)
    made(session, 2)
    contexts, cleaned = runtime.engine.contexts, runtime.engine.cleaned  # type: ignore[attr-defined]
    passes, cleans = len(contexts), len(cleaned)
    session.steer("a fox dances")
    session.settle()
    assert len(contexts) == passes
    assert cleaned[cleans:] == [0, 3]


# ------------------------------------------------------------------------------------ the same caption
@pytest.mark.parametrize("shots_before", [0, 2])
@pytest.mark.parametrize("steered_after", range(8))
def test_making_the_caches_anew_under_the_same_caption_changes_no_bit(
    small_runtime: MakeRuntime, shots_before: int, steered_after: int
) -> None:
    """Up to the length of the local cache, seven chunks: beyond it the chunks dropped can be seen no more."""
    runtime = small_runtime()
    plain, anew = begun(runtime, shots_before, chunks=8), begun(runtime, shots_before, chunks=8)
    expected = made(plain, 8)
    chunks = []
    for number in range(8):
        if number == steered_after and number:
            forced(anew)
        chunks += made(anew)
    assert np.array_equal(pixels(chunks), pixels(expected))


@pytest.mark.parametrize("steered_after", [1, 7, 9])
def test_steering_to_the_same_caption_changes_no_bit(small_runtime: MakeRuntime, steered_after: int) -> None:
    runtime = small_runtime()
    plain, steered = begun(runtime, chunks=10), begun(runtime, chunks=10)
    expected = made(plain, 10)
    chunks = made(steered, steered_after)
    cleaned = len(runtime.engine.cleaned)  # type: ignore[attr-defined]
    steered.steer("a fox dances")
    steered.steer("a fox waits")  # a change of mind before the next chunk costs nothing either
    chunks += made(steered)
    assert len(runtime.engine.cleaned) == cleaned + 1  # type: ignore[attr-defined]
    chunks += made(steered, 9 - steered_after)
    assert np.array_equal(pixels(chunks), pixels(expected))
    assert plain.snapshot() == steered.snapshot()


# ------------------------------------------------------------------------------------ what the film is
def test_what_was_shown_stays_and_what_follows_is_another_film(small_runtime: MakeRuntime) -> None:
    runtime = small_runtime()
    plain, steered = begun(runtime), begun(runtime)
    expected = made(plain, 7)
    chunks = made(steered, 3)
    steered.steer("a fox dances")
    chunks += made(steered, 4)
    assert np.array_equal(pixels(chunks[:3]), pixels(expected[:3]))
    assert not np.array_equal(chunks[3].frames, expected[3].frames)
    assert [c.caption for c in chunks] == ["a fox waits"] * 3 + ["a fox dances"] * 4
    assert [(c.shot, c.chunk, c.first_frame, c.last) for c in chunks] == [
        (c.shot, c.chunk, c.first_frame, c.last) for c in expected
    ]


def test_when_the_caches_are_made_anew_does_not_matter(small_runtime: MakeRuntime) -> None:
    runtime = small_runtime()
    films = []
    for settle in (False, True):
        session = begun(runtime, shots_before=1)
        chunks = made(session, 2)
        if settle:
            session.settle()
        session.steer("a whale")
        session.steer("a fox dances")
        if settle:
            session.settle()
            with pytest.raises(ChunkCancelled):
                session.next_chunk(lambda: True)
        chunks += made(session, 5)
        films.append(pixels(chunks))
    assert np.array_equal(*films)


@pytest.mark.parametrize("shots_before", [0, 1])
def test_a_shot_steered_before_its_first_chunk_equals_one_that_began_so(
    small_runtime: MakeRuntime, shots_before: int
) -> None:
    runtime = small_runtime()
    asked: list[int] = []
    steered = begun(runtime, shots_before, chunks=2)
    with pytest.raises(ChunkCancelled):
        steered.next_chunk(lambda: asked.append(1) or len(asked) > 4)  # type: ignore[func-returns-value]
    steered.steer("a fox dances")
    plain = begun(runtime, shots_before, chunks=2, caption="a fox dances")
    assert np.array_equal(pixels(made(steered, 2)), pixels(made(plain, 2)))
    assert steered.snapshot() == plain.snapshot()


def test_the_new_caption_has_the_label_and_the_global_caption_of_its_shot(small_runtime: MakeRuntime) -> None:
    session = begun(small_runtime(), shots_before=2)
    session.end_shot()
    session.forget()
    session.cut("a whale", chunks=3, global_caption="The sea. ")
    list(session.chunks())
    session.cut("a crab", chunks=3)
    made(session)
    session.steer("a crab waves")
    made(session, 2)
    assert [past.caption for past in session.history.shots] == ["The sea. shot0:a whale", "The sea. shot1:a crab waves"]


STORY = "A story about a red cat and a white rabbit. Setting: meadow by day."


def steered(runtime: Runtime, first: str, then: str) -> np.ndarray:
    """The frames of a shot of five chunks, whose last three follow the second caption."""
    with runtime.open(STORY, seed=4) as session:
        session.cut(first, chunks=5)
        chunks = made(session, 2)
        session.steer(then)
        return pixels(chunks + made(session, 3))


def red(frames: np.ndarray) -> float:
    """Share of clearly red pixels: the cat's size in the picture."""
    r, g, b = (frames[..., i].astype(int) for i in range(3))
    return float(((r > 150) & (g < 90) & (b < 90)).mean())


def motion(frames: np.ndarray) -> float:
    """Mean change of a pixel from frame to frame in the last chunk."""
    return float(np.abs(np.diff(frames[-13:].astype(float), axis=0)).mean())


def test_the_embedded_model_does_what_it_is_steered_to() -> None:
    """A standing figure dances; a wide shot becomes a close-up."""
    medium, wide, close = "Medium shot: the red cat", "Wide shot: the red cat", "Close-up: the red cat"
    still = f"{medium} stands still."
    with Runtime("tiny") as runtime:
        assert motion(steered(runtime, still, f"{medium} dances.")) > 1.3 * motion(steered(runtime, still, still)) > 0
        stays, nearer = (steered(runtime, f"{wide} stands still.", f"{to} stands still.") for to in (wide, close))
    shown = 9 + 12
    assert np.array_equal(nearer[:shown], stays[:shown])
    assert red(nearer[-12:]) > 2.5 * red(stays[-12:]) > 0


def test_the_embedded_model_is_steered_from_one_hero_to_another() -> None:
    with Runtime("tiny") as runtime:
        leaves = steered(runtime, "Close-up: the red cat stands still.", "Close-up: the white rabbit stands still.")
    assert red(leaves[-12:]) < 0.1 * red(leaves[:9])


# ------------------------------------------------------------------------------------ what is remembered
def test_context_frames_read_the_caption_they_were_made_under(small_runtime: MakeRuntime) -> None:
    runtime = small_runtime()
    session = begun(runtime, chunks=4)
    made(session, 2)
    session.steer("a fox dances")
    made(session, 2)
    session.begin_shot("a crab", 1)
    made(session)
    context: ShotContext = runtime.engine.contexts[-1]  # type: ignore[attr-defined]
    waits, dances = (embedded(runtime, f"A forest. shot0:a fox {does}") for does in ("waits", "dances"))
    # Frames 0, 9, 18, 26, 35 and 44 of 45; the first two chunks have 21.
    assert list(context.caption_index) == [0, 0, 0, 1, 1, 1]
    for ours, expected in zip(context.captions, (waits, dances), strict=True):
        assert torch.equal(ours[0][0], expected[0][0])
    assert list(context.flags) == [0] * 6


def test_a_shot_steered_after_its_last_chunk_is_remembered_as_it_was_seen(small_runtime: MakeRuntime) -> None:
    runtime = small_runtime()
    plain, steered = begun(runtime), begun(runtime)
    made(plain, 2)
    made(steered, 2)
    steered.steer("a fox dances")
    for session in (plain, steered):
        session.cut("a crab", chunks=2)
    assert np.array_equal(pixels(made(steered, 2)), pixels(made(plain, 2)))
    assert steered.snapshot() == plain.snapshot()


@pytest.mark.parametrize("shots_after", [0, 1, 5])
def test_a_session_with_steered_shots_continues_bit_for_bit_from_its_snapshot(
    small_runtime: MakeRuntime, shots_after: int
) -> None:
    runtime, other_process = small_runtime(), small_runtime()
    session = begun(runtime, chunks=3)
    made(session)
    session.steer("a fox dances")
    made(session, 2)
    for number in range(shots_after):
        session.begin_shot(f"thing number {number}", 1)
        made(session)
    data = session.snapshot()
    restored, fork = other_process.restore(data), session.fork()
    assert restored.snapshot() == fork.snapshot() == data
    films = []
    for each in (session, restored, fork):
        chunks = []
        for number in range(2):
            each.begin_shot(f"other thing {number}", 2)
            chunks += made(each, 2)
        films.append(pixels(chunks))
    assert np.array_equal(films[0], films[1])
    assert np.array_equal(films[0], films[2])


def test_captions_that_no_kept_frame_was_made_under_are_forgotten(small_runtime: MakeRuntime) -> None:
    session = begun(small_runtime(), shots_before=6, chunks=40)
    made(session)
    for number in range(39):
        session.steer(f"never seen {number}")
        session.steer(f"a fox does {number}")
        made(session)
        # Of a shot after six others only the first frame is ever shown again.
        assert len(session._captions) <= 6 + 2


# ------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(("caption", "reason"), [("", "empty"), ("  ", "empty"), ("fox " * 900, "at most 24")])
def test_a_bad_caption_is_refused_and_the_shot_goes_on_as_it_was(
    small_runtime: MakeRuntime, caption: str, reason: str
) -> None:
    runtime = small_runtime()
    plain, refused = begun(runtime), begun(runtime)
    expected, chunks = made(plain, 3), made(refused)
    with pytest.raises(UserError, match=reason):
        refused.steer(caption)
    chunks += made(refused, 2)
    assert np.array_equal(pixels(chunks), pixels(expected))
    assert chunks[-1].caption == "a fox waits"


def test_there_is_nothing_to_steer_between_shots_and_in_a_closed_session(small_runtime: MakeRuntime) -> None:
    session = small_runtime().open()
    with pytest.raises(UserError, match="no shot is running"):
        session.steer("a fox dances")
    session.begin_shot("a fox", 1)
    with pytest.raises(UserError, match="no shot is running"):  # it has not begun; a cut replaces it
        session.steer("a fox dances")
    assert [c.caption for c in made(session)] == ["a fox"]
    with pytest.raises(UserError, match="no shot is running"):
        session.steer("a fox dances")
    session.close()
    with pytest.raises(UserError, match="closed"):
        session.steer("a fox dances")
