"""A model of a few thousand weights for the tests of sessions: the real code path, milliseconds per chunk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.decoders.tiny_vae import TinyVAE, TinyVAEConfig
from shotstream.runtime.engine import EagerEngine, ShotContext
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.plugins import EngineRequest, ModelParts, ModelRequest, Registry
from shotstream.runtime.presets import model_parts
from shotstream.runtime.runtime import Runtime
from shotstream.runtime.text.tiny import TinyTextConfig, TinyTextEncoder

SMALL = DiTConfig(dim=32, heads=2, ffn_dim=64, layers=2, freq_dim=32, channels=4, text_len=24, text_dim=16, shift=3.0)


class RecordingEngine(EagerEngine):
    """The eager engine, with a record of what it was asked and what it made."""

    def __init__(self, request: EngineRequest) -> None:
        super().__init__(request)
        self.contexts: list[ShotContext] = []
        self.target_flags: list[int] = []
        self.latents: list[tuple[int, torch.Tensor]] = []
        self.cleaned: list[int] = []

    def begin_shot(self, state: Any, context: ShotContext, caption: Any) -> None:
        super().begin_shot(state, context, caption)
        self.contexts.append(context)
        self.target_flags.append(int(state.conditions.target_flag_B))

    def denoise(self, state: Any, start_frame: int, noise_BFCHW: torch.Tensor, renoise: Any) -> torch.Tensor:
        out = super().denoise(state, start_frame, noise_BFCHW, renoise)
        self.latents.append((start_frame, out.clone()))
        return out

    def clean(self, state: Any, start_frame: int, x0_BFCHW: torch.Tensor) -> None:
        super().clean(state, start_frame, x0_BFCHW)
        self.cleaned.append(start_frame)


class SmallPlugin:
    """Model `small` with random weights (latents 4 x 4 x 6, pixels 64 x 96) and the engine `recording`."""

    name = "small"

    def build(self, registry: Registry) -> None:
        registry.register("model", "small", self._model)
        registry.register("engine", "recording", RecordingEngine)

    def _model(self, request: ModelRequest) -> ModelParts:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(request.seed)
            transformer = Transformer(dataclasses.replace(SMALL, **request.options))
            for parameter in transformer.parameters():  # biases and gates that are zero would hide mistakes
                if parameter.ndim == 1:
                    parameter.data += 0.1 * torch.randn_like(parameter)
            text = TinyTextEncoder(TinyTextConfig(length=24, dim=16, heads=2, layers=1, buckets=64))
            codec = TinyVAEConfig(
                latent_channels=4, encoder_channels=(4, 8, 8, 8), decoder_channels=(8, 8, 8), decoder_blocks=(1, 1, 1)
            )
            vae = TinyVAE(codec)
        parts = model_parts("small", request, transformer, text.requires_grad_(False).eval(), vae, (4, 6))
        vae.requires_grad_(False).eval().to(request.device, request.dtype)
        return parts


@pytest.fixture
def small_runtime() -> Iterator[Callable[..., Runtime]]:
    """Makes runtimes of the small model and closes them: keyword arguments are options, `plugins` are added to the
    usual ones.
    """
    made: list[Runtime] = []

    def make(*plugins: Any, **options: Any) -> Runtime:
        core = ["shotstream.runtime.presets:CorePlugin", SmallPlugin()]
        runtime = Runtime("small", engine=options.pop("engine", "recording"), plugins=[*core, *plugins], **options)
        made.append(runtime)
        return runtime

    yield make
    for runtime in made:
        runtime.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
