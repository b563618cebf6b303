"""The engine `graph` at the real model's size, on the meta device: shapes fit, and the work is what the notes say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shotstream.runtime.config import WAN_1_3B
from shotstream.runtime.engine import ShotContext
from shotstream.runtime.graph.engine import GraphEngine
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.plugins import EngineRequest, ModelParts
from shotstream.runtime.wan import WanSizes

META = torch.device("meta")
LATENT = (WAN_1_3B.channels, *WanSizes().latent_size)


def engine(fp8: str = "none", layers: int = WAN_1_3B.layers) -> GraphEngine:
    config = replace(WAN_1_3B, layers=layers)
    with META:
        transformer = Transformer(config).to(torch.bfloat16).requires_grad_(False)
    nothing = cast(Any, None)
    parts = ModelParts("meta", config, transformer, nothing, nothing, "", LATENT, (480, 832))
    return GraphEngine(EngineRequest(parts, META, torch.bfloat16, options={"fp8": fp8}))


def noise(frames: int = 3) -> torch.Tensor:
    return torch.empty(1, frames, *LATENT, device=META, dtype=torch.bfloat16)


def tflop(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counted:
        work()
    return counted.get_total_flops() / 1e12


@pytest.mark.parametrize("fp8", ["none", "cache", "linears", "all"])
@torch.inference_mode()
def test_chunks_of_the_real_size_fit(fp8: str) -> None:
    made = engine(fp8, layers=3)
    state = made.new_state()
    assert state.nbytes == 2 * 3 * 27 * 1560 * 1536 * (2 if fp8 in ("none", "linears") else 1)
    text = made.embed_caption(torch.empty(1, 512, 4096, device=META))
    made.begin_shot(state, ShotContext(noise(6)[0], [0, 0, 1, 1, 2, 2], [text] * 3, [0, 0, 1, 1, 2, 2]), text)
    for chunk in range(8):  # the eighth goes round the ring
        z = made.denoise(state, 3 * chunk, noise(), lambda _: noise())
        assert z.shape == noise().shape
        made.clean(state, 3 * chunk, z)


@pytest.mark.slow
@torch.inference_mode()
def test_the_work_of_a_shot_is_what_the_notes_say() -> None:
    made = engine()
    state = made.new_state()
    text = made.embed_caption(torch.empty(1, 512, 4096, device=META))
    context = tflop(lambda: made.begin_shot(state, ShotContext(noise(6)[0], [0] * 6, [text], [0] * 6), text))
    starts, steps = [], []
    for chunk in range(7):
        starts.append(tflop(lambda chunk=chunk: made.start(state, 3 * chunk, noise())))
        steps.append(tflop(lambda: made.finish(state, lambda _: noise())) / 3)
        if chunk < 6:
            made.clean(state, 3 * chunk, noise())
    assert steps == pytest.approx([24.3, 28.3, 32.3, 36.4, 40.4, 44.4, 48.5], abs=0.06)
    assert starts == pytest.approx([24.3, 51.8, 59.7, 67.7, 75.6, 83.6, 91.5], abs=0.06)
    assert context + sum(starts) + 3 * sum(steps) == pytest.approx(1257, abs=1)
