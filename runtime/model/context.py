"""Dynamic sampling: which frames of past shots the next shot is shown. Indices only, no pixels.

Source: reference ``pipeline/causal_inference_ar.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shotstream.runtime.errors import UserError


def context_counts(history: int, budget: int = 6, remainder: str = "spread") -> list[int]:
    """Frames granted to each of ``history`` past shots, oldest first.

    ``remainder`` "spread" gives the last ``budget % history`` shots one more each (the reference's code); "last" gives
    the whole remainder to the most recent shot (the paper's text).
    """
    if history < 1:
        return []
    base, rest = divmod(budget, history)
    counts = [base] * history
    if remainder == "last":
        counts[-1] += rest
    elif remainder == "spread":
        for i in range(history - rest, history):
            counts[i] += 1
    else:
        raise UserError(f"remainder rule {remainder!r} is unknown; use 'spread' or 'last'")
    return counts


def frame_positions(length: int, count: int) -> list[int]:
    """``count`` evenly spaced frame numbers of a shot of ``length`` pixel frames, ends included, halves to even."""
    return [int(i) for i in torch.linspace(0, length - 1, count).round().tolist()]


def choose_context(shot_lengths: Sequence[int], budget: int = 6, remainder: str = "spread") -> list[tuple[int, int]]:
    """``budget`` pairs (shot, pixel frame inside that shot), in order of shot and time; empty without history.

    The shot number of each pair is the frame's flag. With more than ``budget`` shots the oldest vanish.
    """
    if any(n < 1 for n in shot_lengths):
        raise UserError(f"shot lengths {list(shot_lengths)} must all be at least one frame")
    counts = context_counts(len(shot_lengths), budget, remainder)
    # linspace over absolute indices, as the reference does: float32 rounding then matches it for any offset.
    chosen: list[tuple[int, int]] = []
    start = 0
    for shot, (length, count) in enumerate(zip(shot_lengths, counts, strict=True)):
        absolute = torch.linspace(start, start + length - 1, count).round().long().tolist() if count else []
        chosen += [(shot, int(i) - start) for i in absolute]
        start += length
    return chosen
