"""The decoders' graphs exported and run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import decoders
import pytest
import torch

from shotstream.export.graphs.decoder_stream import STEP
from shotstream.export.graphs.decoders import latent_channels
from shotstream.export.manifest import read_manifest
from shotstream.export.onnx_runtime.decoder import OnnxDecoder
from shotstream.runtime.decoders.taehv import random_taehv
from shotstream.runtime.decoders.wan_vae import random_wan_vae
from shotstream.runtime.errors import UserError

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
BOUND = 5e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this file's exports lie."""
    return tmp_path_factory.mktemp("graphs")


@pytest.mark.parametrize(
    "decoder", [decoders.tiny_vae(), decoders.taehv(), decoders.wan_vae(blocks=0)], ids=lambda d: type(d).__name__
)
def test_a_stream_in_uneven_chunks_on_onnx_runtime_is_the_whole_shot(decoder: Any, folder: Path) -> None:
    ours = OnnxDecoder(decoder, folder)
    z = decoders.latents(latent_channels(decoder))
    whole = decoder.decode(z)
    for chunks in decoders.UNEVEN:
        stream = ours.new_stream()
        made = torch.cat([ours.decode_chunk(part, stream) for part in z.split(chunks, dim=1)], dim=1)
        assert made.shape == whole.shape
        torch.testing.assert_close(made, whole, rtol=0, atol=BOUND)


def test_no_graph_gathers_pixels_and_every_step_takes_any_number_of_latents(folder: Path) -> None:
    """diffusers' nearest-exact would be a gather for every pixel."""
    import onnx

    made = {path.parent: read_manifest(path.parent) for path in folder.glob("*/manifest.json")}
    assert len(made) == 3, "made by the test before"
    for path, manifest in made.items():
        step = manifest.graph(STEP)
        kinds = [node.op_type for node in onnx.load(str(path / step.file)).graph.node]
        assert kinds.count("Resize") in (2, 3)
        assert "GatherND" not in kinds
        assert step.inputs[0].shape[0] == "latents"
        assert step.outputs[0].shape[:3] == ("latents", 4, 3)
        assert all(isinstance(size, int) for port in step.outputs[1:] for size in port.shape)


def test_eight_bits_are_for_decoders_of_one_graph(folder: Path) -> None:
    codec, z = decoders.taehv(), decoders.latents(16)
    error = (OnnxDecoder(codec, folder, precision="int8").decode(z) - codec.decode(z)).square().mean()
    assert 0 < error < 4e-3, "30 dB"
    with pytest.raises(UserError, match="there is no int8 for the decoder 'wan-vae'"):
        OnnxDecoder(decoders.wan_vae(blocks=0), folder, precision="int8").decode(z)


@pytest.mark.slow
@pytest.mark.parametrize("make", [random_wan_vae, random_taehv])
def test_real_widths_and_all_layers_on_small_latents(make: Callable[[], Any], tmp_path: Path) -> None:
    """At this width torch's own pixels are up to 5e-6 from those in float64, ONNX Runtime's 2e-6."""
    decoder = make()
    z = decoders.latents(16)
    torch.testing.assert_close(OnnxDecoder(decoder, tmp_path).decode(z), decoder.decode(z), rtol=0, atol=2 * BOUND)
