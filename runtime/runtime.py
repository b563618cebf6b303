"""The runtime: a model, an engine and plugins, put together once; it opens any number of sessions.

It loads and connects; it makes no frames itself. `Runtime("tiny")` is all that most callers need.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shotstream.runtime import snapshot as snapshots
from shotstream.runtime.attention_choice import Choice, choose_attention
from shotstream.runtime.engine import Engine, ShotContext
from shotstream.runtime.engine_choice import EngineMaker
from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.ops import BlockOps, DeviceNoise
from shotstream.runtime.model.attention import sdpa
from shotstream.runtime.noise import check_seed
from shotstream.runtime.plugins import EngineRequest, ModelParts, ModelRequest, Plugin, PluginState, Registry
from shotstream.runtime.presets import DEFAULT_PLUGINS
from shotstream.runtime.session import Session

log = logging.getLogger(__name__)

AUTO = "auto"


@dataclass(frozen=True)
class RuntimeOptions:
    """How a runtime is put together. Every name is one that a plugin has registered.

    weights: "default", "random" (no files; for tests and benchmarks) or a folder. dtype None: float32 on a CPU,
    bfloat16 on a GPU. plugins None: ours and those of installed packages; otherwise exactly these, in this order,
    as objects or as "package.module:Class". required: plugins without which the runtime is refused.
    """

    device: str = "cpu"
    dtype: torch.dtype | None = None
    engine: str = "eager"
    attention: str | None = None
    """`auto`: the first of Triton's, flash-attn's and torch's that computes rightly here. None: `auto` on a GPU,
    torch's on a CPU."""
    ops: str | None = None
    """Small operations of the engine `graph`. None: Triton's where they can run, torch's otherwise."""
    engine_options: Mapping[str, Any] | None = None
    engine_fallback: str | None = None
    """The engine to take, with a warning, where `engine` raises UserError while it is made; None: that is an error."""
    run_ahead: bool | None = None
    """Begin the next chunk while this one's frames are decoded. None: on a GPU, with an engine that can."""
    decoder: str | None = None
    """Instead of the preset's own, from the `decoder` slot."""
    text: str | None = None
    """Instead of the preset's own, from the `text` slot."""
    weights: str | Path = "default"
    weights_seed: int = 0
    plugins: Sequence[Plugin | str] | None = None
    required: Collection[str] = ()
    model_options: Mapping[str, Any] | None = None


def assemble_registry(plugins: Sequence[Plugin | str] | None = None) -> Registry:
    """The plugins of a runtime, without loading a model: what `shotstream plugins` shows."""
    if plugins is None:
        return Registry(DEFAULT_PLUGINS, entry_points=True)
    return Registry(plugins)


