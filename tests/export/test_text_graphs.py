"""The text encoders' graphs on ONNX Runtime give the rows that the runtime's encoders give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shotstream.export.graphs.spec import write_graph
from shotstream.export.graphs.text import TINY_TEXT, UMT5, text_specs
from shotstream.runtime.errors import UserError
from shotstream.runtime.text.tiny import TinyTextConfig, TinyTextEncoder
from shotstream.runtime.text.umt5 import UMT5Encoder, UMT5Sizes, _build

pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")
BOUND = 3e-6
"""Of the largest row's largest number."""
TEXT_LEN = 200
CAPTIONS = ("a", "a fox walks through the snow", "shot 1: " + "x" * 150)
Run = Callable[..., Tensor]


def _exported(encoder: Any, name: str, folder: Path) -> Run:
    write_graph(text_specs(encoder)[name](), folder, f"{name}.onnx")
    session = ort.InferenceSession(str(folder / f"{name}.onnx"))
    return lambda **inputs: torch.from_numpy(session.run(None, {k: t.numpy() for k, t in inputs.items()})[0])


def _error(ours: Tensor, expected: Tensor) -> float:
    return float((ours.double() - expected.double()).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def umt5() -> UMT5Encoder:
    """Three layers with biases by distance that matter."""
    pytest.importorskip("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _build(UMT5Sizes(vocab=64, dim=32, heads=4, head_dim=8, ffn_dim=48, layers=3), "cpu")
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=1.0 if "relative" in name else 0.2)
    return UMT5Encoder(model, lambda text: [2 + ord(c) % 60 for c in text] + [1], TEXT_LEN)


@pytest.fixture(scope="module")
def run_umt5(umt5: UMT5Encoder, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return _exported(umt5, UMT5, tmp_path_factory.mktemp("umt5"))


@pytest.mark.parametrize("caption", CAPTIONS, ids=len)
@pytest.mark.parametrize("padded", [False, True])
def test_rows_of_umt5_are_the_runtimes_as_far_as_float32_goes(
    umt5: UMT5Encoder, run_umt5: Run, monkeypatch: pytest.MonkeyPatch, caption: str, padded: bool
) -> None:
    monkeypatch.setattr("shotstream.runtime.text.umt5.clean_caption", lambda text: text)  # needs no ftfy
    numbers = umt5.token_ids(caption)
    ids, mask = torch.zeros(2, 1, TEXT_LEN if padded else len(numbers), dtype=torch.int64)
    ids[0, : len(numbers)], mask[0, : len(numbers)] = torch.tensor(numbers), 1
    ours, theirs = run_umt5(ids=ids, mask=mask), umt5.encode([caption])
    assert ours.shape == theirs.shape == (1, TEXT_LEN, 32)
    assert not ours[0, len(numbers) :].any()
    exact = UMT5Encoder(copy.deepcopy(umt5.model).double(), umt5._tokenize, TEXT_LEN).encode([caption])
    assert _error(ours, exact) <= max(BOUND, 2 * _error(theirs, exact))


def test_rows_of_the_tiny_encoder_are_the_same_on_onnx_runtime(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = TinyTextEncoder(TinyTextConfig(length=24, dim=16, heads=2, layers=2, buckets=64)).eval()
    encoder.requires_grad_(False)
    run = _exported(encoder, TINY_TEXT, tmp_path)
    for captions in (["a red fox waits in the snow"], ["a", "", "two robots: one walks. " * 6]):
        word, group = encoder.ids(captions)
        rows, expected = run(word=word, group=group), encoder.encode(captions)
        assert rows.shape == expected.shape
        assert _error(rows, expected) <= BOUND


def test_an_encoder_of_somebody_else_is_refused() -> None:
    with pytest.raises(UserError, match="umT5 and that of 'tiny' can"):
        text_specs(object())
