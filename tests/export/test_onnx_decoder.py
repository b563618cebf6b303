"""A decoder on ONNX Runtime in the runtime's place for decoders."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import decoders
import pytest
import torch

from shotstream.export import exporting
from shotstream.export.onnx_runtime import decoder as onnx_decoder
from shotstream.export.onnx_runtime.decoder import OnnxDecoder
from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import Decoder, ModelRequest, Registry
from shotstream.runtime.runtime import Runtime

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
MakeRuntime = Callable[..., Runtime]
STEADY = (0.3, 0.6, 0.15)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def decoder(cache: Path) -> OnnxDecoder:
    """Its graph is made by the first test and found by the others: noise reduction is not in it."""
    return OnnxDecoder(decoders.tiny_vae(STEADY), cache)


def test_noise_is_reduced_over_time_as_in_torch(decoder: OnnxDecoder) -> None:
    z = decoders.latents(4) * 0.3
    quiet, plain = decoder.torch.decode(z), decoders.tiny_vae().decode(z)
    assert (quiet - plain).abs().max() > 0.01
    stream = decoder.new_stream(1)
    made = torch.cat([decoder.decode_chunk(part, stream) for part in z.split([3, 3, 1], dim=1)], dim=1)
    torch.testing.assert_close(made, quiet, rtol=0, atol=5e-6)


def test_clips_and_streams_do_not_disturb_each_other(decoder: OnnxDecoder) -> None:
    z = torch.cat([decoders.latents(4), -decoders.latents(4)])
    both = decoder.new_stream(2)
    first = decoder.decode_chunk(z[:, :3], both)
    kept = first.clone()
    alone = decoder.decode(z[1:])
    second = decoder.decode_chunk(z[:, 3:], both)
    assert torch.equal(first, kept), "a later call wrote into the frames of an earlier one"
    torch.testing.assert_close(torch.cat([first, second], dim=1)[1], alone[0], rtol=0, atol=5e-6)


def test_graphs_are_made_once_and_by_one_who_needs_them(
    decoder: OnnxDecoder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder.decode(decoders.latents(4))
    monkeypatch.setattr(exporting, "write_graph", lambda *_: pytest.fail("exported again"))
    other = OnnxDecoder(decoders.tiny_vae(), cache)
    assert other.decode(decoders.latents(4)).shape == (1, 25, 3, 32, 64)


def test_a_session_plays_with_it(small_runtime: MakeRuntime, cache: Path) -> None:
    made = []
    for name in ("twin", "onnx-twin"):
        runtime = small_runtime(_Twins(cache), decoder=name)
        session = runtime.open("A forest. ", seed=3)
        session.begin_shot("a fox waits", 2)
        made.append([chunk.frames for chunk in session.chunks()])
        session.begin_shot("a fox runs", 1)  # from frames that the codec encodes
        made[-1] += [chunk.frames for chunk in session.chunks()]
    assert [len(frames) for frames in made[1]] == [9, 12, 9]
    for ours, theirs in zip(made[1], made[0], strict=True):
        torch.testing.assert_close(torch.as_tensor(ours).int(), torch.as_tensor(theirs).int(), rtol=0, atol=1)


class _Twins:
    """One codec twice, in torch and on ONNX Runtime; both are decoders as the protocol says."""

    name = "twins"

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def build(self, registry: Registry) -> None:
        registry.register("decoder", "twin", lambda _: decoders.tiny_vae())
        registry.register("decoder", "onnx-twin", self._onnx)

    def _onnx(self, request: Any) -> Decoder:
        made = OnnxDecoder(decoders.tiny_vae(), self.cache)
        assert isinstance(made, Decoder)
        return made


def test_eight_bits_are_near_and_not_the_same(cache: Path) -> None:
    import onnx

    decoder = decoders.tiny_vae()
    z = 0.8 * decoders.latents(4)
    eight_bit = OnnxDecoder(decoder, cache, precision="int8")
    error = (eight_bit.decode(z) - decoder.decode(z)).square().mean()
    assert 1e-8 < error < 4e-4, "40 dB"
    (path,) = cache.glob("tiny-vae-int8-*/decoder_step.onnx")
    kinds = [node.op_type for node in onnx.load(str(path)).graph.node]
    assert kinds.count("Conv") == 15
    assert kinds.count("QuantizeLinear") >= 10
    assert OnnxDecoder(decoder, cache, precision="int8").decode(z).equal(eight_bit.decode(z))


def test_the_codec_of_tiny_is_ready_when_it_is_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_decoder, "cache_folder", lambda: cache)
    monkeypatch.setattr(onnx_decoder, "load_tiny_vae", lambda _: decoders.tiny_vae())
    monkeypatch.setattr(onnx_decoder, "TINY_LATENT", decoders.SIZE)
    made = onnx_decoder.onnx_tiny_vae(ModelRequest(torch.device("cpu"), torch.float32))
    monkeypatch.setattr(onnx_decoder._Graphs, "of", lambda *_: pytest.fail("not ready"))
    assert made.decode(decoders.latents(4)).shape == (1, 25, 3, 32, 64)


def test_without_the_exporter_the_pip_line_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(package: str) -> Any:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "distribution", lacking)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"'onnx', which is not installed; run: pip install shotstream\[export\]"):
        OnnxDecoder(decoders.tiny_vae(), tmp_path).decode(decoders.latents(4))


def test_what_does_not_fit_is_refused_in_a_sentence(decoder: OnnxDecoder, cache: Path) -> None:
    with pytest.raises(UserError, match="reads latents of 4 channels, and the model makes 16"):
        decoder.decode(decoders.latents(16))
    with pytest.raises(ValueError, match="decodes 2 clips of None, not 1 of"):
        decoder.decode_chunk(decoders.latents(4), decoder.new_stream(2))
    stream = decoder.new_stream()
    decoder.decode_chunk(decoders.latents(4), stream)
    with pytest.raises(ValueError, match=r"decodes 1 clips of \(2, 4\), not 1 of \(4, 2\)"):
        decoder.decode_chunk(decoders.latents(4).transpose(-1, -2), stream)
    with pytest.raises(UserError, match="float32 or float16, not in bfloat16"):
        OnnxDecoder(decoders.tiny_vae().bfloat16(), cache)
    with pytest.raises(UserError, match="int8 for float32 on a CPU"):
        OnnxDecoder(decoders.tiny_vae().half(), cache, precision="int8")
    with pytest.raises(UserError, match="cannot be exported"):
        OnnxDecoder(torch.nn.Linear(2, 2), cache)
