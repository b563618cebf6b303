"""DiT weights from and to every layout in use: Wan original, diffusers, ShotStream ``.pt``, LoRA and our own
safetensors. Whatever comes in leaves as Wan-original keys, checked against a ``DiTConfig``.

Which layout a file has is decided by its keys, never by its name. ``checkpoint_files`` opens containers,
``key_maps`` holds the tables of names; this file joins them and says what is missing, extra or mis-shaped.
Source: reference ``merge_lora_checkpoint.py``, ``utils/wan_wrapper.py``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.checkpoint_files import WeightFile, iter_tensor_dicts, open_weights
from shotstream.runtime.model.key_maps import (
    StateDict,
    diffusers_dit_to_wan,
    diffusers_vae_to_wan,
    named,
    transformers_t5_to_wan,
    wan_dit_to_diffusers,
    wan_t5_to_transformers,
    wan_vae_to_diffusers,
)

__all__ = [
    "FORMAT",
    "Checkpoint",
    "check_dit",
    "check_shapes",
    "content_hash",
    "detect_layout",
    "diffusers_dit_to_wan",
    "diffusers_vae_to_wan",
    "dit_shapes",
    "load_dit",
    "lora_pairs",
    "merge_lora",
    "placed",
    "plain_key",
    "read_checkpoint",
    "save_dit",
    "transformers_t5_to_wan",
    "wan_dit_to_diffusers",
    "wan_t5_to_transformers",
    "wan_vae_to_diffusers",
    "whole_file",
    "write_safetensors",
]

FORMAT = "shotstream.dit.1"
ROLES = ("generator", "generator_ema", "fake_score", "critic")
# Wrappers leave their names inside keys: FSDP, activation checkpointing, torch.compile.
_WRAPPERS = {"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"}
_OUTER = {"model", "module", "generator", "diffusion_model"}
_LORA_KEY = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.[^.]+)?\.weight$")


@dataclass(frozen=True)
class Checkpoint:
    """A DiT as found in a file: Wan-original keys (LoRA: adapter keys), the layout, and the config if it was stored."""

    path: Path
    layout: str
    """``wan``, ``diffusers``, ``shotstream-pt``, ``lora`` or ``shotstream``."""
    tensors: StateDict
    config: DiTConfig | None = None


def dit_shapes(config: DiTConfig) -> dict[str, tuple[int, ...]]:
    """Every key of a DiT of this size with its shape; 825 for the 1.3B model."""
    d, ffn = config.dim, config.ffn_dim
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    shapes["patch_embedding.weight"] = (d, config.channels, *config.patch)
    shapes["patch_embedding.bias"] = (d,)
    linear("text_embedding.0", config.text_dim, d)
    linear("text_embedding.2", d, d)
    linear("time_embedding.0", config.freq_dim, d)
    linear("time_embedding.2", d, d)
    linear("time_projection.1", d, 6 * d)
    for i in range(config.layers):
        block = f"blocks.{i}"
        shapes[f"{block}.modulation"] = (1, 6, d)
        for attn in ("self_attn", "cross_attn"):
            for name in "qkvo":
                linear(f"{block}.{attn}.{name}", d, d)
            shapes[f"{block}.{attn}.norm_q.weight"] = shapes[f"{block}.{attn}.norm_k.weight"] = (d,)
        shapes[f"{block}.norm3.weight"] = shapes[f"{block}.norm3.bias"] = (d,)
        linear(f"{block}.ffn.0", d, ffn)
        linear(f"{block}.ffn.2", ffn, d)
    shapes["head.modulation"] = (1, 2, d)
    linear("head.head", d, config.channels * config.patch[1] * config.patch[2])
    return shapes


def check_dit(sd: Mapping[str, torch.Tensor], config: DiTConfig, where: str = "the state dict") -> None:
    """Raise ``UserError`` naming missing, unexpected or mis-shaped keys (the first few and how many more)."""
    check_shapes(sd, dit_shapes(config), where, f"a model of width {config.dim} with {config.layers} layers")


def check_shapes(
    sd: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], where: str, what: str
) -> None:
    """Raise one ``UserError`` sentence if ``sd`` has not exactly the keys and shapes of ``expected``."""
    wrong = [
        f"{key} is {tuple(sd[key].shape)}, not {tuple(shape)}"
        for key, shape in expected.items()
        if key in sd and tuple(sd[key].shape) != tuple(shape)
    ]
    faults = {
        "missing": [key for key in expected if key not in sd],
        "unexpected": [key for key in sd if key not in expected],
        "wrong shape": wrong,
        "not floating point": [key for key, value in sd.items() if not value.is_floating_point()],
    }
    found = "; ".join(f"{fault} {named(keys)}" for fault, keys in faults.items() if keys)
    if found:
        raise UserError(f"{where} does not fit {what}: {found}")


def plain_key(key: str) -> str:
    """A key without what wrappers put around it: ``model._fsdp_wrapped_module.blocks.0...`` -> ``blocks.0...``."""
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] in _OUTER:
        parts.pop(0)
    return ".".join(parts)


def detect_layout(sd: Mapping[str, torch.Tensor]) -> str:
    """``wan``, ``diffusers`` or ``lora``, by the keys (already plain); ``unknown`` for anything else."""
    if any(_LORA_KEY.match(key) for key in sd):
        return "lora"
    if any(key.startswith("condition_embedder.") or ".attn1." in key for key in sd):
        return "diffusers"
    if any(key.startswith("patch_embedding.") or ".self_attn." in key for key in sd):
        return "wan"
    return "unknown"


def read_checkpoint(path: Path | str, role: str = "generator") -> Checkpoint:
    """Open any layout and give Wan-original keys. ``role`` chooses among the networks of a ShotStream ``.pt``.

    Tensors are memory-mapped: nothing is copied here. A file with LoRA adapters alone comes back as layout
    ``lora``, to be merged into a base by :func:`merge_lora`.
    """
    if role not in ROLES:
        raise UserError(f"unknown network '{role}'; it is one of {', '.join(ROLES)}")
    file = open_weights(path)
    tensors, from_pt = _choose(file, role)
    tensors = {plain_key(key): value for key, value in tensors.items()}
    layout = detect_layout(tensors)
    if layout == "unknown":
        raise UserError(f"{file.path} holds no DiT weights: its keys start with {named(tensors)}")
    if layout == "diffusers":
        tensors = diffusers_dit_to_wan(tensors)
    config = None
    stored = file.metadata.get("format", "")
    if stored.startswith("shotstream.") and stored != FORMAT:
        raise UserError(f"{file.path} is a '{stored}' file, not the '{FORMAT}' that is needed here")
    if "config" in file.metadata:
        _check_hash(file, tensors)
        try:
            config, layout = DiTConfig.from_json(file.metadata["config"]), "shotstream"
        except ValueError as error:
            raise UserError(f"the configuration in {file.path} is not readable ({error})") from error
    return Checkpoint(file.path, "shotstream-pt" if from_pt and layout == "wan" else layout, tensors, config)


def _choose(file: WeightFile, role: str) -> tuple[Mapping[str, torch.Tensor], bool]:
    """The state dict of ``role`` and whether it lay in a named entry (a ShotStream ``.pt``)."""
    dicts = dict(iter_tensor_dicts(file.content))
    lora = "critic_lora" if role in {"fake_score", "critic"} else "generator_lora"
    if "" in dicts:
        return dicts[""], False
    for name in (role, lora):
        if name in dicts:
            return dicts[name], True
    if role == "generator" and len(dicts) == 1 and not set(dicts) & {*ROLES, "critic_lora"}:
        return next(iter(dicts.values())), True  # e.g. {"state_dict": ...}
    found = f"it holds {', '.join(dicts)}" if dicts else "it holds no state dict"
    raise UserError(f"{file.path} has no '{role}'; {found}")


def load_dit(
    path: Path | str,
    config: DiTConfig,
    *,
    role: str = "generator",
    base: Path | str | None = None,
    lora_scale: float = 1.0,
) -> StateDict:
    """Wan-original state dict of a DiT of this config from any layout, checked, still memory-mapped.

    ``base`` is the checkpoint that LoRA-only files are merged into with ``W + lora_scale * B A`` (the released
    models have alpha = rank, i.e. 1). Raises ``UserError`` naming what does not fit.
    """
    found = read_checkpoint(path, role)
    tensors = found.tensors
    if found.layout == "lora":
        if base is None:
            raise UserError(f"{found.path} holds LoRA adapters alone; give the base checkpoint that they belong to")
        tensors = merge_lora(load_dit(base, config, role=role), tensors, lora_scale)
    check_dit(tensors, config, str(found.path))
    return tensors


def lora_pairs(lora: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module name -> (A ``[rank, in]``, B ``[out, rank]``) of a LoRA dictionary."""
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in lora.items():
        found = _LORA_KEY.match(key)
        if not found:
            raise UserError(f"'{key}' is not a LoRA key; expected base_model.model.<module>.lora_A.weight")
        halves.setdefault(plain_key(found[1]), {})[found[2]] = value
    single = [name for name, pair in halves.items() if len(pair) != 2]
    if single:
        raise UserError(f"LoRA adapters without their other half: {named(single)}")
    return {name: (pair["A"], pair["B"]) for name, pair in halves.items()}


