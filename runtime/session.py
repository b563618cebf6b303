"""Sessions: a film that is made shot by shot, chunk by chunk, while its story is still being told.

A session knows shots, captions and frames; how a step is executed is the engine's business.
Source: reference `pipeline/causal_inference_ar.py`. Unlike the reference it decodes after every chunk, keeps
nothing of a finished shot but the frames that can still be picked as context, and skips the clean pass of a shot's last
chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shotstream.runtime import snapshot as snapshots
from shotstream.runtime.engine import ShotContext
from shotstream.runtime.errors import UserError
from shotstream.runtime.heap import give_back_free_memory
from shotstream.runtime.history import ContextFrame, History, PastShot
from shotstream.runtime.noise import START, NoiseSource
from shotstream.runtime.storyline import full_caption
from shotstream.runtime.timing import Stopwatch, Timings

if TYPE_CHECKING:
    from shotstream.runtime.runtime import Runtime

MAX_CHUNKS = 100
_FRAMES_PER_LATENT = 4


@dataclass(frozen=True)
class Chunk:
    """Finished frames, in the order in which they are shown."""

    frames: npt.NDArray[np.uint8]
    """[F, H, W, 3], 0..255."""
    shot: int
    """Zero-based, over the whole session."""
    chunk: int
    """Zero-based, inside the shot."""
    first_frame: int
    """Number of the first frame, zero-based, over the whole session."""
    caption: str
    """The caption of the shot as given, without the global caption."""
    last: bool
    """True if the shot ends here as planned; a cut may end it earlier."""
    timings: Timings


@dataclass
class _Shot:
    """The running shot, or the one that is to begin."""

    caption: str
    full_caption: str
    global_caption: str
    number: int
    chunks: int
    text_kv: Any
    made: int = 0
    frames: int = 0
    stream: Any = None
    uncommitted: Tensor | None = None
    """Latents of the newest chunk, as long as its clean pass has not been run."""
    pixels: dict[int, Tensor] = field(default_factory=dict)
    """Frame -> float pixels [3, H, W], for frames that may become context and are not encoded yet."""
    latents: dict[int, Tensor] = field(default_factory=dict)
    """Frame -> latent [C, h, w], for those that are."""

    @property
    def over(self) -> bool:
        return self.made >= self.chunks


class Session:
    """One film. Open it with `Runtime.open`; sessions of one runtime do not influence each other.

    `cut` or `begin_shot` says what comes next, `chunks` (or `next_chunk`) makes it. Not for use by several threads
    at once.
    """

    def __init__(self, runtime: Runtime, seed: int, global_caption: str, *, history: History | None = None) -> None:
        parts = runtime.parts
        self.runtime = runtime
        self.global_caption = global_caption
        self.shots_begun = 0
        self.frames_made = 0
        self.memory_begins = 0
        """Number of the first shot that is remembered; 0 unless `forget` was called."""
        self._noise = NoiseSource(seed, runtime.device, runtime.dtype)
        self._history = history or History(parts.config.context_frames)
        self._state = runtime.take_state()
        self._watch = Stopwatch(runtime.device)
        self._text_kv: dict[str, Any] = {}
        self._running: _Shot | None = None
        self._next: _Shot | None = None
        self._ended: _Shot | None = None
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
        return self._history

    # -------------------------------------------------------------------------------- what the caller says
    def cut(self, caption: str, *, chunks: int | None = None, global_caption: str | None = None) -> None:
        """Begin a new shot now: a running one ends with the chunk it has reached.

        chunks: its planned length, 1 to 100 (None: the model's usual length). global_caption: replaces the session's
        from this shot on. Raises UserError for an empty or too long caption; the session is then as before.
        """
        self._check_open()
        self._next = self._plan(caption, chunks, global_caption)
        if self._running is not None and self._running.made:
            self._running.chunks = self._running.made
            self._end_running()
        elif self._running is not None:  # begun, but without a frame yet: it shows one chunk
            self._running.chunks = 1

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
    def next_chunk(self) -> Chunk | None:
        """Make one chunk: 9 frames at a shot's start, 12 later; None when no shot is running or waiting."""
        self._check_open()
        self.settle()
        shot = self._running or self._begin_next()
        if shot is None:
            return None
        latents, pixels_FCHW = self._make(shot)
        shot.uncommitted = latents
        chunk = Chunk(
            frames=_to_bytes(pixels_FCHW),
            shot=shot.number,
            chunk=shot.made,
            first_frame=self.frames_made,
            caption=shot.caption,
            last=shot.made + 1 >= shot.chunks,
            timings=self._watch.read(),
        )
        self._keep_candidates(shot, pixels_FCHW)
        shot.made += 1
        self.frames_made += len(chunk.frames)
        self.runtime.registry.call_hook("on_chunk", self, chunk)
        # A hook may have cut or closed; only a shot that is still the running one can end here.
        if shot is self._running and shot.over:
            self._end_running()
        return chunk

    @torch.inference_mode()
    def settle(self) -> None:
        """Do the work that the last chunk left behind: its clean pass, and encoding frames that may become context.

        `next_chunk` does it by itself; call it while a player is busy, and the next chunk comes sooner.
        """
        if self._ended is not None:
            self._remember(self._ended)
            self._ended = None
        shot = self._running
        if shot is None:
            return
        if shot.uncommitted is not None:
            with self._watch.lap("clean"):
                self.runtime.engine.clean(self._state, self._start_frame(shot, shot.made - 1), shot.uncommitted)
            shot.uncommitted = None
        self._encode(shot, self._candidates(shot, shot.chunks))

    # -------------------------------------------------------------------------------- keeping and copying
    def snapshot(self) -> bytes:
        """The session's state as bytes, a few MB at most; `Runtime.restore` continues it bit for bit.

        Only between shots: raises UserError while a shot is running or waiting.
        """
        self._check_boundary("a snapshot is taken")
        return snapshots.pack(self._saved())

    def fork(self) -> Session:
        """An independent session that continues from here with the same seed: it differs by what it is told."""
        self._check_boundary("a fork is taken")
        twin = self.runtime.resume(replace(self._saved(), history=self._history.copy()))
        twin._text_kv.update(self._text_kv)
        return twin

    def close(self) -> None:
        """Give the caches back to the runtime; further calls raise UserError, except this one."""
        if self._closed:
            return
        self.end_shot()
        self._closed = True
        self.runtime.release(self, self._state)
        self._state = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------- inside
    def _plan(self, caption: str, chunks: int | None, global_caption: str | None) -> _Shot:
        """Check and embed a caption: all that can be wrong with a shot shows here, before anything changes."""
        parts = self.runtime.parts
        chunks = parts.default_chunks if chunks is None else chunks
        if isinstance(chunks, bool) or not isinstance(chunks, int) or not 1 <= chunks <= MAX_CHUNKS:
            raise UserError(f"a shot has 1 to {MAX_CHUNKS} chunks, not {chunks!r}")
        if not isinstance(caption, str) or not caption.strip():
            raise UserError("the caption of a shot is empty; say what it shows")
        if global_caption is None:  # a shot that was planned but has not begun may have brought a new one
            global_caption = self.global_caption if self._next is None else self._next.global_caption
        full = full_caption(global_caption, self.shots_begun - self.memory_begins, caption)
        return _Shot(caption, full, global_caption, self.shots_begun, chunks, self._embed(full))

    def _embed(self, full: str) -> Any:
        """Embedded caption, from the cache of captions that are still in use or freshly encoded."""
        if full in self._text_kv:
            return self._text_kv[full]
        parts = self.runtime.parts
        count, limit = parts.text.tokens(full), parts.config.text_len
        if count > limit:
            raise UserError(
                f"the caption needs {count} tokens together with the global caption, but this model reads at most "
                f"{limit}; shorten one of them"
            )
        with torch.inference_mode(), self._watch.lap("text"):
            # One caption at a time: the result then never depends on which others are encoded with it.
            self._text_kv[full] = self.runtime.engine.embed_caption(parts.text.encode([full]))
        return self._text_kv[full]

    def _begin_next(self) -> _Shot | None:
        """Run the context pass of the waiting shot; return the shot that runs then."""
        shot, self._next = self._next, None
        if shot is None:
            return None
        context = self._shot_context(self._history.context(), shot)
        with self._watch.lap("context"):
            self.runtime.engine.begin_shot(self._state, context, shot.text_kv)
        shot.stream = self.runtime.parts.decoder.new_stream(1)
        self._running = shot
        self.global_caption = shot.global_caption
        self.shots_begun = shot.number + 1
        in_use = {past.caption for past in self._history.shots} | {shot.full_caption}
        self._text_kv = {caption: kv for caption, kv in self._text_kv.items() if caption in in_use}
        self.runtime.registry.call_hook("on_shot_begin", self, shot.number, shot.caption)
        return self._running  # a hook may have ended it

    def _shot_context(self, frames: list[ContextFrame], shot: _Shot) -> ShotContext:
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
            captions=[self._embed(caption) for caption in captions],
            caption_index=[captions.index(frame.caption) for frame in frames],
        )

    def _make(self, shot: _Shot) -> tuple[Tensor, Tensor]:
        """Denoise and decode one chunk: latents [1, F, C, h, w] and pixels [f, 3, H, W] in [-1, 1]."""
        parts = self.runtime.parts
        shape = (1, parts.config.chunk_frames, *parts.latent_shape)
        with self._watch.lap("denoise"):
            latents = self.runtime.engine.denoise(
                self._state,
                self._start_frame(shot, shot.made),
                self._noise.draw(shot.number, shot.made, START, shape),
                lambda step: self._noise.draw(shot.number, shot.made, START + 1 + step, shape),
            )
        with self._watch.lap("decode"):
            pixels = parts.decoder.decode_chunk(latents, shot.stream)[0]
        return latents, pixels

    def _keep_candidates(self, shot: _Shot, pixels_FCHW: Tensor) -> None:
        """Keep those new frames that can be picked later, whichever chunk the shot ends with."""
        first = shot.frames
        shot.frames += len(pixels_FCHW)
        wanted: set[int] = set()
        for chunks in range(shot.made + 1, shot.chunks + 1):
            wanted |= self._candidates(shot, chunks)
        shot.pixels = {frame: pixels for frame, pixels in shot.pixels.items() if frame in wanted}
        shot.latents = {frame: latent for frame, latent in shot.latents.items() if frame in wanted}
        for frame in sorted(wanted):
            if first <= frame < shot.frames:
                shot.pixels[frame] = pixels_FCHW[frame - first].clone()

    def _candidates(self, shot: _Shot, chunks: int) -> set[int]:
        """Frames of a running shot that can be picked if it ends with this many chunks."""
        latents = chunks * self.runtime.parts.config.chunk_frames
        return self._history.candidates(1 + _FRAMES_PER_LATENT * (latents - 1))

    def _encode(self, shot: _Shot, frames: set[int]) -> None:
        """Encode each of these frames alone, as the reference does at the cut (5.3): float pixels, no rounding."""
        for frame in sorted(frames & shot.pixels.keys()):
            with self._watch.lap("encode"):
                # One call per frame, so that the result does not depend on when it is made, and with which others.
                shot.latents[frame] = self.runtime.parts.decoder.encode_frames(shot.pixels.pop(frame)[None])[0]

    def _end_running(self) -> None:
        shot, self._running = self._running, None
        if shot is None:
            return
        if shot.made:
            self._ended = shot
        else:  # never seen: the next shot takes its number
            self.shots_begun = shot.number
        self.runtime.registry.call_hook("on_shot_end", self, shot.number)

    def _remember(self, shot: _Shot) -> None:
        """Put a shot that is over into the history, with the frames that can still be picked."""
        frames = self._history.candidates(shot.frames)
        self._encode(shot, frames)
        latents = {frame: shot.latents[frame] for frame in sorted(frames)}
        self._history.add(PastShot(shot.number, shot.full_caption, shot.frames, latents))
        if self.runtime.device.type == "cpu":
            shot.stream = None
            give_back_free_memory()

    def _start_frame(self, shot: _Shot, chunk: int) -> int:
        return chunk * self.runtime.parts.config.chunk_frames

    def _saved(self) -> snapshots.SavedSession:
        self.settle()
        return snapshots.SavedSession(
            model=self.runtime.identity,
            seed=self.seed,
            global_caption=self.global_caption,
            shots_begun=self.shots_begun,
            frames_made=self.frames_made,
            history=self._history,
            memory_begins=self.memory_begins,
        )

    def _check_open(self) -> None:
        if self._closed:
            raise UserError("this session is closed; open a new one")

    def _check_boundary(self, what: str) -> None:
        self._check_open()
        if not self.at_boundary:
            raise UserError(f"{what} between shots; play the shot to its end or end it first")


def _to_bytes(pixels_FCHW: Tensor) -> npt.NDArray[np.uint8]:
    """Pixels in [-1, 1] to bytes [F, H, W, 3], on the host."""
    scaled = (pixels_FCHW.float() * 0.5 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
