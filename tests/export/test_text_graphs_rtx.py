"""TensorRT-RTX builds the text encoders' graphs. Figures of umT5: -m slow -o log_cli=true --log-cli-level=INFO."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from shotstream.export.graphs.spec import write_graph
from shotstream.export.graphs.text import TINY_TEXT, UMT5, text_specs
from shotstream.export.trt.build import BuildOrder, build_apart
from shotstream.runtime.text.tiny import TinyTextConfig, TinyTextEncoder
from shotstream.runtime.text.umt5 import UMT5Encoder, UMT5Sizes, _build

pytest.importorskip("onnxscript")
pytest.importorskip("tensorrt_rtx_bindings")
log = logging.getLogger(__name__)


def _built(encoder: Any, name: str, free: tuple[int, int, int], folder: Path) -> float:
    """Size of the plan in MB. free: least, usual and most of the free size."""
    begun = time.perf_counter()
    graph = write_graph(text_specs(encoder)[name](), folder, f"{name}.onnx")
    exported = time.perf_counter() - begun
    profiles = {
        port.name: tuple(tuple(size if isinstance(size, int) else count for size in port.shape) for count in free)
        for port in graph.inputs
    }
    plan = folder / f"{name}.plan"
    told = build_apart(BuildOrder("tensorrt-rtx", str(folder / graph.file), str(plan), profiles))
    made = plan.stat().st_size / 1e6
    seconds, peak = told["seconds"], told["peak_mb"]
    log.info("%s: export %.1f s; build %.1f s, plan %.1f MB, peak %.0f MiB", name, exported, seconds, made, peak)
    return made


def test_the_tiny_encoder_is_built(tmp_path: Path) -> None:
    encoder = TinyTextEncoder(TinyTextConfig(length=24, dim=16, heads=2, layers=1, buckets=64)).eval()
    assert _built(encoder.requires_grad_(False), TINY_TEXT, (1, 1, 4), tmp_path) > 0


@pytest.mark.slow
def test_two_layers_of_umt5_at_their_real_width_are_built_in_bfloat16(tmp_path: Path) -> None:
    """Not the whole: 24 layers and 256,384 words are 11.4 GB."""
    pytest.importorskip("transformers")
    model = _build(UMT5Sizes(vocab=1024, layers=2), "cpu").bfloat16()
    encoder = UMT5Encoder(model, lambda text: [1] * len(text))
    assert 770 < _built(encoder, UMT5, (1, 64, encoder.text_len), tmp_path) < 1000
