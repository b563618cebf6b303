"""Finds cuts, fades and pops by arithmetic: frame differences and colour histograms, calibrated on renders.

It needs no weights and knows nothing of the story; tests check it on renders with and without such faults.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 5.0
"""Strength from which a step between frames is a cut. On renders of 60 stories (33-frame shots, 80x128) the
strongest step inside a shot measured 4.0 and the weakest cut 8.1; see `calibrate`."""
CONTRAST = 3.0
"""A cut is also this many times stronger than the usual step around it, so that a fast pan is none."""
BINS = 6

FADE_SPAN = 6
"""Frames over which a fade is looked for: the middle one must be the mean of the outer ones."""
FADE_SHARE = 0.145
"""From which value of `fade_share` it is a fade. On 70 true shots it is at most 0.118 (a push in), with one shot fading
into the next over 5 to 20 frames at least 0.173."""
POP_SHARE = 0.01
"""From which value of `pop_share` it is a pop. On 70 true shots it is at most 0.002, with the heroes missing for
4 frames at least 0.026."""
POP_LONGEST = 8  # frames


Span = tuple[int, int]
"""First and last frame number, both included."""


def cut_strength(frames_FHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How different neighbouring frames are, [F - 1]: mean difference of 20x32 thumbnails (grey levels of 255) plus
    20 times the share of pixels that changed their coarse colour."""
    thumbs = _thumbnails(frames_FHWC)
    difference = np.abs(np.diff(thumbs, axis=0)).mean((1, 2, 3))
    histograms = np.stack([_histogram(one) for one in thumbs])
    changed = np.abs(np.diff(histograms, axis=0)).sum(1) / 2
    return difference + 20 * changed


def find_cuts(frames_FHWC: NDArray[np.uint8], threshold: float = THRESHOLD) -> list[int]:
    """Numbers of the frames that begin a new shot (never 0), in order."""
    strength = cut_strength(frames_FHWC)
    cuts: list[int] = []
    for i, value in enumerate(strength):
        around = strength[max(0, i - 6) : i + 7]
        alone = value >= strength[max(0, i - 2) : i + 3].max()
        if value > threshold and alone and value > CONTRAST * np.median(around):
            cuts.append(i + 1)
    return cuts


def calibrate(shots: list[list[NDArray[np.uint8]]]) -> tuple[float, float]:
    """(strongest step inside a shot, weakest cut) over stories given as lists of shots."""
    inside, across = 0.0, np.inf
    for story in shots:
        whole = np.concatenate(story)
        strength = cut_strength(whole)
        starts = np.cumsum([len(s) for s in story])[:-1] - 1
        across = min(across, float(strength[starts].min(initial=np.inf)))
        inside = max(inside, float(np.delete(strength, starts).max()))
    return inside, across


def fade_share(frames_FHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share of the pixels that change evenly from frame i to frame i + FADE_SPAN, [F - FADE_SPAN] (or empty).

    Where things move, a pixel changes at once when an edge passes it; where pictures are blended it is half way in the
    middle. That tells a slow fade, which no two neighbouring frames betray, from motion.
    """
    frames = _small(frames_FHWC)
    half = FADE_SPAN // 2
    shares = []
    for i in range(len(frames) - FADE_SPAN):
        first, middle, last = frames[i], frames[i + half], frames[i + FADE_SPAN]
        change = np.abs(last - first)
        even = (change > 10) & (np.abs(2 * middle - first - last) < 0.4 * change)
        shares.append(float(even.any(-1).mean()))
    return np.array(shares, np.float64)


def find_fades(frames_FHWC: NDArray[np.uint8], share: float = FADE_SHARE) -> list[Span]:
    """Where one picture slowly turns into another, or the light changes: spans of frames, in order."""
    return _joined([(i, i + FADE_SPAN) for i, value in enumerate(fade_share(frames_FHWC)) if value > share])


def pop_share(frames_FHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """By how much of the picture jumps away after frame i and back n frames later, [F, POP_LONGEST], -inf if never.

    Row i, column n - 1: frames i + 1 .. i + n are the odd ones. Counted are the blocks of a 20x32 grid that do so, as
    a share, less twice the share that jumps in the steps next to these two: motion and blinking eyes, unlike a pop,
    take several steps.
    """
    thumbs = _thumbnails(frames_FHWC)
    jumped = np.abs(np.diff(thumbs, axis=0)).max(-1) > 20
    busy = np.concatenate((jumped.mean((1, 2)), [0.0, 0.0]))  # so that -1, too, is a quiet step
    shares = np.full((len(thumbs), POP_LONGEST), -np.inf)
    for i in range(len(thumbs) - 2):
        for n in range(1, min(POP_LONGEST, len(thumbs) - 2 - i) + 1):
            away, rest = np.abs(thumbs[i + 1] - thumbs[i]).max(-1), np.abs(thumbs[i + n + 1] - thumbs[i]).max(-1)
            odd = jumped[i] & jumped[i + n] & (rest < 0.5 * away)
            around = {i - 1, i + 1, i + n - 1, i + n + 1} - {i, i + n}
            shares[i, n - 1] = odd.mean() - 2 * max(busy[j] for j in around)
    return shares


def find_pops(frames_FHWC: NDArray[np.uint8], share: float = POP_SHARE) -> list[Span]:
    """Where something disappears or appears for at most POP_LONGEST frames: spans of the odd frames, in order."""
    found = np.argwhere(pop_share(frames_FHWC) > share)
    return _joined([(int(i) + 1, int(i) + 1 + int(n)) for i, n in found])


def _joined(spans: list[Span]) -> list[Span]:
    joined: list[Span] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def _small(frames_FHWC: NDArray[np.uint8]) -> NDArray[np.int16]:
    """About 80 rows, picked and not averaged, so that edges stay sharp."""
    step = max(1, frames_FHWC.shape[1] // 80)
    return frames_FHWC[:, ::step, ::step].astype(np.int16)


def _thumbnails(frames_FHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean colours of a 20x32 grid, [F, 20, 32, 3]; needs a height and width divisible by 20 and 32."""
    f, h, w, _ = frames_FHWC.shape
    blocks = frames_FHWC.reshape(f, 20, h // 20, 32, w // 32, 3)
    return blocks.mean((2, 4))


def _histogram(thumb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of the coarse colours, soft between bins so that a slow change of light counts little."""
    scaled = thumb.reshape(-1, 3) / 255 * (BINS - 1)
    low = np.minimum(scaled.astype(int), BINS - 2)
    part = scaled - low
    shares = np.zeros(BINS**3)
    for corner in range(8):
        bits = np.array([corner >> 2 & 1, corner >> 1 & 1, corner & 1])
        weight = np.prod(np.where(bits, part, 1 - part), axis=1)
        index = (low + bits) @ np.array([BINS * BINS, BINS, 1])
        shares += np.bincount(index, weight, BINS**3)
    return shares / len(scaled)
