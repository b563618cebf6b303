"""The engine `graph`: fixed addresses, fused operations, and on a GPU one captured graph per kind of step.

Four launches of work per chunk instead of five: a chunk's clean pass is joined with the first step of the chunk after
it, whose tokens see the clean keys and values since every layer writes before it attends. What differs from chunk to
chunk lies in device memory, so the same graphs serve them all. On a CPU the same code runs without graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shotstream.runtime.engine import ShotContext, stack_captions
from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.calibrate import head_scales
from shotstream.runtime.graph.ops import DeviceNoise, TorchOps
from shotstream.runtime.graph.passes import FusedTransformer, PassInput, PassRunner, Span
from shotstream.runtime.graph.state import GraphState, HeadScales, Place
from shotstream.runtime.model.attention import reads_device_length, sdpa
from shotstream.runtime.model.rope import rope_table
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import TextKV
from shotstream.runtime.plugins import EngineRequest

FP8_CHOICES = ("none", "cache", "linears", "all")


@dataclass(frozen=True)
class GraphOptions:
    """fp8: what runs in eight bits: nothing, keys and values, the blocks' products, or both. capture: False runs the
    same work without graphs. exact_blocks: how many blocks at either end keep their products in the model's dtype.
    """

    fp8: str = "none"
    capture: bool = True
    exact_blocks: int = 1

    def __post_init__(self) -> None:
        if self.fp8 not in FP8_CHOICES:
            raise UserError(f"fp8 is one of {', '.join(FP8_CHOICES)}, not {self.fp8!r}")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> GraphOptions:
        """From an engine's options; UserError for unknown ones."""
        known = cls.__dataclass_fields__
        if unknown := sorted(set(options) - set(known)):
            raise UserError(f"the engine 'graph' has no option {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**options)


class GraphEngine:
    """Executes shots as `runtime.engine.Engine` says, for one clip at a time."""

    def __init__(
        self, request: EngineRequest, options: GraphOptions | None = None, passes: PassRunner | None = None
    ) -> None:
        """options: instead of those of the request. passes: another way of running the transformer, for engines that
        differ in nothing else.
        """
        parts, options = request.parts, options or GraphOptions.of(request.options)
        self.config = parts.config
        self.device, self.dtype = request.device, request.dtype
        self.options = options
        self.latent_shape = parts.latent_shape
        self.ops = request.ops or TorchOps()
        self.attention = request.attention or sdpa
        self.model: Any = parts.transformer
        self.passes: PassRunner = passes or self._fused(options)
        self.schedule = NoiseSchedule(self.config.shift, self.device)
        self.steps = self.schedule.warp(self.config.nominal_steps)
        self.sigmas = self.schedule.sigma_of(self.steps)
        self._scales: HeadScales | None = None
        if options.fp8 in ("cache", "all"):
            self._scales = head_scales(self.passes, self.latent_shape, self.device, self.dtype)
        self._any_length = self.passes.heads_first or reads_device_length(self.attention, self._scales is not None)

    def _fused(self, options: GraphOptions) -> FusedTransformer:
        layers, ends = self.config.layers, options.exact_blocks
        linears = options.fp8 in ("linears", "all")
        eight_bit = [linears and ends <= layer < layers - ends for layer in range(layers)]
        return FusedTransformer(self.model, self.ops, self.attention, self.latent_shape[1:], eight_bit)

    # -------------------------------------------------------------------------------- as every engine
    def new_state(self) -> GraphState:
        """Caches and fixed addresses of one session."""
        return GraphState.empty(
            self.config,
            self.latent_shape,
            self.device,
            self.dtype,
            self._scales,
            capture=self.options.capture,
            heads_first=self.passes.heads_first,
        )

    def embed_caption(self, text_1LE: Tensor) -> TextKV:
        """Text keys and values of one caption, per layer."""
        return self.passes.embed_captions(text_1LE.to(self.device, self.dtype))

    def begin_shot(self, state: GraphState, context: ShotContext, caption: TextKV) -> None:
        """Context pass: each context frame reads its own shot's caption, and the frames see one another only."""
        state.cache.dropped = 0
        state.clean_frame = None
        frames = self.config.context_frames
        state.before.put(state.cache.context(), 0)
        table = self._context_table(context.flags)
        several = len(context.captions) > 1
        self.passes(
            PassInput(
                z_BFCHW=context.latents_FCHW[None].to(self.device, self.dtype),
                t_BF=torch.zeros(1, frames, device=self.device),
                table=table,
                writers=state.writers(state.before.start_1),
                spans=[Span(frames, state.before.length_1, state.before.filled)],
                text_kv=stack_captions(context.captions),
                caption_index_F=self._upload(context.caption_index) if several else None,
                remembered=frames,
            )
        )
        state.flag_1.fill_(context.flags[-1] + 1)
        self._read(state, caption)

    def denoise(
        self, state: GraphState, start_frame: int, noise_BFCHW: Tensor, renoise: Callable[[int], Tensor]
    ) -> Tensor:
        """Denoising steps of one chunk."""
        self.start(state, start_frame, noise_BFCHW)
        return self.finish(state, renoise)

    def clean(self, state: GraphState, start_frame: int, x0_BFCHW: Tensor) -> None:
        """Remember the chunk for the next one's first step, or store it now where that step will overwrite keys."""
        state.clean.copy_(x0_BFCHW)
        if self._fits(state, start_frame + self.config.chunk_frames):
            state.clean_frame = start_frame
        else:
            self._store_clean(state, start_frame)

    def recaption(
        self, state: GraphState, context: ShotContext | None, caption: TextKV, past: Sequence[tuple[int, Tensor]]
    ) -> None:
        """The context pass if need be, and a clean pass per chunk."""
        if context is not None:
            self.begin_shot(state, context, caption)
        self._read(state, caption)
        sink = self.config.sink_frames
        state.cache.dropped = next((start - sink for start, _ in past if start >= sink), 0)
        for start_frame, x0_BFCHW in past:
            state.clean.copy_(x0_BFCHW)
            self._store_clean(state, start_frame)

    # -------------------------------------------------------------------------------- a chunk in two parts
    def start(self, state: GraphState, start_frame: int, noise_BFCHW: Tensor) -> None:
        """Queue up the chunk's first step, with the clean pass of the chunk before if that is still to be done.

        It may be started again before it was finished, with the same result.
        """
        chunk = self.config.chunk_frames
        state.noise.copy_(noise_BFCHW)
        state.step_1.zero_()
        self._put(state.now, state, start_frame)
        if state.clean_frame is not None and state.clean_frame + chunk == start_frame:
            self._put(state.before, state, state.clean_frame)
            self._run(state, "joined", self._joined_step, state.before, state.now)
        else:
            self._run(state, "first", self._first_step, state.now)

    def finish(self, state: GraphState, renoise: Callable[[int], Tensor]) -> Tensor:
        """Queue up the other steps and return the chunk's clean latents."""
        for i in range(len(self.steps) - 1):
            state.noise.copy_(renoise(i))
            self._run(state, "step", self._next_step, state.now)
        return state.x0.clone()

    def prepare(self, state: GraphState) -> None:
        """Compile and capture all that a chunk can need, so that no chunk waits for it. The state must be fresh."""
        noise = torch.zeros_like(state.noise)
        if isinstance(self.ops, DeviceNoise):
            self.ops.draw(noise, seed=0, shot=0, chunk=0, step=0)
        for _ in range(2):  # the first run is plain, the second captures
            for start in range(0, self.config.local_frames, self.config.chunk_frames):
                state.clean_frame = None
                self.denoise(state, start, noise, lambda _: noise)
                if start and self._fits(state, start):
                    state.clean_frame = start - self.config.chunk_frames
                    self.start(state, start, noise)
                if self._any_length and start:
                    break
            self._store_clean(state, start)
        state.clean_frame = None

    # -------------------------------------------------------------------------------- what is captured
    def _first_step(self, state: GraphState) -> None:
        table = state.turn(state.now, slice(1, 2))
        x = state.noise
        flow = self._flow(state, x, self._at(self.steps, state), table)
        self._predict(state, x, flow)

    def _next_step(self, state: GraphState) -> None:
        sigma = self._at(self.sigmas, state)
        x = ((1 - sigma) * state.x0 + sigma * state.noise).to(self.dtype)
        flow = self._flow(state, x, self._at(self.steps, state), state.table_of(slice(1, 2)))
        self._predict(state, x, flow)

    def _joined_step(self, state: GraphState) -> None:
        """First step of this chunk and clean pass of the one before, which leaves only its keys and values."""
        chunk = self.config.chunk_frames
        t = self._at(self.steps, state).expand(1, chunk)
        flow = self.passes(
            PassInput(
                z_BFCHW=torch.cat([state.clean, state.noise], dim=1),
                t_BF=torch.cat([torch.full_like(t, self.config.context_noise), t], dim=1),
                table=state.turn(state.before, slice(0, 2)),
                writers=state.writers(state.before.start_1),
                spans=[_span(chunk, state.before), _span(chunk, state.now)],
                text_kv=state.text,
                remembered=chunk,
            )
        )
        assert flow is not None
        self._predict(state, state.noise, flow)

    def _clean_pass(self, state: GraphState) -> None:
        chunk = self.config.chunk_frames
        self.passes(
            PassInput(
                z_BFCHW=state.clean,
                t_BF=torch.full((1, chunk), self.config.context_noise, device=self.device),
                table=state.turn(state.before, slice(0, 1)),
                writers=state.writers(state.before.start_1),
                spans=[_span(chunk, state.before)],
                text_kv=state.text,
                remembered=chunk,
            )
        )

    def _flow(self, state: GraphState, x_BFCHW: Tensor, t_1: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        chunk = self.config.chunk_frames
        flow = self.passes(
            PassInput(
                z_BFCHW=x_BFCHW,
                t_BF=t_1.expand(1, chunk),
                table=table,
                writers=state.writers(state.now.start_1),
                spans=[_span(chunk, state.now)],
                text_kv=state.text,
            )
        )
        assert flow is not None
        return flow

    def _predict(self, state: GraphState, x: Tensor, flow: Tensor) -> None:
        """Clean prediction in float64, as the schedule's; then on to the next step."""
        sigma = self._at(self.sigmas, state).double()
        state.x0.copy_(x.double() - sigma * flow.double())
        state.step_1.add_(1)

    # -------------------------------------------------------------------------------- small things
    def _run(self, state: GraphState, kind: str, body: Callable[[GraphState], None], *places: Place) -> None:
        """Run a body; where attention has to be told lengths by the host, each fill level is a graph of its own."""
        lengths = () if self._any_length else tuple(place.filled for place in places)
        state.recorder.run((kind, *lengths), lambda: body(state))

    def _put(self, place: Place, state: GraphState, start_frame: int) -> None:
        place.put(state.cache.chunk(start_frame), self.config.context_frames + start_frame)

    def _store_clean(self, state: GraphState, start_frame: int) -> None:
        state.clean_frame = None
        self._put(state.before, state, start_frame)
        self._run(state, "clean", self._clean_pass, state.before)

    def _fits(self, state: GraphState, start_frame: int) -> bool:
        """Whether a chunk finds free slots behind the ones before it, so that these may be stored along with it."""
        held = start_frame - (state.cache.dropped if start_frame >= self.config.sink_frames else 0)
        return held + self.config.chunk_frames <= self.config.local_frames

    def _read(self, state: GraphState, caption: TextKV) -> None:
        for held, given in zip(state.text, caption, strict=True):
            for to, values in zip(held, given, strict=True):
                to.copy_(values)

    def _context_table(self, flags: Sequence[int]) -> tuple[Tensor, Tensor]:
        height, width = (s // p for s, p in zip(self.latent_shape[1:], self.config.patch[1:], strict=True))
        positions = torch.arange(len(flags), device=self.device)[None]
        return rope_table(positions, self._upload(flags)[None], height, width, self.config.head_dim, self.config.jump)

    def _upload(self, numbers: Sequence[int]) -> Tensor:
        """Whole numbers on the device, without waiting for it."""
        host = torch.tensor(list(numbers))
        return (host.pin_memory() if self.device.type == "cuda" else host).to(self.device, non_blocking=True)

    @staticmethod
    def _at(values: Tensor, state: GraphState) -> Tensor:
        """The value of the current step, ``[1]``; which one that is only the device knows."""
        return values.index_select(0, state.step_1)


def _span(frames: int, place: Place) -> Span:
    return Span(frames, place.length_1, place.filled)
