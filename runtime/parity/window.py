"""Caches of the reference that the product does not have, for vector files that hold such cases.

What is here: the rolling window with any sink, with the reference's rule that a chunk's later passes do not rewrite
sink frames; and the window that keeps unrotated keys and gives them positions counted from its own start. What is not
here: anything the product runs. Written from the description of the reference's dead code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.model.cache import KeyStore
from shotstream.runtime.model.rope import axis_pairs
from shotstream.runtime.parity.report import NotUnderstood

_NAMES = {
    "frames": ("local_attn_size", "window", "window_frames", "local_frames", "W"),
    "sink": ("sink_size", "sink", "sink_frames", "S"),
    "unroped": ("use_wo_rope_cache", "wo_rope_cache", "unroped"),
}
_UNROPED_NAME = re.compile(r"wo_?rope|un_?roped|norope_cache", re.IGNORECASE)
_WINDOW_NAME = re.compile(r"_(?:w|win|window|local|roll)_?(\d+)", re.IGNORECASE)
_SINK_NAME = re.compile(r"_(?:s|sink)_?(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Window:
    """A case's window in latent frames (None: nothing is ever dropped), its sink, and whether keys are unrotated.

    guessed: read from the case's name rather than from its content.
    """

    frames: int | None = None
    sink: int = 0
    unroped: bool = False
    guessed: bool = False

    @property
    def named(self) -> bool:
        """Whether the case is about a window at all."""
        return self.frames is not None or self.unroped


def _field(case: Mapping[str, Any], key: str) -> Any:
    nested = [case.get(k) for k in ("model_kwargs", "config", "settings", "options", "kwargs")]
    places = [case, *(place for place in nested if isinstance(place, Mapping))]
    return next((place[name] for place in places for name in _NAMES[key] if name in place), None)


def _recorded_capacity(case: Mapping[str, Any]) -> int | None:
    """Frames that the recorded cache can hold, where one is recorded and smaller than the shot."""
    try:
        layer = case["cache_after_chunk"][0][0]
        frames = int(layer["capacity"]) * case["cond"].shape[1] // layer["ctx_k"].shape[1]
    except (KeyError, IndexError, TypeError):
        return None
    return frames if frames < case["noise"].shape[1] else None


def window_of(name: str, case: Mapping[str, Any]) -> Window:
    """Reads the window from a case's fields, its recorded caches or its name.

    Raises NotUnderstood for a rolling case that gives it nowhere.
    """
    frames, sink, unroped = (_field(case, key) for key in ("frames", "sink", "unroped"))
    frames = _recorded_capacity(case) if frames is None else frames
    guessed = False
    if frames is None and (found := _WINDOW_NAME.search(name)):
        frames, guessed = int(found[1]), True
    if sink is None and (found := _SINK_NAME.search(name)):
        sink = int(found[1])
    elif sink is None and frames is not None:
        guessed = True
    unroped = bool(unroped) or bool(_UNROPED_NAME.search(name))
    if "_roll" in name and frames is None and not unroped:
        raise NotUnderstood("neither its content nor its name gives the window in frames")
    return Window(None if frames is None or int(frames) < 0 else int(frames), int(sink or 0), unroped, guessed)


class ReferenceWindow:
    """The rolling local cache: drops the oldest chunk behind the sink, keeps absolute positions."""

    def __init__(self, config: DiTConfig, tokens: int, window: Window) -> None:
        self.tokens = tokens
        self.capacity = window.frames or config.local_frames
        self.sink = window.sink
        self.chunk_frames = config.chunk_frames
        self.past: list[tuple[Tensor, Tensor] | None] = [None] * config.layers
        self.local: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in range(config.layers)]
        """Per layer: frame -> k, v. Frames are absolute; at most `capacity` of them."""

    def context(self) -> KeyStore:
        """Writer of the context pass."""
        return _ContextWriter(self.past)

    def chunk(self, start_frame: int) -> KeyStore:
        """Writer of a chunk's passes; the first pass makes room."""
        return _WindowWriter(self, start_frame)


