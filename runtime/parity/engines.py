"""Parity of engines other than eager: whole shots and whole stories through them, on any device, in any precision.

An engine is checked if it is a `GraphEngine`, whatever runs its passes. Cases with a cache window of their own, without
the jump or with more than one clip are not its business and are skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from shotstream.runtime.engine import ShotContext
from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.engine import GraphEngine
from shotstream.runtime.graph.ops import BlockOps
from shotstream.runtime.parity.multishot import ToyHistory
from shotstream.runtime.parity.report import BFLOAT16, FLOAT32, CaseGroup, Row, Skip, compare
from shotstream.runtime.parity.vectors import VectorFile
from shotstream.runtime.parity.window import window_of
from shotstream.runtime.plugins import EngineRequest, ModelParts, Registry
from shotstream.runtime.presets import hash_weights
from shotstream.runtime.runtime import checked_device, default_ops

log = logging.getLogger(__name__)

EIGHT_BIT = 0.1
"""Accepted in eight bits: the toy models of the vectors have random weights and few channels to average over."""
_EIGHT_BITS = {"fp8": ("cache", "linears", "all"), "precision": ("int8", "fp8", "float8")}
"""Options of engines, and their values, that mean eight bits somewhere."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

MakeEngine = Callable[[EngineRequest], Any]


def engine_parity(
    registry: Registry,
    engine: str,
    device: str,
    dtype: str | None,
    options: Mapping[str, Any],
    say: Callable[[str], None] = log.warning,
) -> EngineParity:
    """The check of a registered engine, with the operations that a runtime would give it on this device."""
    if dtype is not None and dtype not in _DTYPES:
        raise UserError(f"there is no dtype '{dtype}'; there is {', '.join(_DTYPES)}")
    place = checked_device(device)
    make = registry.factory("engine", engine)
    number_format = None if dtype is None else _DTYPES[dtype]
    return EngineParity(place, number_format, options, default_ops(registry, place), None, engine, make, say)


