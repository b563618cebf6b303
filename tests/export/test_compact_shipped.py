"""The graphs that come with the package are of the weights that come with it, and need nothing that exports."""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from films import latents_of

from shotstream.export.compact.loading import decoder_runner, read_compact, segment_runner, shipped, total_bytes
from shotstream.export.onnx_runtime import decoder as onnx_decoder
from shotstream.export.onnx_runtime import engine as onnx_engine
from shotstream.export.onnx_runtime.runner import SessionSettings
from shotstream.runtime.plugins import ModelRequest
from shotstream.runtime.presets import load_tiny
from shotstream.runtime.runtime import Runtime

pytest.importorskip("onnxruntime")
log = logging.getLogger(__name__)
LARGEST_ERROR = 0.15
"""Of the latents of a first chunk, relative. What both are is logged."""
LEAST_PSNR = 25.0


def test_they_are_small_and_of_the_weights_beside_them() -> None:
    folder = shipped("tiny")
    assert folder is not None
    compact, settings = read_compact(folder), SessionSettings(torch.device("cpu"), threads=1)
    assert total_bytes(folder, compact) < 500_000
    parts = load_tiny(ModelRequest(torch.device("cpu"), torch.float32))
    remedy = "stale: run shotstream export compact --out runtime/weights/tiny/onnx"
    try:
        segment_runner(folder, compact, parts, settings)
        decoder_runner(folder, compact, parts.decoder, parts.latent_shape[1:], settings)
    except Exception as error:
        raise AssertionError(remedy) from error


def test_they_play_the_film_of_eager_without_exporting(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(onnx_engine, "own_export", lambda *_: pytest.fail("exported: the package's segments are stale"))
    monkeypatch.setattr(onnx_decoder, "export_graphs", lambda *_: pytest.fail("exported: its decoder is stale"))
    made = []
    for options in (
        {"engine": "eager"},
        {"engine": "onnx", "engine_options": {"precision": "int8"}, "decoder": "tiny-vae-onnx-int8"},
    ):
        with Runtime("tiny", **options) as runtime:
            latents = latents_of(runtime)
            session = runtime.open("A red ball on a green field. ", seed=1)
            session.begin_shot("the ball rolls", 2)
            frames = np.stack([frame for chunk in session.chunks() for frame in chunk.frames])
            made.append((latents[0], frames))
    (theirs, expected), (ours, frames) = made
    error = float((ours - theirs).norm() / theirs.norm())
    square = float(np.mean((frames.astype(np.float64) - expected.astype(np.float64)) ** 2))
    psnr = 10 * math.log10(255**2 / square)
    log.info("latents %.3f, frames %.1f dB from eager's", error, psnr)
    assert 1e-4 < error < LARGEST_ERROR
    assert psnr > LEAST_PSNR


@pytest.mark.slow
def test_building_again_gives_the_same_files(tmp_path: Path) -> None:
    building = pytest.importorskip("shotstream.export.compact.building")
    folder = shipped("tiny")
    assert folder is not None
    there = read_compact(folder)
    if any(version(package) != built for package, built in there.versions.items()):
        pytest.skip("built with other versions of packages")
    made = building.build_compact(load_tiny(ModelRequest(torch.device("cpu"), torch.float32)), tmp_path)
    assert replace(read_compact(tmp_path), decoder=there.decoder) == there
    assert made.decoder.fillings == there.decoder.fillings  # its ranges are measured, and a processor rounds as it does
