"""Parity of the student: context pass, chunk loop, dual cache, captions, with and without the jump, bf16, windows.

The product's own loop (`model/rollout.py`) and its own cache are what runs here; a recording wrapper around the
transformer keeps what every pass saw and gave. Windows that the product does not have (a sink beyond one chunk, an
un-roped cache) use stand-ins from `window.py`: a miss there says nothing about the product and counts as not
understood.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from shotstream.runtime.model.cache import DualCache, KeyStore
from shotstream.runtime.model.rollout import ShotConditions, clean_pass, context_pass, denoise_chunk
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.parity.report import BFLOAT16, FLOAT32, CaseGroup, NotUnderstood, Row, compare, compare_all
from shotstream.runtime.parity.vectors import VectorFile
from shotstream.runtime.parity.window import ReferenceWindow, UnropedWindow, Window, window_of


class Cache(Protocol):
    """What the loop needs of a cache: the product's, or a stand-in for what the product does not have."""

    def context(self) -> KeyStore:
        """Writer of the context pass."""
        ...

    def chunk(self, start_frame: int) -> KeyStore:
        """Writer of a chunk's passes."""
        ...


@dataclass
class Pass:
    """What one forward saw and gave."""

    z_BFCHW: Tensor
    t_BF: Tensor
    flow_BFCHW: Tensor


@dataclass
class Recorder:
    """Stands in for a transformer in the loop and remembers its passes; the head then always runs."""

    model: Transformer
    position_shift: int | None = None
    """Largest position of a chunk's first frame, where the window moves instead of the frames."""
    passes: list[Pass] = field(default_factory=list)

    @property
    def config(self) -> Any:
        """The model's configuration, which the loop reads."""
        return self.model.config

    def __call__(
        self, z: Tensor, t: Tensor, text_kv: Any, index: Any, positions: Tensor, flags: Any, **options: Any
    ) -> Tensor:
        options["kv_only"] = False
        if self.position_shift is not None:
            positions = positions - (positions[:, :1] - self.position_shift).clamp(min=0)
        flow = self.model(z, t, text_kv, index, positions, flags, **options)
        self.passes.append(Pass(z, t, flow))
        return flow


def conditions_of(
    model: Transformer, prompt_embeds: Tensor, flags: Tensor | None, context_frames: int
) -> ShotConditions:
    """Conditions of one shot from text embeddings and the per-frame flags of a case (None: plain rotary tables)."""
    text_kv = model.embed_captions(prompt_embeds)
    if flags is None:
        return ShotConditions(text_kv, None, None, None, None)
    context, target = flags[None, :context_frames].long(), flags[context_frames : context_frames + 1].long()
    one = prompt_embeds.shape[0] == 1
    return ShotConditions(text_kv, None if one else context, None if one else target, context, target)


def _run_shot(
    model: Transformer,
    schedule: NoiseSchedule,
    steps: Tensor,
    case: Mapping[str, Any],
    conditions: ShotConditions,
    cache: Cache,
    after_chunk: list[Any] | None = None,
) -> Tensor:
    context_pass(model, case["cond"], conditions, cache.context())
    noise, chunk = case["noise"], model.config.chunk_frames
    output = []
    for number, start in enumerate(range(0, noise.shape[1], chunk)):
        keys = cache.chunk(start)
        x = noise[:, start : start + chunk]
        x0 = denoise_chunk(model, schedule, steps, x, case["renoise"][number], start, conditions, keys)
        clean_pass(model, x0, start, conditions, keys)
        output.append(x0)
        if after_chunk is not None:
            after_chunk.append((start + chunk, [k.clone() for k in cache.k], [v.clone() for v in cache.v]))  # type: ignore[attr-defined]
    return torch.cat(output, dim=1)