class _ContextWriter:
    def __init__(self, past: list[tuple[Tensor, Tensor] | None]) -> None:
        self.past = past

    def extend(self, layer: int, k_BLHK: Tensor, v_BLHK: Tensor) -> tuple[Tensor, Tensor]:
        self.past[layer] = (k_BLHK, v_BLHK)
        return k_BLHK, v_BLHK


class _WindowWriter:
    def __init__(self, owner: ReferenceWindow, start: int) -> None:
        self.owner, self.start = owner, start
        self.written: set[int] = set()

    def extend(self, layer: int, k_BLHK: Tensor, v_BLHK: Tensor) -> tuple[Tensor, Tensor]:
        owner, frames = self.owner, self.owner.local[layer]
        again = layer in self.written
        self.written.add(layer)
        k_frames = k_BLHK.unflatten(1, (-1, owner.tokens)).unbind(1)
        v_frames = v_BLHK.unflatten(1, (-1, owner.tokens)).unbind(1)
        if not again and len(frames) + len(k_frames) > owner.capacity:
            kept = sorted(frames)
            for frame in kept[owner.sink : owner.sink + len(kept) + len(k_frames) - owner.capacity]:
                del frames[frame]
        for offset, pair in enumerate(zip(k_frames, v_frames, strict=True)):
            frame = self.start + offset
            # "Recompute": later passes of a chunk that does not open the shot leave sink frames alone.
            if not (again and self.start > 0 and frame < owner.sink):
                frames[frame] = pair
        return _joined(owner.past[layer], [frames[f] for f in sorted(frames)])


def _joined(past: tuple[Tensor, Tensor] | None, frames: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    pairs = [*([] if past is None else [past]), *frames]
    return torch.cat([k for k, _ in pairs], dim=1), torch.cat([v for _, v in pairs], dim=1)


class UnropedWindow(ReferenceWindow):
    """A window whose keys count positions from its own start, so that they never grow beyond the window.

    Our attention hands over rotated keys; turning their time pairs by the difference of positions is the same as
    rotating unrotated ones afresh, up to rounding. The flag of all window keys is the shot's and needs no change.
    """

    LAST_START = 18
    """Largest position, counted from the first target position, of a chunk's first frame: a literal there."""

    def __init__(self, config: DiTConfig, tokens: int, window: Window) -> None:
        if window.sink:
            raise NotUnderstood("the un-roped cache with a sink misplaces frames in the reference")
        super().__init__(config, tokens, window)
        self.capacity = window.frames or self.LAST_START + config.chunk_frames

    def chunk(self, start_frame: int) -> KeyStore:
        """Writer of a chunk's passes that moves what is older to its place in the window."""
        return _UnropedWriter(self, start_frame)


class _UnropedWriter(_WindowWriter):
    owner: UnropedWindow

    def extend(self, layer: int, k_BLHK: Tensor, v_BLHK: Tensor) -> tuple[Tensor, Tensor]:
        super().extend(layer, k_BLHK, v_BLHK)
        owner, frames = self.owner, self.owner.local[layer]
        moved = []
        for place, frame in enumerate(sorted(frames)):
            k, v = frames[frame]
            first_of_chunk = frame - frame % owner.chunk_frames
            written = min(first_of_chunk, owner.LAST_START) + frame % owner.chunk_frames
            moved.append((_turn_time(k, place - written), v))
        return _joined(owner.past[layer], moved)


def _turn_time(k_BLHK: Tensor, positions: int) -> Tensor:
    """Moves rotated keys by a number of time positions."""
    if positions == 0:
        return k_BLHK
    n_time, *_ = axis_pairs(k_BLHK.shape[-1])
    ladder = 10000.0 ** (-torch.arange(n_time, dtype=torch.float64) / n_time)
    turn = torch.polar(torch.ones_like(ladder), positions * ladder)
    pairs = torch.view_as_complex(k_BLHK.double().unflatten(-1, (-1, 2)).contiguous())
    moved = torch.cat([pairs[..., :n_time] * turn, pairs[..., n_time:]], dim=-1)
    return torch.view_as_real(moved).flatten(-2).to(k_BLHK.dtype)
