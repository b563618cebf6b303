"""Which flag and which caption every frame of a training sample gets, and the batch that carries them.

What is here: the routing rules of context and target frames (flags for the rotary jump, rows of the caption
list for cross-attention), including the reference's bug as a documented switch. What is not here: how context
frames are chosen (`runtime/model/context.py`) or encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """Per frame (context frames first): the shot flag and the row of the sample's caption list."""

    flags: tuple[int, ...]
    captions: tuple[int, ...]


def route_frames(
    context_shots: Sequence[int],
    target_frames: int,
    target_shot: int,
    caption_count: int,
    *,
    context_frames: int = 6,
    context_dropped: bool = False,
    reference_caption_bug: bool = False,
) -> Routing:
    """Flags and caption rows of one sample.

    `context_shots` holds the shot of each context frame, empty for the first shot of a story. Without a context
    (first shot, or dropped) the context frames get flag 0 and the target flag 1. Every frame then attends to the
    target's own caption. The reference uses the flag itself as caption number, so that such a target reads caption
    1 whatever its shot; `reference_caption_bug=True` does the same. With one
    caption, every frame attends to it.

    Raises ValueError if `context_shots` is neither empty nor `context_frames` long.
    """
    if context_shots and len(context_shots) != context_frames:
        raise ValueError(f"expected 0 or {context_frames} context frames, got {len(context_shots)}")
    bare = context_dropped or not context_shots
    context_flags = [0] * context_frames if bare else list(context_shots)
    flags = context_flags + [context_flags[-1] + 1] * target_frames
    if caption_count == 1:
        captions = [0] * len(flags)
    elif reference_caption_bug:
        captions = flags
    elif bare:
        captions = [target_shot] * len(flags)
    else:
        captions = context_flags + [target_shot] * target_frames
    return Routing(tuple(flags), tuple(captions))


@dataclass(frozen=True)
class Conditioning:
    """What a shot is generated from, for a batch.

    context_BFCHW: clean context latents. captions_NLD: embedded texts of all samples, one list. flags_BF: int,
    context frames first, None for plain rotary tables. caption_index_BF: rows of `captions_NLD`, None when its
    single row serves every frame. positions_BF: time indices of all frames, context first, None for 0, 1, 2 and so on;
    needed where some context frames are left out.
    """

    context_BFCHW: Tensor
    captions_NLD: Tensor
    flags_BF: Tensor | None
    caption_index_BF: Tensor | None
    positions_BF: Tensor | None = None

    @property
    def context_frames(self) -> int:
        return self.context_BFCHW.shape[1]

    def with_captions(self, captions_NLD: Tensor) -> Conditioning:
        """The same frames and flags under one text for all, as the negative branch of guidance needs."""
        if captions_NLD.shape[0] != 1:
            raise ValueError(f"expected one caption, got {captions_NLD.shape[0]}")
        return replace(self, captions_NLD=captions_NLD, caption_index_BF=None)

    def opening(self, count: int) -> Conditioning:
        """The same for a shot that ends after `count` frames."""
        flags, index = self.frames(0, self.context_frames + count)
        return replace(self, flags_BF=flags, caption_index_BF=index)

    def frames(self, first: int, count: int) -> tuple[Tensor | None, Tensor | None]:
        """Flags and caption rows of `count` frames, counted from the first context frame."""
        window = slice(first, first + count)
        flags = None if self.flags_BF is None else self.flags_BF[:, window]
        index = None if self.caption_index_BF is None else self.caption_index_BF[:, window]
        return flags, index

    @classmethod
    def batch(cls, contexts_BFCHW: Tensor, captions: Sequence[Tensor], routings: Sequence[Routing]) -> Conditioning:
        """Joins samples; `captions[i]` is the list of sample i, [captions, L, D], and rows are renumbered."""
        device = contexts_BFCHW.device
        flags = torch.tensor([r.flags for r in routings], device=device)
        starts = [0]
        for c in captions:
            starts.append(starts[-1] + c.shape[0])
        rows = [[s + row for row in r.captions] for s, r in zip(starts, routings, strict=False)]
        index = None if starts[-1] == 1 else torch.tensor(rows, device=device)
        return cls(contexts_BFCHW, torch.cat(list(captions)), flags, index)