def merge_lora(base: Mapping[str, torch.Tensor], lora: Mapping[str, torch.Tensor], scale: float = 1.0) -> StateDict:
    """``W + scale * B A`` for every adapter, in float32, result in the base's dtype; other tensors are shared.

    Keys of ``base`` are Wan original. Reference ``merge_lora_checkpoint.py``, whose ``alpha / rank`` is 1.
    """
    merged = dict(base)
    for name, (a, b) in lora_pairs(lora).items():
        weight = merged.get(f"{name}.weight")
        if weight is None:
            raise UserError(f"the LoRA adapter of '{name}' has no such layer in the base")
        if a.shape[0] != b.shape[1] or (b.shape[0], a.shape[1]) != tuple(weight.shape):
            sizes = f"{tuple(b.shape)} x {tuple(a.shape)}, the layer {tuple(weight.shape)}"
            raise UserError(f"the LoRA adapter of '{name}' is {sizes}")
        merged[f"{name}.weight"] = (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)
    return merged


def placed(sd: Mapping[str, torch.Tensor], device: torch.device | str, dtype: torch.dtype | None = None) -> StateDict:
    """The tensors on ``device`` in ``dtype``, moved one by one so that a mapped file is never held twice.

    Two names of one tensor (tied weights) stay one tensor. On the CPU in the file's own dtype nothing is copied.
    """
    moved: dict[int, torch.Tensor] = {}
    for value in sd.values():
        if id(value) not in moved:
            moved[id(value)] = value.to(device=device, dtype=dtype)
    return {key: moved[id(value)] for key, value in sd.items()}


