"""Plugins: what a slot's factory takes and gives, the registry that holds them, and the hooks.

A plugin is an object with a `name` and `build(registry)`; `build` registers factories by slot and name and
subscribes to hooks. Importing a module registers nothing: the list of plugins is explicit and ordered, and
third parties add theirs through the entry-point group `shotstream.plugins`. This file knows no model, no
session and no command line.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from shotstream.runtime.errors import UserError

if TYPE_CHECKING:
    from shotstream.runtime.config import DiTConfig
    from shotstream.runtime.graph.ops import BlockOps

log = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "shotstream.plugins"

SLOTS: Mapping[str, str] = {
    "model": "factory(ModelRequest) -> ModelParts: configuration, weights, text encoder, decoder",
    "attention": "factory() -> callable(q_BLHD, k_BSHD, v_BSHD, mask_LS | None) -> out_BLHD, scale 1/sqrt(D); with a "
    "method over_prefix (shotstream.runtime.model.attention.PrefixAttention) it reads key lengths from the device",
    "ops": "factory(torch.device) -> shotstream.runtime.graph.ops.BlockOps: small operations, for engine graph",
    "engine": "factory(EngineRequest) -> shotstream.runtime.engine.Engine",
    "decoder": "factory(ModelRequest) -> Decoder: streaming latents to pixels, frames to latents",
    "text": "factory(ModelRequest) -> TextEncoder: captions to embeddings",
    "director": "factory(options: Mapping) -> object with direct(state, event), scene(state, ...), cut(state, ...) and "
    "prompt(state, text): pure functions of a story's state, as shotstream.bridge.director.Director has them",
    "sink": "factory(target: Path, options: Mapping) -> object with open(info), write(chunk), close()",
    "parity": "factory() -> list[shotstream.runtime.parity.CaseGroup]: further cases of reference vectors",
    "train": "factory(recipe: Mapping, folder: Path) -> object with run() -> None; the name is the stage",
    "cuts": "factory(torch.device) -> shotstream.training.evaluation.cuts.CutFinder: frames to where shots begin",
    "features": "factory(folder: Path | None, torch.device) -> shotstream.training.evaluation.features.Features: "
    "frames and, if it can, captions to comparable vectors",
    "command": "factory(app: typer.Typer) -> None: mounts a room's own commands",
}
"""Slot name -> what its factories take and give."""

HOOKS: Mapping[str, str] = {
    "on_session_open": "(session)",
    "on_event": "(session, event)",
    "on_shot_begin": "(session, shot: int, caption: str)",
    "on_chunk": "(session, chunk: Chunk)",
    "on_shot_end": "(session, shot: int)",
    "on_session_close": "(session)",
    "on_shutdown": "(runtime)",
}
"""Hook name -> the arguments its callbacks are called with."""


# ---------------------------------------------------------------------------------- slot interfaces
@runtime_checkable
class TextEncoder(Protocol):
    """Captions to embeddings. Rows beyond a caption's tokens are zero; captions do not influence each other."""

    def tokens(self, caption: str) -> int:
        """How many rows the caption needs. Sessions refuse a caption that needs more than `text_len` rows.

        `encode` would cut it at its end, which is its shot part: what the user has just asked for.
        """
        ...

    def encode(self, captions: list[str]) -> Tensor:
        """Return [N, text_len, text_dim] on the encoder's device."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """Latents to pixels (streaming, per chunk) and single frames to latents. Pixels are in [-1, 1]."""

    def new_stream(self, batch: int) -> Any:
        """Return the state of a new shot's stream; a stream is used for one shot only."""
        ...

    def decode_chunk(self, z_BFCHW: Tensor, stream: Any) -> Tensor:
        """Return pixels [B, f, 3, H, W] clamped to [-1, 1]: f = 4 F - 3 at a shot's start, 4 F later."""
        ...

    def encode_frames(self, frames_NCHW: Tensor) -> Tensor:
        """Return latents [N, c, h, w], every frame encoded alone, as a clip of one frame."""
        ...


