"""The engine `graph` with kernels in every place, in Triton's interpreter, beside the same engine in plain torch.

Two shots of three chunks on a model of two layers: the second shot's context is what the first one made, of two
captions. Everything that an engine asks of the kernels is asked here: joined passes, the device's lengths, noise.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from shotstream.kernels.attention.backend import TritonAttention
from shotstream.kernels.ops import TritonOps
from shotstream.runtime.config import DiTConfig
from shotstream.runtime.engine import ShotContext
from shotstream.runtime.graph.engine import GraphEngine
from shotstream.runtime.graph.ops import TorchOps
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.noise import NoiseSource
from shotstream.runtime.plugins import EngineRequest, ModelParts

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

CPU = torch.device("cpu")
CONFIG = DiTConfig(
    dim=128, heads=2, ffn_dim=160, layers=2, freq_dim=32, channels=4, text_len=5, text_dim=8, local_frames=9, shift=3.0,
    nominal_steps=(1000, 500),
)  # fmt: skip
LATENT = (4, 2, 4)
SEED = (1 << 50) + 3


def model() -> Transformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Transformer(CONFIG)
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
    return made.requires_grad_(False).eval()


def request(kernels: bool, dtype: torch.dtype, fp8: str) -> EngineRequest:
    parts: Any = ModelParts("toy", CONFIG, model().to(dtype), None, None, "", LATENT, (16, 32))  # type: ignore[arg-type]
    plain = EngineRequest(parts, CPU, dtype, options={"fp8": fp8, "exact_blocks": 0})
    return replace(plain, ops=TritonOps(CPU), attention=TritonAttention()) if kernels else plain


def play(
    kernels: bool, dtype: torch.dtype = torch.float32, fp8: str = "none", shots: int = 1, chunks: int = 2
) -> list[Tensor]:
    """Clean latents of all chunks, float32."""
    engine = GraphEngine(request(kernels, dtype, fp8))
    assert isinstance(engine.ops, TritonOps if kernels else TorchOps)
    assert isinstance(engine.attention, TritonAttention) == kernels
    state, noise = engine.new_state(), NoiseSource(SEED, CPU, dtype, engine.ops.draw if kernels else None)
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(2, 1, CONFIG.text_len, CONFIG.text_dim, generator=generator)
    captions = [engine.embed_caption(rows) for rows in text]
    context = ShotContext(torch.randn(6, *LATENT, generator=generator), [0] * 6, captions[:1], [0] * 6)
    shape, made = (1, CONFIG.chunk_frames, *LATENT), []
    for shot in range(shots):
        engine.begin_shot(state, context, captions[shot])
        for chunk in range(chunks):
            draw = partial(_draw, noise, shot, chunk, shape)
            start = chunk * CONFIG.chunk_frames
            made.append(engine.denoise(state, start, draw(-1), draw))
            engine.clean(state, start, made[-1])
        newest = torch.cat(made[-2:], dim=1)[0].float()
        context = ShotContext(newest, [0, 0, 0, 1, 1, 1], captions, [0, 0, 0, 1, 1, 1])
    return [out.float() for out in made]


def _draw(noise: NoiseSource, shot: int, chunk: int, shape: tuple[int, ...], step: int) -> Tensor:
    return noise.draw(shot, chunk, step + 1, shape)


def error(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


def test_two_shots_are_those_of_plain_torch() -> None:
    got, wanted = play(True, shots=2, chunks=3), play(False, shots=2, chunks=3)
    assert len(got) == 6
    for ours, torchs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, torchs, atol=3e-5, rtol=3e-5)
    assert error(wanted[0], wanted[3]) > 0.1, "two shots differ, so the comparison says something"


def test_half_precision_is_as_near_to_float32_as_torchs() -> None:
    exact, got, wanted = play(False), play(True, torch.float16), play(False, torch.float16)
    for ours, torchs, right in zip(got, wanted, exact, strict=True):
        assert error(ours, right) < 1.5 * error(torchs, right) + 1e-4


@pytest.mark.parametrize(("fp8", "dtype"), [("cache", torch.float16), ("linears", torch.float32)])
def test_in_eight_bits_it_is_as_near_as_the_interpreters_cast_allows(fp8: str, dtype: torch.dtype) -> None:
    exact, got, wanted = play(False), play(True, dtype, fp8), play(False, dtype, fp8)
    for ours, torchs, right in zip(got, wanted, exact, strict=True):
        assert error(torchs, right) > 5e-4, "eight bits are in use"
        assert error(ours, torchs) < 0.015