def content_hash(sd: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes, in key order: the same weights give the same hash."""
    digest = hashlib.sha256()
    for key in sorted(sd):
        tensor = sd[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_dit(path: Path | str, sd: Mapping[str, torch.Tensor], config: DiTConfig, **notes: str) -> str:
    """Write our safetensors: metadata ``format``, ``config`` (json), ``sha256`` and ``notes``; returns the hash."""
    check_dit(sd, config, "what is to be saved")
    tensors = {key: value.detach().cpu().contiguous() for key, value in sd.items()}
    digest = content_hash(tensors)
    metadata = {**notes, "format": FORMAT, "config": config.to_json(), "sha256": digest}
    write_safetensors(path, tensors, metadata)
    return digest


def write_safetensors(path: Path | str, tensors: StateDict, metadata: dict[str, str]) -> None:
    """Write a safetensors file whole or not at all; ``UserError`` if it cannot be written."""
    with whole_file(Path(path)) as partial:
        save_file(tensors, str(partial), metadata=metadata)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write what becomes ``path`` once the block has ended well: an interruption leaves no broken file.

    It may be read by whoever may read any new file here; the safetensors library shuts out all but the owner.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)
        partial.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        if partial.is_file():
            partial.unlink()


def _check_hash(file: WeightFile, tensors: Mapping[str, torch.Tensor]) -> None:
    """Compare with the stored hash where there is one (a training checkpoint may have the config alone)."""
    stored = file.metadata.get("sha256")
    if stored and content_hash(tensors) != stored:
        raise UserError(f"{file.path} is damaged: its tensors do not match their sha256; fetch or convert it again")
