"""Engines: the only place that knows how the steps of a shot are executed. They know tensors and caches, no captions.

An engine serves any number of sessions; what belongs to one session is its `ShotState`, allocated once and reused from
shot to shot. `EagerEngine` calls the torch model directly; engines of other rooms implement the same calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.cache import DualCache
from shotstream.runtime.model.rollout import ShotConditions, clean_pass, context_pass, denoise_chunk
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import TextKV
from shotstream.runtime.plugins import EngineRequest


@dataclass(frozen=True)
class ShotContext:
    """What a shot starts from.

    latents_FCHW: the context frames. flags: the shot number of each. captions: the distinct captions of the context
    frames, embedded (one `TextKV` with N = 1 each). caption_index: which of these each frame reads.
    """

    latents_FCHW: Tensor
    flags: Sequence[int]
    captions: Sequence[TextKV]
    caption_index: Sequence[int]


class Engine(Protocol):
    """Executes a shot: `begin_shot`, then `denoise` for every chunk, with `clean` between a chunk and the next.

    `recaption` takes the place of a `clean` when the caption has changed meanwhile.
    """

    config: DiTConfig

    def new_state(self) -> Any:
        """Allocate what one session needs (caches); reused for all its shots."""
        ...

    def embed_caption(self, text_1LE: Tensor) -> Any:
        """Turn one caption's encoder rows [1, text_len, text_dim] into what cross-attention reads."""
        ...

    def begin_shot(self, state: Any, context: ShotContext, caption: Any) -> None:
        """Run the context pass; the shot's own caption and flag (last context flag + 1) hold for all its chunks."""
        ...

    def denoise(self, state: Any, start_frame: int, noise_BFCHW: Tensor, renoise: Callable[[int], Tensor]) -> Tensor:
        """Return the clean latents of the chunk at latent frame `start_frame` of the shot.

        The tensor is not written to afterwards: the caller keeps it. `renoise(i)` is the fresh noise after step i
        (0-based); it is called once per step but the last, in order, after the step was started. It raises to abandon
        the chunk: let that through. The state may hold anything in this chunk's place then, nothing else may differ.
        """
        ...

    def clean(self, state: Any, start_frame: int, x0_BFCHW: Tensor) -> None:
        """Store the chunk's keys and values for the chunks after it; needless after a shot's last chunk.

        x0_BFCHW: its latents as they are remembered, with noise where the model has `context_noise`.
        """
        ...

    def prepare(self, state: Any) -> None:
        """Do what the first chunks would otherwise wait for: compile, capture. The state must be fresh."""
        ...

    def recaption(
        self, state: Any, context: ShotContext | None, caption: Any, past: Sequence[tuple[int, Tensor]]
    ) -> None:
        """Let the running shot follow another caption: what is cached is made anew, as if it had been so all along.

        past: (start_frame, clean latents) of the chunks whose keys and values the local cache is to hold, in order;
        each sees those before it, and the newest need not have had its `clean`. context: what the global cache is made
        from; None: it stays as it is, since its frames read captions of their own.
        """
        ...


@runtime_checkable
class StepwiseEngine(Protocol):
    """An engine whose `denoise` is `start` and then `finish`, so that other work fits in between.

    Work on a GPU is only queued up by both. A chunk that was started may be started again; `clean` of the chunk before
    comes before its `start`.
    """

    def start(self, state: Any, start_frame: int, noise_BFCHW: Tensor) -> None:
        """Begin the chunk at a latent frame: its first denoising step."""
        ...

    def finish(self, state: Any, renoise: Callable[[int], Tensor]) -> Tensor:
        """The other steps; arguments and result as of `denoise`."""
        ...

    def clean(self, state: Any, start_frame: int, x0_BFCHW: Tensor) -> None:
        """As every engine's."""
        ...