@dataclass(frozen=True)
class ModelRequest:
    """What a `model`, `text` or `decoder` factory is asked for."""

    device: torch.device
    dtype: torch.dtype
    weights: str | Path = "default"
    """"default": what the preset ships or has fetched; "random": no files needed; else a folder."""
    seed: int = 0
    """Seed of random weights."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What only this factory understands; unknown keys are a `UserError`."""
    decoder: str | None = None
    """The decoder that the runtime will use; a preset that knows it loads it instead of its own, and says so."""


@dataclass(frozen=True)
class ModelParts:
    """A loaded model: everything on the device asked for, in eval mode, without gradients."""

    name: str
    config: DiTConfig
    transformer: nn.Module
    text: TextEncoder
    decoder: Decoder
    weights_hash: str
    """SHA-256 (hex) of all weights: a snapshot is refused by a runtime with another one."""
    latent_shape: tuple[int, int, int]
    """(channels, height, width) of one latent frame."""
    frame_size: tuple[int, int]
    """(height, width) of one decoded pixel frame."""
    frames_per_second: int = 16
    default_chunks: int = 7
    """Chunks of a shot whose length the caller does not give."""
    decoder_name: str | None = None
    """Of the slot `decoder`, where the preset offers several; None: its own."""


@dataclass(frozen=True)
class EngineRequest:
    """What an `engine` factory is asked for."""

    parts: ModelParts
    device: torch.device
    dtype: torch.dtype
    attention: Callable[..., Tensor] | None = None
    """From the `attention` slot; None: the model's own choice."""
    ops: BlockOps | None = None
    """From the `ops` slot, for engines that run fused operations; None: torch's."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What only this engine understands; unknown keys are a `UserError`."""
    say: Callable[[str], None] = log.warning
    """Tells the user what takes long while the engine is made."""


class Plugin(Protocol):
    """Something that provides factories and listens to hooks."""

    name: str

    def build(self, registry: Registry) -> None:
        """Call `registry.register` and `registry.subscribe`; load nothing heavy and open nothing here."""
        ...


# ---------------------------------------------------------------------------------- registry
@dataclass(frozen=True)
class PluginState:
    """How one plugin fared, for `shotstream plugins`."""

    name: str
    origin: str
    """The module and attribute, the entry point with its package, or the class of an object given by hand."""
    state: str
    """"ready" or "failed"."""
    reason: str
    """Empty, or why it failed."""
    provides: tuple[tuple[str, str], ...]
    """(slot, name) pairs."""
    hooks: tuple[str, ...]


@dataclass
class _Registrations:
    """What one plugin has registered while its `build` runs: kept only if `build` returns."""

    factories: dict[tuple[str, str], Callable[..., Any]] = field(default_factory=dict)
    callbacks: list[tuple[str, Callable[..., None]]] = field(default_factory=list)


