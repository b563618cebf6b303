"""The decoders' graphs, as modules in torch: a stream in uneven chunks is the whole shot that the decoder makes."""

from __future__ import annotations

from typing import Any

import decoders
import pytest
import torch
from torch import Tensor

from shotstream.export.graphs.decoder_stream import FIRST, FRAMES, LATENT, STEP
from shotstream.export.graphs.decoders import decoder_specs, latent_channels
from shotstream.export.graphs.spec import GraphSpec
from shotstream.runtime.errors import UserError

MADE = {"tiny-vae": decoders.tiny_vae, "taehv": decoders.taehv, "wan-vae": decoders.wan_vae}
BOUND = 5e-6
"""Of a pixel in [-1, 1]; the Wan VAE's decoders differ by as much among themselves."""


def _specs(decoder: Any, dtype: torch.dtype = torch.float32) -> dict[str, GraphSpec]:
    return {name: make() for name, make in decoder_specs(decoder.to(dtype), decoders.SIZE).items()}


def _played(specs: dict[str, GraphSpec], z_FCHW: Tensor, chunks: list[int]) -> Tensor:
    """What the contract in `graphs.decoder_stream` says, in a few lines."""
    step = specs[STEP]
    states = {name: torch.zeros_like(t) for name, t in step.inputs.items() if name != LATENT}
    made = []

    def run(spec: GraphSpec, z: Tensor) -> Tensor:
        named = dict(
            zip(spec.outputs, spec.module(*[{**states, LATENT: z}[name] for name in spec.inputs]), strict=True)
        )
        frames = named.pop(FRAMES)
        assert frames.shape[0] == len(z)
        states.update({name.removesuffix("_next"): t for name, t in named.items()})
        return frames.flatten(0, 1)

    for number, z in enumerate(z_FCHW.split(chunks)):
        if number == 0 and FIRST in specs:
            made.append(run(specs[FIRST], z[:1]))
            z = z[1:]
        if len(z):
            made.append(run(step, z)[3 if number == 0 and FIRST not in specs else 0 :])
    return torch.cat(made)


@pytest.mark.parametrize("name", MADE)
@torch.no_grad()
def test_a_stream_in_uneven_chunks_is_the_whole_shot(name: str) -> None:
    decoder = MADE[name]()
    specs = _specs(decoder)
    z = decoders.latents(latent_channels(decoder))
    whole = decoder.decode(z)[0]
    for chunks in decoders.UNEVEN:
        made = _played(specs, z[0], chunks)
        assert made.shape == whole.shape
        torch.testing.assert_close(made, whole, rtol=0, atol=BOUND)


@pytest.mark.parametrize(("name", "count"), [("tiny-vae", 4), ("taehv", 9), ("wan-vae", 32)])
def test_every_state_is_an_input_of_the_step_and_changes(name: str, count: int) -> None:
    decoder = MADE[name]()
    spec = _specs(decoder)[STEP]
    states = [port for port in spec.inputs if port != LATENT]
    assert len(states) == count
    assert spec.outputs == [FRAMES, *(f"{state}_next" for state in states)]
    with torch.no_grad():
        _, *left = spec.module(*spec.inputs.values())
    for state, after in zip(states, left, strict=True):
        assert after.shape == spec.inputs[state].shape
        assert not torch.equal(after, spec.inputs[state])


@pytest.mark.parametrize("name", MADE)
@torch.no_grad()
def test_every_state_is_seen(name: str) -> None:
    """A graph that left one out would pass where that state is small."""
    spec = _specs(MADE[name]())[STEP]
    quiet = {port: 0.1 * t if port == LATENT else torch.zeros_like(t) for port, t in spec.inputs.items()}
    usual = spec.module(*quiet.values())[0]
    for state in spec.inputs:
        if state != LATENT:
            other = spec.module(*{**quiet, state: spec.inputs[state]}.values())[0]
            assert (other - usual).abs().max() > 1e-4, state


def test_the_first_graph_of_the_wan_vae_leaves_the_two_frame_doublers_alone() -> None:
    specs = _specs(decoders.wan_vae())
    missing = set(specs[STEP].outputs) - set(specs[FIRST].outputs)
    assert missing == {"state_11_next", "state_18_next"}


@pytest.mark.parametrize("name", MADE)
@torch.no_grad()
def test_graphs_keep_the_number_format_of_the_weights(name: str) -> None:
    specs = _specs(MADE[name](), torch.bfloat16)
    for spec in specs.values():
        made = spec.module(*spec.inputs.values())
        assert {t.dtype for t in [*spec.inputs.values(), *made]} == {torch.bfloat16}


def test_a_decoder_of_somebody_else_is_refused() -> None:
    with pytest.raises(UserError, match="tiny-vae, taehv, wan-vae can"):
        decoder_specs(torch.nn.Linear(2, 2), (2, 4))
