"""Sessions: a film that is made shot by shot, chunk by chunk, while its story is still being told.

A session knows shots, captions and frames; how a step is executed is the engine's business.
Source: reference `pipeline/causal_inference_ar.py`. Unlike the reference it decodes after every chunk, keeps
nothing of a finished shot but the frames that can still be picked as context, and skips the clean pass of a shot's last
chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from shotstream.runtime import snapshot as snapshots
from shotstream.runtime.captions import EmbeddedCaptions
from shotstream.runtime.chunk import Chunk, ChunkCancelled
from shotstream.runtime.engine import ShotContext
from shotstream.runtime.errors import UserError
from shotstream.runtime.heap import give_back_free_memory
from shotstream.runtime.history import ContextFrame, History
from shotstream.runtime.making import ChunkMaker
from shotstream.runtime.noise import NoiseSource
from shotstream.runtime.shot import RunningShot
from shotstream.runtime.storyline import full_caption
from shotstream.runtime.timing import Stopwatch

if TYPE_CHECKING:
    from shotstream.runtime.runtime import Runtime

MAX_CHUNKS = 100


class Session:
    """One film. Open it with `Runtime.open`; sessions of one runtime do not influence each other.

    `cut` or `begin_shot` says what comes next, `steer` what the running shot is to show from now on, `chunks` (or
    `next_chunk`) makes it. Not for use by several threads at once.
    """

    def __init__(self, runtime: Runtime, seed: int, global_caption: str, *, history: History | None = None) -> None:
        parts = runtime.parts
        self.runtime = runtime
        self.global_caption = global_caption
        self.shots_begun = 0
        self.frames_made = 0
        self.memory_begins = 0
        """Number of the first shot that is remembered; 0 unless `forget` was called."""
        config = parts.config
        self._noise = NoiseSource(
            seed, runtime.device, runtime.dtype, runtime.fill_noise, config.noise_offset, config.patch[1:]
        )
        self._history = history or History(parts.config.context_frames)
        self._state = runtime.take_state()
        self._watch = Stopwatch(runtime.device)
        self._maker = ChunkMaker(parts, runtime.engine, self._state, self._noise, self._watch, runtime.run_ahead)
        self._captions = EmbeddedCaptions(parts, runtime.engine, self._watch)
        self._running: RunningShot | None = None
        self._next: RunningShot | None = None
        self._ended: RunningShot | None = None
        """Over, but its candidate frames are not in the history yet."""
        self._closed = False

    # -------------------------------------------------------------------------------- what the caller reads
    @property
    def seed(self) -> int:
        """The seed that, with shot, chunk and step, decides all noise."""
        return self._noise.seed

    @property
    def at_boundary(self) -> bool:
        """True between shots: nothing is running and nothing is waiting to begin."""
        return not self._closed and self._running is None and self._next is None

    @property
    def history(self) -> History:
        """The finished shots that later ones may still be shown."""
        self.settle()
        self._maker.join()
        return self._history

    # -------------------------------------------------------------------------------- what the caller says
    def cut(self, caption: str, *, chunks: int | None = None, global_caption: str | None = None) -> None:
        """Begin a new shot now: a running one ends with the chunk it has reached.

        chunks: its planned length, 1 to 100 (None: the model's usual length). global_caption: replaces the session's
        from this shot on. Raises UserError for an empty or too long caption; the session is then as before.
        """
        self._check_open()
        self._next = self._plan(caption, chunks, global_caption)
        shot = self._running
        if shot is not None and (shot.made or shot.abandoned):
            shot.chunks = shot.made
            self._end_running()
        elif shot is not None:  # begun, but without a frame yet: it shows one chunk
            shot.chunks = 1

    def steer(self, caption: str) -> None:
        """Let the running shot follow another caption from its next chunk on, without a cut.

        What the shot has shown stays: its cached keys and values are made anew from its clean latents as if they had
        been made under this caption (LongLive's recache), when the next chunk is asked for or at `settle`. Raises
        UserError where no shot is running and for an empty or too long caption; the session is then as before.
        """
        self._check_open()
        shot = self._running
        if shot is None or shot.over:
            raise UserError("no shot is running that could be steered; cut to the next one instead")
        full, text_kv = self._read(caption, shot.global_caption, shot.number)
        shot.caption, shot.full_caption, shot.text_kv = caption, full, text_kv
        self._drop_unused_text()

    def begin_shot(self, caption: str, chunks: int | None = None, *, global_caption: str | None = None) -> None:
        """As `cut`, for callers that let every shot play to its end: raises UserError while one is running."""
        if self._running is not None or self._next is not None:
            raise UserError("a shot is still running; play it to its end, or cut to the next one")
        self.cut(caption, chunks=chunks, global_caption=global_caption)

    def end_shot(self) -> None:
        """End the running shot with the chunk it has reached, and forget a shot that has not begun."""
        self._next = None
        if self._running is not None:
            self._running.chunks = self._running.made
            self._end_running()

    def forget(self) -> None:
        """Forget the earlier shots: the next one is made as a film's first shot is, with noise of its own.

        Captions and context then count shots from there; shots and frames stay numbered through the session. Only
        between shots: raises UserError while a shot is running or waiting.
        """
        self._check_boundary("earlier shots are forgotten")
        self._ended = None
        self._history = History(self._history.budget)
        self.memory_begins = self.shots_begun

    def tell(self, event: object) -> None:
        """Hand an event of the game to the plugins that listen to `on_event`; one of them may cut."""
        self._check_open()
        self.runtime.registry.call_hook("on_event", self, event)

    # -------------------------------------------------------------------------------- making frames
    def chunks(self) -> Iterator[Chunk]:
        """Make chunks until the current shot, and any that a cut puts after it meanwhile, has ended."""
        while (chunk := self.next_chunk()) is not None:
            yield chunk

    @torch.inference_mode()
    def next_chunk(self, stop: Callable[[], bool] | None = None) -> Chunk | None:
        """Make one chunk: 9 frames at a shot's start, 12 later; None when no shot is running or waiting.

        stop: asked before each piece of work (what the last chunk left behind, a context pass, every denoising step,
        decoding); it must not call the session. Once it says True the chunk is abandoned and ChunkCancelled raised:
        asking again makes the very same chunk, and a cut begins the next shot after the chunks that were finished.
        """
        self._check_open()
        self._heed(stop)
        self.settle()
        shot = self._running or self._begin_next(stop)
        if shot is None:
            return None
        try:
            made = self._maker.make(shot, lambda: self._heed(stop))
        except ChunkCancelled:
            shot.abandoned = True
            raise
        chunk = Chunk(
            frames=made.frames,
            shot=shot.number,
            chunk=shot.made,
            first_frame=self.frames_made,
            caption=shot.caption,
            last=shot.made + 1 >= shot.chunks,
            timings=self._watch.read(),
        )
        shot.take(made.remembered, made.pixels, self._history)
        shot.unclean = not made.cleaned
        self.frames_made += len(chunk.frames)
        self.runtime.registry.call_hook("on_chunk", self, chunk)
        # A hook may have cut or closed; only a shot that is still the running one can end here.
        if shot is self._running and shot.over:
            self._end_running()
        return chunk

    @torch.inference_mode()
    def settle(self) -> None:
        """Do the work that is left behind: the last chunk's clean pass, and encoding frames that may become context.

        After a steer all that the caches hold of the shot is made anew. `next_chunk` does it by itself; call it while
        a player is busy, and the next chunk comes sooner.
        """
        if self._ended is not None:
            self._remember(self._ended)
            self._ended = None
        shot = self._running
        if shot is None:
            return
        if shot.cached_caption != shot.full_caption:
            self._recaption(shot)
        elif shot.unclean:
            with self._watch.lap("clean"):
                self.runtime.engine.clean(self._state, *shot.past[-1])
        shot.unclean = False
        self._encode(shot, shot.candidates(self._history, shot.chunks))

    # -------------------------------------------------------------------------------- keeping and copying
    def snapshot(self, *, mid_shot: bool = False) -> bytes:
        """The session's state as bytes, a few MB at most; `Runtime.restore` continues it bit for bit.

        Only between shots, unless `mid_shot` (see `fork`): raises UserError while a shot is running or waiting.
        """
        return snapshots.pack(self._as_if_ended("a snapshot is taken", mid_shot))

    def fork(self, *, mid_shot: bool = False) -> Session:
        """An independent session that continues from here with the same seed: it differs by what it is told.

        Between shots only, unless `mid_shot`: then the fork is as if `end_shot` had been called here, while this
        session's shot goes on. Its first chunk can so be made ahead, for when the shot does end with this chunk. A
        fork has caches of its own; close it when it is not wanted any more.
        """
        twin = self.runtime.resume(self._as_if_ended("a fork is taken", mid_shot))
        self._captions.share_with(twin._captions)
        return twin

    def close(self) -> None:
        """Give the caches back to the runtime; further calls raise UserError, except this one."""
        if self._closed:
            return
        self.end_shot()
        self._closed = True
        self._maker.restart()
        self.runtime.release(self, self._state)
        self._state = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------- inside
    @torch.inference_mode()
    def _as_if_ended(self, what: str, mid_shot: bool) -> snapshots.SavedSession:
        """The state with a history of its own, as if the running shot had ended with the chunk it has reached."""
        if not mid_shot:
            self._check_boundary(what)
        self._check_open()
        shot = self._running
        if shot is None:
            self.settle()
        history = self._history.copy()
        if shot is not None and shot.made:
            # Encoding early does not show in the running shot: frames are encoded one by one, whenever that is.
            self._encode(shot, history.candidates(shot.frames))
            history.add(shot.as_past(history))
        self._maker.join()  # a snapshot or a fork reads the latents outside this session
        saved = self._saved(history)
        return replace(saved, shots_begun=shot.number) if shot is not None and not shot.made else saved

    def _plan(self, caption: str, chunks: int | None, global_caption: str | None) -> RunningShot:
        """Check and embed a caption: all that can be wrong with a shot shows here, before anything changes."""
        parts = self.runtime.parts
        chunks = parts.default_chunks if chunks is None else chunks
        if isinstance(chunks, bool) or not isinstance(chunks, int) or not 1 <= chunks <= MAX_CHUNKS:
            raise UserError(f"a shot has 1 to {MAX_CHUNKS} chunks, not {chunks!r}")
        if global_caption is None:  # a shot that was planned but has not begun may have brought a new one
            global_caption = self.global_caption if self._next is None else self._next.global_caption
        shot = self._running
        # A shot whose first chunk was cancelled is never seen: the new one takes its number.
        number = shot.number if shot is not None and shot.abandoned and not shot.made else self.shots_begun
        full, text_kv = self._read(caption, global_caption, number)
        return RunningShot(parts.config, caption, full, global_caption, number, chunks, text_kv)

    def _read(self, caption: str, global_caption: str, number: int) -> tuple[str, Any]:
        """The full caption of a shot, and what the engine reads for it; UserError if it is empty or too long."""
        if not isinstance(caption, str) or not caption.strip():
            raise UserError("the caption of a shot is empty; say what it shows")
        full = full_caption(global_caption, number - self.memory_begins, caption)
        return full, self._captions.read(full)

    def _drop_unused_text(self) -> None:
        """Forget embedded captions that neither a shot nor the context of a later one reads any more."""
        in_use = self._history.captions()
        for shot in (self._running, self._next):
            in_use |= {shot.full_caption, *shot.captions.values()} if shot is not None else set()
        self._captions.keep(in_use)

    def _heed(self, stop: Callable[[], bool] | None) -> None:
        """Raise ChunkCancelled if the caller wants no more of this chunk."""
        if stop is None:
            return
        if self.runtime.device.type == "cuda":
            # Steps are only queued up so far: without waiting for them, every question would come before all work.
            torch.cuda.current_stream(self.runtime.device).synchronize()
        if stop():
            raise ChunkCancelled("the chunk was cancelled")

    def _begin_next(self, stop: Callable[[], bool] | None) -> RunningShot | None:
        """Run the context pass of the waiting shot; return the shot that runs then."""
        if self._next is None:
            return None
        self._heed(stop)
        shot, self._next = self._next, None
        self._maker.restart()
        context = self._shot_context(self._history.context(), shot)
        with self._watch.lap("context"):
            self.runtime.engine.begin_shot(self._state, context, shot.text_kv)
        shot.stream = self.runtime.parts.decoder.new_stream(1)
        shot.cached_caption = shot.full_caption
        self._running = shot
        self.global_caption = shot.global_caption
        self.shots_begun = shot.number + 1
        self._drop_unused_text()
        self.runtime.registry.call_hook("on_shot_begin", self, shot.number, shot.caption)
        return self._running  # a hook may have ended it

    def _shot_context(self, frames: list[ContextFrame], shot: RunningShot) -> ShotContext:
        """Context latents with flags and captions; six null frames for the first shot."""
        count = self.runtime.parts.config.context_frames
        if not frames:
            shape = (count, *self.runtime.parts.latent_shape)
            zeros = torch.zeros(shape, device=self.runtime.device, dtype=self.runtime.dtype)
            return ShotContext(zeros, [0] * count, [shot.text_kv], [0] * count)
        captions = list(dict.fromkeys(frame.caption for frame in frames))
        return ShotContext(
            latents_FCHW=torch.stack([frame.latent_CHW for frame in frames]),
            flags=[frame.shot - self.memory_begins for frame in frames],
            captions=[self._captions.read(caption) for caption in captions],
            caption_index=[captions.index(frame.caption) for frame in frames],
        )

    def _recaption(self, shot: RunningShot) -> None:
        """Make the caches anew under the caption that the shot follows now."""
        frames = self._history.context()
        # Context frames read the captions they were made under. Only the null frames of a first shot, which show
        # nothing, read the shot's own.
        context = None if frames else self._shot_context(frames, shot)
        self._maker.restart()
        with self._watch.lap("clean"):
            self.runtime.engine.recaption(self._state, context, shot.text_kv, shot.past)
        shot.cached_caption = shot.full_caption

    def _encode(self, shot: RunningShot, frames: set[int]) -> None:
        """Encode each of these frames alone, as the reference does at the cut (5.3): float pixels, no rounding."""
        for frame in sorted(frames & shot.pixels.keys()):
            # One call per frame, so that the result does not depend on when it is made, and with which others.
            shot.latents[frame] = self._maker.encode(shot.pixels.pop(frame))

    def _end_running(self) -> None:
        shot, self._running = self._running, None
        if shot is None:
            return
        shot.past.clear()
        if shot.made:
            self._ended = shot
        else:  # never seen: the next shot takes its number
            self.shots_begun = shot.number
        self.runtime.registry.call_hook("on_shot_end", self, shot.number)

    def _remember(self, shot: RunningShot) -> None:
        """Put a shot that is over into the history, with the frames that can still be picked."""
        self._encode(shot, self._history.candidates(shot.frames))
        self._history.add(shot.as_past(self._history))
        if self.runtime.device.type == "cpu":
            shot.stream = None
            give_back_free_memory()

    def _saved(self, history: History) -> snapshots.SavedSession:
        return snapshots.SavedSession(
            model=self.runtime.identity,
            seed=self.seed,
            global_caption=self.global_caption,
            shots_begun=self.shots_begun,
            frames_made=self.frames_made,
            history=history,
            memory_begins=self.memory_begins,
        )

    def _check_open(self) -> None:
        if self._closed:
            raise UserError("this session is closed; open a new one")

    def _check_boundary(self, what: str) -> None:
        self._check_open()
        if not self.at_boundary:
            raise UserError(f"{what} between shots; play the shot to its end or end it first")