class _Hooks:
    """Keeps the residual stream behind every block, pass by pass."""

    def __init__(self, model: nn.Module) -> None:
        self.outputs: list[list[Tensor]] = []
        self._handles = [
            block.register_forward_hook(self._keep(layer))
            for layer, block in enumerate(model.get_submodule("blocks").children())
        ]

    def _keep(self, layer: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if layer == 0:
                self.outputs.append([])
            self.outputs[-1].append(output.flatten(1, 2))

        return hook

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def compare_calls(
    name: str, schedule: NoiseSchedule, passes: list[Pass], calls: list[Mapping[str, Any]], tolerance: float
) -> Iterator[Row]:
    """Rows of the input, flow and x0 of every pass against the recorded calls."""
    note = f"{len(calls)} passes"
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {"noisy": [], "flow": [], "x0": []}
    for ours, call in zip(passes, calls, strict=True):
        x0 = schedule.to_x0(ours.z_BFCHW, ours.flow_BFCHW, ours.t_BF)
        for key, tensor in (("noisy", ours.z_BFCHW), ("flow", ours.flow_BFCHW), ("x0", x0)):
            if key in call:
                pairs[key].append((tensor, call[key]))
    for key, found in pairs.items():
        if found:
            yield compare_all(name, f"{key} of {note}", found, tolerance)


def _compare_caches(
    name: str, config: Any, tokens: int, after_chunk: list[Any], recorded: list[Any], tolerance: float
) -> Iterator[Row]:
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {"context": [], "local": []}
    context = config.context_frames
    for (end, k_layers, v_layers), layers in zip(after_chunk, recorded, strict=True):
        visible = min(end, config.local_frames)
        # The reference keeps its window in order of time; ours is a ring behind the sink.
        frames = [*range(config.sink_frames), *range(end - visible + config.sink_frames, end)]
        ring = config.local_frames - config.sink_frames
        slots = [f if f < config.local_frames else config.sink_frames + (f - config.sink_frames) % ring for f in frames]
        for entry in layers:
            for key, ours in (("k", k_layers[entry["layer"]]), ("v", v_layers[entry["layer"]])):
                by_frame = ours.unflatten(1, (-1, tokens))
                if f"ctx_{key}" in entry:
                    pairs["context"].append((by_frame[:, :context].flatten(1, 2), entry[f"ctx_{key}"]))
                if key in entry:
                    local = by_frame[:, [context + slot for slot in slots]].flatten(1, 2)
                    pairs["local"].append((local, entry[key]))
    for key, found in pairs.items():
        if found:
            yield compare_all(name, f"{key} cache after {len(recorded)} chunks", found, tolerance)


@dataclass
class _Plan:
    """How one case is run: inputs in the case's dtype, model and cache of the case's window."""

    case: dict[str, Any]
    model: Transformer
    cache: Any
    tolerance: float
    flags: Tensor | None
    position_shift: int | None

    @classmethod
    def of(cls, file: VectorFile, name: str, window: Window) -> _Plan:
        case = dict(file.cases[name])
        noise, cond = case["noise"], case["cond"]
        dtype = torch.bfloat16 if "bf16" in name else noise.dtype
        chunk = noise.shape[1] // len(case["renoise"])
        case |= {"noise": noise.to(dtype), "cond": cond.to(dtype), "prompt_embeds": case["prompt_embeds"].to(dtype)}
        case["renoise"] = [[r.to(dtype).view_as(noise[:, :chunk]) for r in draws] for draws in case["renoise"]]
        # The product's ring moves in whole chunks and rewrites its sink; anything else needs the reference's own rules.
        whole_chunks = window.sink % chunk == 0 and (window.frames or chunk) % chunk == 0
        product = whole_chunks and window.sink <= chunk and not window.unroped
        model = file.model(
            case["weights"],
            dtype,
            context_frames=cond.shape[1],
            chunk_frames=chunk,
            local_frames=(window.frames or noise.shape[1]) if product else noise.shape[1],
            sink_frames=window.sink if product else 0,
        )
        config, tokens = model.config, model.config.tokens_per_frame(*noise.shape[-2:])
        cache: Any = DualCache(config, tokens, dtype=dtype, batch=noise.shape[0])
        position_shift = None
        if window.unroped:
            cache = UnropedWindow(config, tokens, window)
            position_shift = config.context_frames + UnropedWindow.LAST_START
        elif not product:
            cache = ReferenceWindow(config, tokens, window)
        tolerance = BFLOAT16 if dtype == torch.bfloat16 else FLOAT32
        flags = None if "norope_jump" in name else case["flags"]
        return cls(case, model, cache, tolerance, flags, position_shift)


def _check(file: VectorFile, name: str) -> Iterator[Row]:
    window = window_of(name, file.cases[name])
    plan = _Plan.of(file, name, window)
    case, schedule, tolerance = plan.case, file.schedule(), plan.tolerance
    product = isinstance(plan.cache, DualCache)
    calls = case.get("calls")
    recorded = case.get("cache_after_chunk") if product else None
    blocks = {key: case[key] for key in ("block_out_context", "block_out_first_step") if key in case}
    hooks = _Hooks(plan.model) if blocks else None
    wrapped = bool(calls or blocks) or plan.position_shift is not None
    recorder = Recorder(plan.model, plan.position_shift) if wrapped else None
    after_chunk: list[Any] | None = [] if recorded else None
    with torch.no_grad():
        conditions = conditions_of(plan.model, case["prompt_embeds"], plan.flags, case["cond"].shape[1])
        loop_model = cast(Transformer, recorder or plan.model)
        output = _run_shot(loop_model, schedule, file.steps(case), case, conditions, plan.cache, after_chunk)
    row = compare(name, "output", output, case["output"], tolerance)
    if window.named:
        row = replace(row, note=f"window {window.frames or 'none'}, sink {window.sink}")
    if row.status == "failed" and (window.guessed or not product):
        raise NotUnderstood(f"{row.note}: our reading of it is off by {row.error:.1e}")
    yield row
    if calls and recorder:
        yield from compare_calls(name, schedule, recorder.passes, calls, tolerance)
    if recorded and after_chunk is not None:
        yield from _compare_caches(
            name, plan.model.config, plan.cache.tokens_per_frame, after_chunk, recorded, tolerance
        )
    if hooks is not None:
        hooks.close()
        for number, key in enumerate(("block_out_context", "block_out_first_step")):
            if key in blocks:
                yield compare_all(name, key, list(zip(hooks.outputs[number], blocks[key], strict=True)), tolerance)


def _student_only(file: VectorFile, name: str) -> Iterator[Row]:
    case = file.cases[name]
    missing = [k for k in ("weights", "cond", "noise", "renoise", "prompt_embeds", "flags", "output") if k not in case]
    if missing:
        raise NotUnderstood(f"it has no {', '.join(missing)}")
    yield from _check(file, name)


_EXPECTED = (
    "student_A",
    "student_A_onecaption",
    "student_A_norope_jump",
    "student_A_bf16",
    "student_B",
    "student_B_onecaption",
)
GROUPS = [CaseGroup("student", _EXPECTED, lambda name: name.startswith("student_"), _student_only)]
__all__ = ["GROUPS", "Pass", "Recorder", "Window", "compare_calls", "conditions_of"]