class Runtime:
    """A loaded model with its engine and plugins. Raises UserError for anything that is not there or does not fit."""

    def __init__(
        self,
        preset: str = "tiny",
        options: RuntimeOptions | None = None,
        *,
        say: Callable[[str], None] = log.warning,
        **changes: Any,
    ) -> None:
        """`Runtime("tiny", device="cuda")`: keyword arguments are fields of `RuntimeOptions`.

        say: told what takes long, such as an engine's export of graphs.
        """
        try:
            options = replace(options or RuntimeOptions(), **changes)
        except TypeError:
            known = ", ".join(RuntimeOptions.__dataclass_fields__)
            raise UserError(f"unknown runtime option among {', '.join(changes)}; there is {known}") from None
        self.options = options
        self.registry = assemble_registry(options.plugins)
        self.registry.require(options.required)
        self.device = checked_device(options.device)
        self.dtype = options.dtype or (torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        make_model = self.registry.factory("model", preset)
        make_engine = EngineMaker(self.registry, options.engine, options.engine_fallback)
        if options.attention not in (None, AUTO):
            self.registry.factory("attention", options.attention)  # a wrong name costs no loading
        exchanged = {slot: name for slot in ("decoder", "text") if (name := getattr(options, slot))}
        make_exchanged = {slot: self.registry.factory(slot, name) for slot, name in exchanged.items()}
        request = ModelRequest(
            device=self.device,
            dtype=self.dtype,
            weights=options.weights,
            seed=options.weights_seed,
            options=options.model_options or {},
            decoder=options.decoder,
        )
        self.parts: ModelParts = make_model(request)
        if self.parts.decoder_name == options.decoder:
            make_exchanged.pop("decoder", None)
        for slot, make in make_exchanged.items():
            # Frames or texts now come from elsewhere, so snapshots of the preset as it was no longer fit.
            digest = hashlib.sha256(f"{self.parts.weights_hash} {slot} {exchanged[slot]}".encode()).hexdigest()
            self.parts = replace(self.parts, **{slot: make(request), "weights_hash": digest})
        channels = getattr(self.parts.decoder, "latent_channels", self.parts.latent_shape[0])
        if channels != self.parts.latent_shape[0]:
            raise UserError(
                f"the decoder '{options.decoder}' does not fit this model: it reads latents of {channels} channels, "
                f"and the model makes {self.parts.latent_shape[0]}; choose another decoder"
            )
        self.attention = self._choose_attention()
        ops = (
            self.registry.factory("ops", options.ops)(self.device)
            if options.ops
            else default_ops(self.registry, self.device)
        )
        self.engine_choice = make_engine.make(
            EngineRequest(
                parts=self.parts,
                device=self.device,
                dtype=self.dtype,
                attention=self.attention.attention,
                ops=ops,
                options=options.engine_options or {},
                say=say,
            )
        )
        self.engine: Engine = self.engine_choice.engine
        self.fill_noise = ops.draw if isinstance(ops, DeviceNoise) else None
        """Writes a session's noise on the device, where the engine's operations can; None: the host draws it."""
        self._sessions: list[Session] = []
        self._spare_states: list[Any] = [self.engine.new_state()]  # a first session then opens without waiting
        self._closed = False

    def _choose_attention(self) -> Choice:
        """The backend asked for, or the best that computes rightly on this device; and why."""
        wanted = self.options.attention
        if wanted is None and self.device.type == "cpu":
            return Choice("sdpa", sdpa, {"sdpa": "the default on a CPU"})
        if wanted not in (None, AUTO):
            return Choice(wanted, self.registry.factory("attention", wanted)(), {wanted: "asked for"})
        config = self.parts.config
        candidates = {name: self.registry.factory("attention", name) for name in self.registry.names("attention")}
        eight_bit = (self.options.engine_options or {}).get("fp8") in ("cache", "all")
        return choose_attention(candidates, self.device, self.dtype, config.heads, config.head_dim, eight_bit)

    @property
    def run_ahead(self) -> bool:
        """Whether sessions begin a chunk while the one before is decoded."""
        wanted = self.options.run_ahead
        return self.device.type == "cuda" if wanted is None else wanted

    @property
    def identity(self) -> snapshots.ModelIdentity:
        """What a snapshot must agree with."""
        dtype = str(self.dtype).removeprefix("torch.")
        return snapshots.ModelIdentity(self.parts.name, self.parts.weights_hash, dtype)

    def open(self, global_caption: str = "", *, seed: int = 0) -> Session:
        """Open a session; the same seed and captions give the same film. Raises UserError for an impossible seed."""
        return self._started(Session(self._checked(), check_seed(seed), global_caption))

    def restore(self, data: bytes) -> Session:
        """Continue a session from its snapshot; raises UserError with the reason if it cannot be used."""
        budget = self.parts.config.context_frames
        return self.resume(snapshots.unpack(data, self.identity, self.parts.latent_shape, budget))

    def resume(self, saved: snapshots.SavedSession) -> Session:
        """Continue a session from its saved state."""
        for shot in saved.history.shots:
            shot.latents = {frame: latent.to(self.device) for frame, latent in shot.latents.items()}
        session = Session(self._checked(), saved.seed, saved.global_caption, history=saved.history)
        session.shots_begun = saved.shots_begun
        session.frames_made = saved.frames_made
        session.memory_begins = saved.memory_begins
        return self._started(session)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Make one chunk that nobody sees, so that the first shot does not wait for libraries to set themselves up.

        No hook is called and no session is touched; a second on a CPU for `tiny`.
        """
        parts, config, state = self.parts, self.parts.config, self.take_state()
        self.engine.prepare(state)
        caption = self.engine.embed_caption(parts.text.encode(["warm-up"]))
        frames = torch.zeros((config.context_frames, *parts.latent_shape), device=self.device, dtype=self.dtype)
        none = [0] * config.context_frames
        self.engine.begin_shot(state, ShotContext(frames, none, [caption], none), caption)
        noise = torch.zeros((1, config.chunk_frames, *parts.latent_shape), device=self.device, dtype=self.dtype)
        latents = self.engine.denoise(state, 0, noise, lambda step: noise)
        pixels = parts.decoder.decode_chunk(latents, parts.decoder.new_stream(1))[0]
        self.engine.clean(state, 0, latents)
        parts.decoder.encode_frames(pixels[:1])
        self._spare_states.append(state)

    def describe(self) -> Sequence[PluginState]:
        """Every plugin with its origin, state and what it provides."""
        return self.registry.describe()

    def close(self) -> None:
        """Close the open sessions and tell the plugins; a second call does nothing."""
        if self._closed:
            return
        for session in tuple(self._sessions):
            session.close()
        self.registry.call_hook("on_shutdown", self)
        self._spare_states.clear()
        self._closed = True

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------- for sessions
    def take_state(self) -> Any:
        """A session's caches: spare ones if there are any, so that memory does not grow with every session."""
        return self._spare_states.pop() if self._spare_states else self.engine.new_state()

    def release(self, session: Session, state: Any) -> None:
        """Take back a closed session's caches."""
        self._spare_states.append(state)
        self._sessions.remove(session)
        self.registry.call_hook("on_session_close", session)

    def _started(self, session: Session) -> Session:
        self._sessions.append(session)
        self.registry.call_hook("on_session_open", session)
        return session

    def _checked(self) -> Runtime:
        if self._closed:
            raise UserError("this runtime is closed; make a new one")
        return self


def preset_names(plugins: Iterable[Plugin | str] | None = None) -> list[str]:
    """Models that can be asked for by name."""
    return assemble_registry(None if plugins is None else list(plugins)).names("model")


def default_ops(registry: Registry, device: torch.device) -> BlockOps | None:
    """Triton's operations on a GPU where they can run; None: an engine takes torch's."""
    if device.type == "cpu" or "triton" not in registry.names("ops"):
        return None
    try:
        return registry.factory("ops", "triton")(device)
    except UserError as error:
        log.info("operations in torch: %s", error)
        return None


def checked_device(name: str) -> torch.device:
    """The device of that name; UserError if it is not there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"there is no device '{name}'; use cpu, cuda or cuda:0") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{name}' is not supported; use cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here, or this torch was built without CUDA; use cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no device '{name}'; this machine has {torch.cuda.device_count()}")
    return device