class Registry:
    """Factories by slot and name, and hook subscribers, of an ordered list of plugins.

    Plugins are given as objects or as import strings ("package.module:Attribute"). One that fails to import
    or build is remembered with its reason and the rest go on; `require` turns that into an error.
    """

    def __init__(self, plugins: Iterable[Plugin | str] = (), *, entry_points: bool = False) -> None:
        self._factories: dict[tuple[str, str], tuple[str, Callable[..., Any]]] = {}
        self._callbacks: dict[str, list[tuple[str, Callable[..., None]]]] = {hook: [] for hook in HOOKS}
        self._states: list[PluginState] = []
        self._building: _Registrations | None = None
        for plugin in plugins:
            self.add(plugin)
        if entry_points:
            self._add_entry_points()

    # -- assembling
    def add(self, plugin: Plugin | str) -> None:
        """Import (if a string) and build one plugin; never raises for what the plugin does wrong."""
        if isinstance(plugin, str):
            self._build(plugin.rpartition(":")[2] or plugin, plugin, lambda: _import_plugin(plugin))
        else:
            origin = f"{type(plugin).__module__}:{type(plugin).__qualname__}"
            self._build(str(getattr(plugin, "name", type(plugin).__name__)), origin, lambda: plugin)

    def _add_entry_points(self) -> None:
        known = {state.origin for state in self._states}
        for point in sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
            if point.value in known:  # already in the explicit list, which fixes its place
                continue
            package = point.dist.name if point.dist else "unknown package"
            origin = f"{point.value} ({package})"
            self._build(point.name, origin, partial(_load_entry_point, point))

    def _build(self, name: str, origin: str, load: Callable[[], Any]) -> None:
        self._building = _Registrations()
        try:
            plugin = load()
            name = str(plugin.name)
            if any(state.name == name and state.state == "ready" for state in self._states):
                raise UserError(f"a plugin named '{name}' is already there")
            plugin.build(self)
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            log.warning("plugin %s (%s) failed: %s", name, origin, reason)
            self._states.append(PluginState(name, origin, "failed", reason, (), ()))
            return
        finally:
            made, self._building = self._building, None
        for key, factory in made.factories.items():
            self._factories[key] = (name, factory)
        for hook, callback in made.callbacks:
            self._callbacks[hook].append((name, callback))
        hooks = tuple(dict.fromkeys(hook for hook, _ in made.callbacks))
        self._states.append(PluginState(name, origin, "ready", "", tuple(made.factories), hooks))

    # -- what a plugin calls in its build
    def register(self, slot: str, name: str, factory: Callable[..., Any]) -> None:
        """Offer `factory` as `name` in `slot`; UserError for an unknown slot or a name that is taken."""
        if self._building is None:
            raise UserError("plugins register in their build(registry) only")
        if slot not in SLOTS:
            raise UserError(f"there is no slot '{slot}'; the slots are {_listed(SLOTS)}")
        if (slot, name) in self._factories or (slot, name) in self._building.factories:
            owner = self._factories.get((slot, name), ("the same plugin", None))[0]
            raise UserError(f"slot '{slot}' already has a '{name}', from {owner}")
        self._building.factories[slot, name] = factory

    def subscribe(self, hook: str, callback: Callable[..., None]) -> None:
        """Call `callback` at every `hook` (arguments: see HOOKS); raises UserError for an unknown hook."""
        if self._building is None:
            raise UserError("plugins subscribe in their build(registry) only")
        if hook not in HOOKS:
            raise UserError(f"there is no hook '{hook}'; the hooks are {_listed(HOOKS)}")
        self._building.callbacks.append((hook, callback))

    # -- what the runtime calls
    def names(self, slot: str) -> list[str]:
        """Names registered in a slot, in the order of the plugins."""
        return [name for key_slot, name in self._factories if key_slot == slot]

    def factory(self, slot: str, name: str) -> Callable[..., Any]:
        """Return a factory; raises UserError that lists the valid names, or says which plugin failed."""
        if slot not in SLOTS:
            raise UserError(f"there is no slot '{slot}'; the slots are {_listed(SLOTS)}")
        if (slot, name) not in self._factories:
            valid = _listed(self.names(slot)) or "none"
            failed = [f"{state.name} ({state.reason})" for state in self._states if state.state == "failed"]
            hint = f"; plugins that failed to load: {_listed(failed)}" if failed else ""
            raise UserError(f"there is no {slot} '{name}'; there is {valid}{hint}")
        return self._factories[slot, name][1]

    def require(self, names: Collection[str]) -> None:
        """Raise UserError if a plugin of that name is missing or failed."""
        states = {state.name: state for state in self._states}
        for name in names:
            if name not in states:
                raise UserError(f"the plugin '{name}' is required but not there; there is {_listed(states)}")
            if states[name].state == "failed":
                raise UserError(f"the plugin '{name}' is required but failed to load: {states[name].reason}")

    def call_hook(self, hook: str, *arguments: Any) -> None:
        """Call a hook's subscribers in plugin order; one that raises is logged with its plugin's name."""
        for name, callback in self._callbacks[hook]:
            try:
                callback(*arguments)
            except Exception:
                log.exception("plugin %s raised in %s; the session goes on", name, hook)

    def describe(self) -> Sequence[PluginState]:
        """Every plugin with origin, state and what it provides, in order."""
        return tuple(self._states)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _as_plugin(loaded: Any) -> Any:
    """Accept a plugin object or a class that makes one without arguments."""
    return loaded() if isinstance(loaded, type) else loaded


def _load_entry_point(point: metadata.EntryPoint) -> Any:
    return _as_plugin(point.load())


def _import_plugin(path: str) -> Any:
    module, _, attribute = path.partition(":")
    if not attribute:
        raise UserError(f"'{path}' is not of the form package.module:Plugin")
    return _as_plugin(getattr(importlib.import_module(module), attribute))