@dataclass
class ShotState:
    """A session's part of the eager engine: its caches, and the conditions of the running shot."""

    cache: DualCache
    conditions: ShotConditions | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the caches."""
        return self.cache.nbytes


class EagerEngine:
    """Runs the torch model step by step, on any device and for any configuration."""

    def __init__(self, request: EngineRequest) -> None:
        if request.options:
            raise UserError(f"the engine 'eager' has no options, and was given {', '.join(request.options)}")
        parts = request.parts
        self.config = parts.config
        self.device = request.device
        self.dtype = request.dtype
        self.model: Any = parts.transformer
        _, height, width = parts.latent_shape
        self.tokens_per_frame = self.config.tokens_per_frame(height, width)
        self.schedule = NoiseSchedule(self.config.shift, self.device)
        self.steps = self.schedule.warp(self.config.nominal_steps)
        if request.attention is not None:
            blocks: Any = parts.transformer.blocks
            for block in blocks:
                block.attention = request.attention

    def new_state(self) -> ShotState:
        """Caches of one session: 27 frames of keys and values per layer."""
        return ShotState(DualCache(self.config, self.tokens_per_frame, self.device, self.dtype))

    def prepare(self, state: ShotState) -> None:
        """Nothing: torch prepares itself as it goes."""

    def embed_caption(self, text_1LE: Tensor) -> TextKV:
        """Text keys and values of one caption, per layer."""
        return self.model.embed_captions(text_1LE.to(self.device, self.dtype))

    def begin_shot(self, state: ShotState, context: ShotContext, caption: TextKV) -> None:
        """Context pass: each context frame reads its own shot's caption."""
        state.cache.dropped = 0
        device = self.device
        several = len(context.captions) > 1
        index = torch.tensor([list(context.caption_index)], device=device) if several else None
        flags = torch.tensor([list(context.flags)], device=device)
        past = ShotConditions(stack_captions(context.captions), index, None, flags, None)
        z_BFCHW = context.latents_FCHW[None].to(device, self.dtype)
        context_pass(self.model, z_BFCHW, past, state.cache.context())
        # The target reads one caption only, so its passes need no index (4.3) and no copy of the others' text.
        state.conditions = ShotConditions(caption, None, None, None, flags[:, -1] + 1)

    def denoise(
        self, state: ShotState, start_frame: int, noise_BFCHW: Tensor, renoise: Callable[[int], Tensor]
    ) -> Tensor:
        """Denoising steps of one chunk."""
        assert state.conditions is not None, "begin_shot comes first"
        keys = state.cache.chunk(start_frame)
        return denoise_chunk(
            self.model, self.schedule, self.steps, noise_BFCHW, renoise, start_frame, state.conditions, keys
        )

    def clean(self, state: ShotState, start_frame: int, x0_BFCHW: Tensor) -> None:
        """Clean pass of one chunk, without noise."""
        assert state.conditions is not None, "begin_shot comes first"
        keys = state.cache.chunk(start_frame)
        clean_pass(self.model, x0_BFCHW, start_frame, state.conditions, keys)

    def recaption(
        self, state: ShotState, context: ShotContext | None, caption: TextKV, past: Sequence[tuple[int, Tensor]]
    ) -> None:
        """The context pass if need be, and a clean pass per chunk."""
        assert state.conditions is not None, "begin_shot comes first"
        if context is not None:
            self.begin_shot(state, context, caption)
        state.conditions = replace(state.conditions, text_kv=caption)
        # In a shot longer than the local cache, the oldest chunk left stands first and no longer sees what it saw.
        sink = self.config.sink_frames
        state.cache.dropped = next((start - sink for start, _ in past if start >= sink), 0)
        for start_frame, x0_BFCHW in past:
            self.clean(state, start_frame, x0_BFCHW)


def stack_captions(captions: Sequence[TextKV]) -> TextKV:
    """Several captions' keys and values as one, ``[N, text_len, heads, head_dim]`` per layer."""
    if len(captions) == 1:
        return captions[0]
    return [
        (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in zip(*captions, strict=True)
    ]
