"""TensorRT-RTX builds the decoders' graphs. Figures of the real size: -m slow -o log_cli=true --log-cli-level=INFO."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import decoders
import pytest
import torch

from shotstream.export.graphs.decoder_stream import FIRST, FREE
from shotstream.export.graphs.decoders import MOST_LATENTS, decoder_specs
from shotstream.export.graphs.spec import write_graph
from shotstream.export.trt.build import BuildOrder, build_apart
from shotstream.runtime.decoders.taehv import random_taehv
from shotstream.runtime.decoders.wan_vae import random_wan_vae

pytest.importorskip("onnxscript")
pytest.importorskip("tensorrt_rtx_bindings")
log = logging.getLogger(__name__)

REAL_SIZE = (60, 104)


def _built(decoder: Any, name: str, size: tuple[int, int], folder: Path) -> float:
    """Size of a graph's plan in MB."""
    begun = time.perf_counter()
    graph = write_graph(decoder_specs(decoder, size)[name](), folder, f"{name}.onnx")
    exported = time.perf_counter() - begun
    latent = graph.inputs[0]
    channels, height, width = latent.shape[1:]
    shapes = tuple((count, channels, height, width) for count in (1, MOST_LATENTS, MOST_LATENTS))
    profiles = {latent.name: shapes} if FREE in latent.shape else {}
    plan = folder / f"{name}.plan"
    told = build_apart(BuildOrder("tensorrt-rtx", str(folder / graph.file), str(plan), profiles))
    files = sum((folder / file).stat().st_size for file in graph.sha256) / 1e6
    made = plan.stat().st_size / 1e6
    log.info(
        "%s: export %.1f s, %.1f MB; build %.1f s, plan %.1f MB, peak %.0f MiB", name, exported, files,
        told["seconds"], made, told["peak_mb"],
    )  # fmt: skip
    return made


@pytest.mark.parametrize("make", [decoders.tiny_vae, decoders.taehv], ids=["tiny-vae", "taehv"])
def test_small_steps_are_built_for_one_to_three_latents(make: Callable[[], Any], tmp_path: Path) -> None:
    assert _built(make(), "decoder_step", decoders.SIZE, tmp_path) > 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", [FIRST, "decoder_step"])
def test_the_wan_vae_is_built_at_its_real_size(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    plan = _built(random_wan_vae(dtype=dtype), name, REAL_SIZE, tmp_path)
    assert 140 < plan < 200, "the decoder's weights, and not the states"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_taehv_is_built_at_its_real_size(dtype: torch.dtype, tmp_path: Path) -> None:
    assert 18 < _built(random_taehv(dtype=dtype), "decoder_step", REAL_SIZE, tmp_path) < 40
