"""The codec of `tiny` itself: torch, ONNX Runtime and eight bits side by side. For the figures: -m slow -o log_cli=true
--log-cli-level=INFO, on an idle core.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shotstream.export.onnx_runtime.decoder import OnnxDecoder
from shotstream.runtime.plugins import ModelRequest
from shotstream.runtime.presets import TINY_LATENT, load_tiny_vae

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
log = logging.getLogger(__name__)

LEAST_PSNR = {"torch": 200.0, "torch bfloat16": 45.0, "onnx": 120.0, "onnx int8": 38.0}
"""In decibels, against torch in float32. What they are is logged."""


@pytest.mark.slow
@torch.inference_mode()
def test_frames_of_tiny_and_what_a_chunk_costs(tmp_path: Path) -> None:
    plain, half = (load_tiny_vae(ModelRequest(torch.device("cpu"), t)) for t in (torch.float32, torch.bfloat16))
    eight_bit = OnnxDecoder(plain, tmp_path, precision="int8")
    made = {"torch": plain, "torch bfloat16": half, "onnx": OnnxDecoder(plain, tmp_path), "onnx int8": eight_bit}
    generator = torch.Generator().manual_seed(0)
    z = 0.8 * torch.randn(1, 9, 32, *TINY_LATENT, generator=generator)
    expected = plain.decode(z)
    quality = {name: _psnr(decoder.decode(z).float(), expected) for name, decoder in made.items()}

    streams = {name: decoder.new_stream(1) for name, decoder in made.items()}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for number in range(22):  # in turns, and by the processor's clock: neighbours matter less
        for name, decoder in made.items():
            begun = time.process_time()
            decoder.decode_chunk(z[:, 3 * (number % 3) :][:, :3], streams[name])
            seconds[name].append(time.process_time() - begun)
    for name, taken in seconds.items():
        log.info("%s: %.0f ms a chunk, %.1f dB", name, 1e3 * statistics.median(taken[2:]), quality[name])
    for name, least in LEAST_PSNR.items():
        assert quality[name] >= least, name


def _psnr(ours: Tensor, expected: Tensor) -> float:
    """Of pictures between -1 and 1, in decibels."""
    return 10 * math.log10(4 / max(1e-30, (ours - expected).square().mean().item()))
