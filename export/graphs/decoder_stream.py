"""What streaming decoders have in common as graphs: latents and state in, frames and state out.

A graph takes ``latent [F, C, h, w]`` as the transformer makes it and the states ``state_0`` ..., and gives ``frames
[F, 4, 3, H, W]`` in [-1, 1], those of a latent together, and ``state_0_next`` .... A shot begins with zeros in every
state; a state that a graph does not give stays what it was. No state's shape depends on F.

There is always a graph `decoder_step`. If there is a `decoder_first` too, it is for a shot's first latent, from which
it makes one frame; otherwise that latent goes through the step like others, and three of its four frames are dropped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from shotstream.export.graphs.spec import GraphSpec
from shotstream.runtime.decoders.common import TIME_FACTOR

FIRST, STEP = "decoder_first", "decoder_step"
LATENT, FRAMES = "latent", "frames"
NEXT = "_next"
"""How the name of an output ends that replaces a state."""
FREE = "latents"
"""Name of the free dimension: latent frames at once."""
_EXAMPLE_LATENTS = 2


def state_name(number: int) -> str:
    """Name of a state's input."""
    return f"state_{number}"


def next_name(number: int) -> str:
    """Name of the output that replaces a state."""
    return f"{state_name(number)}{NEXT}"


class Memory:
    """What layers saw before, read and renewed in the order in which they run. Nothing given: zeros."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        self._given = given
        self.left: dict[int, Tensor] = {}
        """What they saw last, by number of the layer."""
        self._number = 0

    def behind(self, x: Tensor, frames: int, axis: int) -> Tensor:
        """`x` with the given number of earlier frames ahead of it; time is `axis`."""
        if self._given:
            seen = torch.cat([self._given[self._number], x], dim=axis)
        else:
            seen = F.pad(x, [*[0, 0] * (x.ndim - 1 - axis), frames, 0])
        self.left[self._number] = seen[(*[slice(None)] * axis, slice(-frames, None))]
        self._number += 1
        return seen

    def skip(self) -> None:
        """The next layer that remembers does not run."""
        self._number += 1


class StreamGraph(nn.Module, ABC):
    """A decoder's pass over the next latents of one clip."""

    frames_per_latent = TIME_FACTOR

    @abstractmethod
    def decode(self, latent_FCHW: Tensor, memory: Memory) -> Tensor:
        """Frames ``[frames_per_latent F, 3, H, W]`` in [-1, 1]."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Latents and states to frames and the states that have changed."""
        latent, *state = inputs
        memory = Memory(state)
        frames = self.decode(latent, memory).unflatten(0, (-1, self.frames_per_latent))
        return frames, *memory.left.values()


def stream_spec(
    module: StreamGraph, latent_shape: tuple[int, int, int], dtype: torch.dtype, most_latents: int
) -> GraphSpec:
    """A graph with its states as inputs and 1 to `most_latents` latents at once."""
    left, generator = changes(module, latent_shape, dtype), torch.Generator().manual_seed(0)
    inputs = {LATENT: torch.randn(_EXAMPLE_LATENTS, *latent_shape, generator=generator).to(dtype)}
    for number, state in left.items():
        inputs[state_name(number)] = torch.empty(state.shape, dtype=dtype).normal_(generator=generator)
    return GraphSpec(module, inputs, _outputs(left), {LATENT: {0: FREE}}, {FREE: (1, most_latents)})


def start_spec(module: StreamGraph, latent_shape: tuple[int, int, int], dtype: torch.dtype) -> GraphSpec:
    """A graph of a shot's first latent alone, without states as inputs."""
    latent = torch.randn(1, *latent_shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return GraphSpec(module, {LATENT: latent}, _outputs(changes(module, latent_shape, dtype)), {}, {})


def changes(module: StreamGraph, latent_shape: tuple[int, int, int], dtype: torch.dtype) -> dict[int, Tensor]:
    """States that a pass leaves, by number, as fake tensors: nothing is computed."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        memory = Memory(())
        module.decode(torch.empty(1, *latent_shape, dtype=dtype), memory)
    return memory.left


def _outputs(left: dict[int, Tensor]) -> list[str]:
    return [FRAMES, *map(next_name, left)]
