"""Passes of the whole-step graph: attention is the executing engine's own, keys and values are ours to keep.

Each span of a pass is one call, so a joined pass is two. The graph is given what the span sees beside itself, a view of
the caches unless the span overwrites slots in the middle of the ring, and its new keys and values are then stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shotstream.export.graphs.step import STEP
from shotstream.export.graphs.step_in_place import CONTEXT_IN_PLACE, STEP_IN_PLACE
from shotstream.export.segments.cut import TEXT, SegmentRunner
from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.engine import GraphEngine, GraphOptions
from shotstream.runtime.graph.ops import CacheWriter
from shotstream.runtime.graph.passes import PassInput, Span
from shotstream.runtime.model.transformer import TextKV, sinusoid
from shotstream.runtime.plugins import EngineRequest


def in_place_engine(request: EngineRequest, runner: SegmentRunner, *, capture: bool) -> GraphEngine:
    """An engine whose runner executes the graphs `step_in_place`, `context_in_place` and `text_ctx`."""
    parts = request.parts
    passes = NativeInPlace(parts.config, runner, parts.latent_shape[1:])
    return GraphEngine(request, GraphOptions(fp8="none", capture=capture), passes)


def native_engine(request: EngineRequest, runner: SegmentRunner) -> GraphEngine:
    """An engine whose runner executes the graphs `step` and `text_ctx`. Nothing of it is captured: the numbers of
    cached tokens are the host's.
    """
    parts = request.parts
    passes = NativeStep(parts.config, runner, parts.latent_shape[1:])
    return GraphEngine(request, GraphOptions(fp8="none", capture=False), passes)


class NativeStep:
    """Runs passes as `runtime.graph.passes.PassRunner` says."""

    heads_first = False

    def __init__(self, config: DiTConfig, runner: SegmentRunner, latent_size: tuple[int, int]) -> None:
        self.config = config
        self.runner = runner
        self.tokens_per_frame = config.tokens_per_frame(*latent_size)

    def embed_captions(self, text_NLE: Tensor) -> TextKV:
        """``[N, text_len, text_dim]`` to each layer's text keys and values, ``[N, text_len, heads, head_dim]``."""
        made = [part.clone() for part in self.runner(TEXT, (text_NLE,))]
        return list(zip(made[0::2], made[1::2], strict=True))

    def __call__(self, given: PassInput) -> Tensor | None:
        """The flow ``[1, F', C, H, W]`` of the frames that are not only remembered; None if all are.

        Raises UserError for eight-bit caches.
        """
        if given.writers[0].k_scale_H is not None:
            raise UserError("the whole-step graph reads keys and values in the model's dtype; choose fp8 none")
        flows, begin = [], 0
        for span in given.spans:
            flow_FCHW = self._call(given, span, begin)
            flows.append(flow_FCHW[max(given.remembered - begin, 0) :].clone())
            begin += span.frames
        return None if given.remembered == begin else torch.cat(flows)[None]

    def _call(self, given: PassInput, span: Span, begin: int) -> Tensor:
        """Flow ``[F, C, H, W]`` of a span, which begins with frame `begin` of the pass."""
        tokens = self.tokens_per_frame
        slots = _slots(given.writers[0], begin * tokens, (begin + span.frames) * tokens)
        layers = [
            part
            for text_kv, writer in zip(given.text_kv, given.writers, strict=True)
            for part in (
                *text_kv,
                _others(writer.k_BSHK, slots, span.filled),
                _others(writer.v_BSHK, slots, span.filled),
            )
        ]
        flow_FCHW, *new = self.runner(STEP, (*self._frames(given, span, begin), *layers))
        for layer, writer in enumerate(given.writers):
            writer.k_BSHK[0, slots].copy_(new[2 * layer])
            writer.v_BSHK[0, slots].copy_(new[2 * layer + 1])
        return flow_FCHW

    def _frames(self, given: PassInput, span: Span, begin: int) -> tuple[Tensor, ...]:
        """What the graphs read of a span's frames and not of a layer: `graphs.step.COMMON`."""
        tokens, end = self.tokens_per_frame, begin + span.frames
        time_FW = sinusoid(given.t_BF[0, begin:end], self.config.freq_dim).float()
        table = [part[0, begin * tokens : end * tokens, 0] for part in given.table]
        if given.caption_index_F is None:
            caption_F = torch.zeros(span.frames, dtype=torch.int64, device=given.z_BFCHW.device)
        else:
            caption_F = given.caption_index_F[begin:end]
        return (given.z_BFCHW[0, begin:end], time_FW, *table, caption_F)


class NativeInPlace(NativeStep):
    """The same with graphs that write the caches themselves: `step_in_place` for chunks, `context_in_place` for the
    context pass. What changes from call to call lies in device memory.
    """

    heads_first = True

    def _call(self, given: PassInput, span: Span, begin: int) -> Tensor:
        chunk = span.frames == self.config.chunk_frames
        name, captions = (STEP_IN_PLACE, 1) if chunk else (CONTEXT_IN_PLACE, span.frames)
        caches = [buffer.transpose(1, 2) for each in given.writers for buffer in (each.k_BSHK, each.v_BSHK)]
        layers = []
        for layer, text_kv in enumerate(given.text_kv):
            layers += [*(_padded(part, captions) for part in text_kv), *caches[2 * layer : 2 * layer + 2]]
        slot_1 = _wrapped(given.writers[0], begin * self.tokens_per_frame)
        flow_FCHW, *left = self.runner(name, (*self._frames(given, span, begin), slot_1, span.length_1, *layers))
        for cache, after in zip(caches, left, strict=True):
            if after.data_ptr() != cache.data_ptr():  # an executor that does not bind both to one address
                cache.copy_(after)
        return flow_FCHW


def _padded(text_NLHK: Tensor, captions: int) -> Tensor:
    """As many captions as the graph takes; what is added nobody reads."""
    count = len(text_NLHK)
    if count == captions:
        return text_NLHK
    return torch.cat([text_NLHK, text_NLHK[-1:].expand(captions - count, -1, -1, -1)])


def _wrapped(writer: CacheWriter, tokens: int) -> Tensor:
    """Slot of the token that is so many behind a pass's first, int32 ``[1]``, found on the device."""
    slot, capacity = writer.start_1 + tokens, writer.k_BSHK.shape[1]
    if writer.ring_begin is None:
        return slot
    return torch.where(slot < capacity, slot, writer.ring_begin + (slot - capacity) % (capacity - writer.ring_begin))


def _slots(writer: CacheWriter, begin: int, end: int) -> slice:
    """Where tokens `begin` to `end` of a pass are stored. The engine's chunks never lie across the ring's seam."""
    capacity, first = writer.k_BSHK.shape[1], int(writer.start_1) + begin
    if first >= capacity and writer.ring_begin is not None:
        first = writer.ring_begin + (first - capacity) % (capacity - writer.ring_begin)
    slots = slice(first, first + end - begin)
    if slots.stop > capacity:
        raise ValueError(f"tokens for slots {slots.start} to {slots.stop} do not fit a cache of {capacity}")
    return slots


def _others(buffer_BSHK: Tensor, slots: slice, visible: int) -> Tensor:
    """The first `visible` slots without some of them, ``[S', heads, head_dim]``."""
    before, behind = buffer_BSHK[0, : slots.start], buffer_BSHK[0, slots.stop : visible]
    return torch.cat([before, behind]) if len(behind) else before
