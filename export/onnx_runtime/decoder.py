"""A decoder of the runtime whose pixels come from ONNX Runtime; context frames are encoded by the decoder in torch.

The graphs are exported when the first latents show how large they are, once, into the user's cache folder; the one of
`tiny` in eight bits comes with the package.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shotstream.export.compact.loading import DoesNotFit, decoder_runner, read_compact, shipped
from shotstream.export.exporting import cache_folder, export_graphs, versions_of
from shotstream.export.graphs.decoder_stream import FIRST, FRAMES, LATENT, NEXT, STEP
from shotstream.export.graphs.decoders import decoder_name, decoder_specs, latent_channels
from shotstream.export.graphs.spec import OPSET
from shotstream.export.manifest import Port, Source
from shotstream.export.onnx_runtime.int8 import INT8, eight_bit_source
from shotstream.export.onnx_runtime.int8_decoder import quantise_decoder
from shotstream.export.onnx_runtime.runner import OnnxRunner, SessionRunner, SessionSettings, check_provider
from shotstream.runtime.decoders.common import TIME_FACTOR, check_latents
from shotstream.runtime.decoders.steady import Steady
from shotstream.runtime.errors import UserError
from shotstream.runtime.optional import require
from shotstream.runtime.plugins import ModelRequest
from shotstream.runtime.presets import TINY_LATENT, hash_weights, load_tiny_vae

log = logging.getLogger(__name__)

_PRECISIONS = {torch.float32: "float32", torch.float16: "float16"}
_INT8_NEEDS = (torch.float32, "cpu")


@dataclass
class OnnxStream:
    """A shot being decoded: of every clip its states by name, and the last latents shown where noise is reduced."""

    batch: int
    size: tuple[int, int] | None = None
    """Height and width of its latents; until the first ones come there are no states."""
    states: list[dict[str, Tensor]] = field(default_factory=list)
    shown_BCHW: Tensor | None = None


class OnnxDecoder:
    """`plugins.Decoder` around a decoder in torch, on its device; one set of graphs for every size of latents met."""

    def __init__(self, decoder: Any, cache: Path, threads: int | None = None, precision: str | None = None) -> None:
        """cache: where exports lie; threads: of ONNX Runtime, None: as many as torch has; precision: None, that of the
        weights, or int8 on a CPU.

        UserError: no ONNX Runtime, a decoder without graphs, or weights in a format that it does not compute in.
        """
        self.torch = decoder
        self.name = decoder_name(decoder)
        self.latent_channels = latent_channels(decoder)
        weight = next(decoder.parameters())
        self.dtype: torch.dtype = weight.dtype
        if self.dtype not in _PRECISIONS:
            given = str(self.dtype).removeprefix("torch.")
            raise UserError(f"decoders on ONNX Runtime compute in float32 or float16, not in {given}; give --dtype")
        if precision not in (None, INT8) or (precision == INT8 and (self.dtype, weight.device.type) != _INT8_NEEDS):
            raise UserError("the precision of a decoder on ONNX Runtime is its weights', or int8 for float32 on a CPU")
        self._precision = precision
        self._cache = cache
        self._settings = SessionSettings(weight.device, threads, weight.device.type)
        check_provider(require("onnxruntime", "a decoder on ONNX Runtime", "export"), self._settings)
        steady = getattr(getattr(decoder, "config", None), "steady", None)
        self._steady = None if steady is None else Steady(*steady)
        self._graphs: dict[tuple[int, int], _Graphs] = {}

    def new_stream(self, batch: int = 1) -> OnnxStream:
        """The empty memory of a new shot; its clips are decoded one after another."""
        if batch < 1:
            raise UserError(f"a stream needs at least one clip, not {batch}")
        return OnnxStream(batch)

    @torch.no_grad()
    def decode_chunk(self, z_BFCHW: Tensor, stream: OnnxStream) -> Tensor:
        """The next latents of a shot to pixels ``[B, f, 3, H, W]``: f = 4F - 3 at the shot's start, 4F later.

        In [-1, 1] and the weights' dtype. UserError for latents of another model; ValueError for another number of
        clips, or another size, than the stream's.
        """
        check_latents(z_BFCHW, self.latent_channels, self.name)
        size = (z_BFCHW.shape[-2], z_BFCHW.shape[-1])
        if (z_BFCHW.shape[0], size) != (stream.batch, stream.size or size):
            raise ValueError(
                f"the stream decodes {stream.batch} clips of {stream.size}, not {z_BFCHW.shape[0]} of {size}"
            )
        if self._steady is not None:
            z_BFCHW = self._steady(z_BFCHW, stream.shown_BCHW)
            stream.shown_BCHW = z_BFCHW[:, -1].clone()
        graphs, starts = self._graphs_of(size), stream.size is None
        if starts:
            stream.size, stream.states = size, [graphs.new_state() for _ in range(stream.batch)]
        clips = zip(z_BFCHW.to(self.dtype).contiguous(), stream.states, strict=True)
        return torch.stack([graphs.decode(z_FCHW, state, starts) for z_FCHW, state in clips])

    def decode(self, z_BFCHW: Tensor) -> Tensor:
        """A whole shot to pixels ``[B, 1 + 4(F - 1), 3, H, W]``: one stream, one chunk."""
        return self.decode_chunk(z_BFCHW, self.new_stream(z_BFCHW.shape[0]))

    def encode_frames(self, frames_NCHW: Tensor) -> Tensor:
        """Context frames to latents ``[N, C, h, w]``, every one alone, in torch."""
        latents: Tensor = self.torch.encode_frames(frames_NCHW)
        return latents

    def prepare(self, size: tuple[int, int]) -> None:
        """Make or load the graphs for latents of this height and width now, and not when the first ones come."""
        self._graphs_of(size)

    def _graphs_of(self, size: tuple[int, int]) -> _Graphs:
        if size not in self._graphs:
            self._graphs[size] = _Graphs.of(self.torch, size, self._cache, self._settings, self._precision)
        return self._graphs[size]


def onnx_tiny_vae(request: ModelRequest, precision: str | None = None) -> OnnxDecoder:
    """Factory of decoders: the codec of `tiny`, with its graph ready. precision: as of `OnnxDecoder`."""
    decoder = OnnxDecoder(load_tiny_vae(request), cache_folder(), precision=precision)
    decoder.prepare(TINY_LATENT)
    return decoder


@dataclass
class _Graphs:
    """The graphs of one size of latents, with their inputs and outputs by name."""

    runner: SessionRunner
    ports: Mapping[str, tuple[tuple[Port, ...], tuple[Port, ...]]]
    settings: SessionSettings

    @classmethod
    def of(
        cls, decoder: Any, size: tuple[int, int], cache: Path, settings: SessionSettings, precision: str | None
    ) -> _Graphs:
        if precision == INT8 and (ready := cls._from_package(decoder, size, settings)) is not None:
            return ready
        specs = decoder_specs(decoder, size)
        source = _source(decoder, size)
        folder = cache / source.folder

        def tell(name: str, done: int, total: int) -> None:
            log.info("making the ONNX graph %s of %s, once; it is kept in %s", name, source.model, folder)

        graphs = export_graphs(folder, source, specs, tell).graphs
        if precision == INT8:
            eight_bit = eight_bit_source(source)
            target = cache / eight_bit.folder
            graphs, folder = quantise_decoder(folder, target, eight_bit).graphs, target
        ports = {name: (graphs[name].inputs, graphs[name].outputs) for name in specs}
        return cls(OnnxRunner(folder, list(specs), settings), ports, settings)

    @classmethod
    def _from_package(cls, decoder: Any, size: tuple[int, int], settings: SessionSettings) -> _Graphs | None:
        folder = shipped("tiny")
        if folder is None:
            return None
        compact = read_compact(folder)
        try:
            runner = decoder_runner(folder, compact, decoder, size, settings)
        except DoesNotFit as error:
            log.info("%s", error)
            return None
        return cls(runner, {STEP: (compact.decoder.inputs, compact.decoder.outputs)}, settings)

    def new_state(self) -> dict[str, Tensor]:
        """What a clip begins with: zeros."""
        states, device = {}, self.settings.device
        for port in self.ports[STEP][0]:
            if port.name != LATENT:
                shape = [size for size in port.shape if isinstance(size, int)]  # all of them
                states[port.name] = torch.zeros(shape, dtype=getattr(torch, port.dtype), device=device)
        return states

    def decode(self, z_FCHW: Tensor, state: dict[str, Tensor], starts: bool) -> Tensor:
        """Frames ``[f, 3, H, W]`` of a clip's next latents; the state moves on."""
        if not starts:
            return self._run(STEP, z_FCHW, state)
        if FIRST not in self.ports:
            return self._run(STEP, z_FCHW, state)[TIME_FACTOR - 1 :]
        frames = self._run(FIRST, z_FCHW[:1], state)
        return torch.cat([frames, self._run(STEP, z_FCHW[1:], state)]) if len(z_FCHW) > 1 else frames

    def _run(self, name: str, z_FCHW: Tensor, state: dict[str, Tensor]) -> Tensor:
        inputs, outputs = self.ports[name]
        made = self.runner(name, [z_FCHW if port.name == LATENT else state[port.name] for port in inputs])
        named = {port.name: part for port, part in zip(outputs, made, strict=True)}
        frames = named.pop(FRAMES).flatten(0, 1).clone()  # the next call overwrites what a graph gave
        for output, left in named.items():
            state[output.removesuffix(NEXT)].copy_(left)
        return frames


def _source(decoder: Any, size: tuple[int, int]) -> Source:
    dtype = next(decoder.parameters()).dtype
    return Source(
        model=decoder_name(decoder),
        weights_hash=hash_weights({"decoder": decoder}),
        config={},
        latent_shape=(latent_channels(decoder), *size),
        precision=_PRECISIONS[dtype],
        opset=OPSET,
        versions=versions_of(("torch", "onnx", "onnxscript")),
    )