@dataclass(frozen=True)
class EngineParity:
    """How the cases are run. dtype None: each in its own. options: of the engine."""

    device: torch.device
    dtype: torch.dtype | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    ops: BlockOps | None = None
    attention: Callable[..., Tensor] | None = None
    engine: str = "graph"
    make: MakeEngine = GraphEngine
    say: Callable[[str], None] = log.warning
    """As `EngineRequest`."""

    def group(self) -> CaseGroup:
        """The cases, for `run_parity`."""
        return CaseGroup(self.engine, ("student_A", "student_B", "multishot_A"), _is_ours, self.check)

    def check(self, file: VectorFile, name: str) -> Iterator[Row]:
        """One row for a shot, two for every shot of a story: its context latents and its latents."""
        return self._story(file, name) if name.startswith("multishot_") else self._student(file, name)

    @torch.inference_mode()
    def _student(self, file: VectorFile, name: str) -> Iterator[Row]:
        case = file.cases[name]
        window = window_of(name, case)
        noise, cond = case["noise"], case["cond"]
        if window.frames or window.sink or window.unroped or "norope_jump" in name or noise.shape[0] != 1:
            raise Skip(f"the engine {self.engine} has no such case")
        chunk = noise.shape[1] // len(case["renoise"])
        sizes = {"context_frames": cond.shape[1], "chunk_frames": chunk, "local_frames": noise.shape[1]}
        player = self._player(file, name, sizes, noise)
        flags = [int(flag) for flag in case["flags"]]
        latents = player.play(cond, flags, case["prompt_embeds"], noise, case["renoise"])
        yield self._row(name, "output", latents, case["output"], player)

    @torch.inference_mode()
    def _story(self, file: VectorFile, name: str) -> Iterator[Row]:
        case = file.cases[name]
        if "toy_vae" not in case:
            raise Skip("it has no toy VAE to take context frames from")
        first = case["latents"][0]
        player = self._player(file, name, {"local_frames": first.shape[1]}, first)
        config, history, draws = player.engine.config, ToyHistory(case["toy_vae"]), iter(case["draws"])
        for shot, expected in enumerate(case["latents"]):
            cond, flags = history.context(expected, config.context_frames)
            noise = next(draws)
            chunks = expected.shape[1] // config.chunk_frames
            renoise = [[next(draws) for _ in range(len(player.engine.steps) - 1)] for _ in range(chunks)]
            target = flags[-1] + 1
            latents = player.play(cond, [*flags, target], case["prompt_embeds"][shot], noise, renoise)
            history.add(latents.float())
            yield self._row(name, f"context latents of shot {shot}", cond, case["cond_latents"][shot], player)
            yield self._row(name, f"latents of shot {shot}", latents, expected, player)

    def _player(self, file: VectorFile, name: str, sizes: Mapping[str, int], like: Tensor) -> _Player:
        case = file.cases[name]
        dtype = self.dtype or (torch.bfloat16 if "bf16" in name else torch.float32)
        model = file.model(case["weights"], dtype, **sizes).to(self.device)
        nothing = cast(Any, None)
        shape = cast(tuple[int, int, int], tuple(like.shape[2:]))
        hashed = hash_weights({"dit": model})
        parts = ModelParts(case["weights"], model.config, model, nothing, nothing, hashed, shape, (0, 0))
        request = EngineRequest(parts, self.device, dtype, self.attention, self.ops, self.options, self.say)
        engine = self.make(request)
        if not isinstance(engine, GraphEngine):
            raise UserError(
                f"vectors are checked with eager and with engines like graph, and '{self.engine}' is neither"
            )
        engine.steps = file.steps(case).to(self.device)
        engine.sigmas = engine.schedule.sigma_of(engine.steps)
        return _Player(engine, dtype)

    def _row(self, name: str, what: str, ours: Tensor, reference: Tensor, player: _Player) -> Row:
        eight_bit = any(self.options.get(option) in values for option, values in _EIGHT_BITS.items())
        tolerance = EIGHT_BIT if eight_bit else FLOAT32 if player.dtype == torch.float32 else BFLOAT16
        options = [f"{key} {value}" for key, value in self.options.items() if key != "exact_blocks"]
        label = ", ".join(
            [self.device.type, str(player.dtype).removeprefix("torch."), *options, player.engine.ops.name]
        )
        ours = ours.cpu()
        return compare(name, f"{what} ({label})", ours, reference.to(ours.dtype), tolerance)


def _is_ours(name: str) -> bool:
    return name.startswith(("student_", "multishot_"))


class _Player:
    """An engine with one session's state, in which shots follow one another."""

    def __init__(self, engine: GraphEngine, dtype: torch.dtype) -> None:
        self.engine, self.dtype = engine, dtype
        self.state = engine.new_state()

    def play(
        self,
        cond: Tensor,
        flags: Sequence[int],
        prompt_embeds: Tensor,
        noise: Tensor,
        renoise: Sequence[Sequence[Tensor] | Tensor],
    ) -> Tensor:
        """Latents of one shot. cond ``[1, N, C, H, W]``; flags: of the N context frames, then the shot's own."""
        engine, state, frames = self.engine, self.state, cond.shape[1]
        captions = [engine.embed_caption(text[None]) for text in prompt_embeds]
        index = [0 if len(captions) == 1 else flag for flag in flags]
        engine.begin_shot(
            state, ShotContext(self._here(cond[0]), flags[:frames], captions, index[:frames]), captions[index[frames]]
        )
        chunk, made = engine.config.chunk_frames, []
        for number, start in enumerate(range(0, noise.shape[1], chunk)):
            x = self._here(noise[:, start : start + chunk])
            draws = [self._here(draw).view_as(x) for draw in renoise[number]]
            made.append(engine.denoise(state, start, x, draws.__getitem__))
            engine.clean(state, start, made[-1])
        return torch.cat(made, dim=1)

    def _here(self, t: Tensor) -> Tensor:
        return t.to(self.engine.device, self.dtype)
