"""Parity of the engine `graph`: whole shots through its fused passes, on any device, in any precision it has.

It plays the student's cases as a session would; cases with a cache window of their own, without the jump or with more
than one clip are not its business and are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from shotstream.runtime.engine import ShotContext
from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.engine import GraphEngine
from shotstream.runtime.graph.ops import BlockOps
from shotstream.runtime.parity.report import BFLOAT16, FLOAT32, CaseGroup, Row, Skip, compare
from shotstream.runtime.parity.vectors import VectorFile
from shotstream.runtime.parity.window import window_of
from shotstream.runtime.plugins import EngineRequest, ModelParts, Registry
from shotstream.runtime.runtime import checked_device, default_ops

EIGHT_BIT = 0.1
"""Accepted in eight bits: the toy models of the vectors have random weights and few channels to average over."""


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def graph_parity(registry: Registry, device: str, dtype: str | None, fp8: str) -> GraphParity:
    """The check on a device, with the operations and the attention that a runtime would take there."""
    if dtype is not None and dtype not in _DTYPES:
        raise UserError(f"there is no dtype '{dtype}'; there is {', '.join(_DTYPES)}")
    place = checked_device(device)
    ops, attention = default_ops(registry, place), None
    return GraphParity(place, None if dtype is None else _DTYPES[dtype], fp8, ops, attention)


@dataclass(frozen=True)
class GraphParity:
    """How the cases are run. dtype None: each in its own."""

    device: torch.device
    dtype: torch.dtype | None = None
    fp8: str = "none"
    ops: BlockOps | None = None
    attention: Callable[..., Tensor] | None = None

    def group(self) -> CaseGroup:
        """The cases, for `run_parity`."""
        return CaseGroup("graph", ("student_A", "student_B"), lambda name: name.startswith("student_"), self.check)

    @torch.inference_mode()
    def check(self, file: VectorFile, name: str) -> Iterator[Row]:
        """One row: the latents of the shot."""
        case = file.cases[name]
        window = window_of(name, case)
        noise, cond = case["noise"], case["cond"]
        if window.frames or window.sink or window.unroped or "norope_jump" in name or noise.shape[0] != 1:
            raise Skip("the engine graph has no such case")
        dtype = self.dtype or (torch.bfloat16 if "bf16" in name else torch.float32)
        chunk = noise.shape[1] // len(case["renoise"])
        model = file.model(
            case["weights"], dtype, context_frames=cond.shape[1], chunk_frames=chunk, local_frames=noise.shape[1]
        ).to(self.device)
        engine = GraphEngine(self._request(model, noise))
        engine.steps = file.steps(case).to(self.device)
        engine.sigmas = engine.schedule.sigma_of(engine.steps)
        latents = self._shot(engine, case, chunk, dtype).cpu()
        tolerance = EIGHT_BIT if self.fp8 != "none" else BFLOAT16 if dtype == torch.bfloat16 else FLOAT32
        label = ", ".join([self.device.type, str(dtype).removeprefix("torch."), f"fp8 {self.fp8}", engine.ops.name])
        yield compare(name, f"output ({label})", latents, case["output"].to(latents.dtype), tolerance)

    def _request(self, model: Any, noise: Tensor) -> EngineRequest:
        nothing = cast(Any, None)
        parts = ModelParts("vectors", model.config, model, nothing, nothing, "", tuple(noise.shape[2:]), (0, 0))  # type: ignore[arg-type]
        dtype = next(model.parameters()).dtype
        return EngineRequest(parts, self.device, dtype, self.attention, self.ops, {"fp8": self.fp8, "exact_blocks": 0})

    def _shot(self, engine: GraphEngine, case: Any, chunk: int, dtype: torch.dtype) -> Tensor:
        def here(t: Tensor) -> Tensor:
            return t.to(self.device, dtype)

        frames = case["cond"].shape[1]
        flags = [int(flag) for flag in case["flags"]]
        captions = [engine.embed_caption(text[None]) for text in case["prompt_embeds"]]
        index = [0 if len(captions) == 1 else flag for flag in flags]
        state = engine.new_state()
        context = ShotContext(here(case["cond"][0]), flags[:frames], captions, index[:frames])
        engine.begin_shot(state, context, captions[index[frames]])
        made = []
        for number, start in enumerate(range(0, case["noise"].shape[1], chunk)):
            x = here(case["noise"][:, start : start + chunk])
            draws = [here(draw).view_as(x) for draw in case["renoise"][number]]
            made.append(engine.denoise(state, start, x, draws.__getitem__))
            engine.clean(state, start, made[-1])
        return torch.cat(made, dim=1)
