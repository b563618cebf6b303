"""Rewrites DiT checkpoints between the layouts in use: Wan original, diffusers, ShotStream ``.pt`` and our
safetensors; LoRA adapters are merged into their base on the way.

Reading and checking are ``model/state_dicts``' work; this file finds out the model's sizes, writes, and reports.

"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shotstream.runtime.config import TINY, WAN_1_3B, DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.checkpoint_files import resolve_weights
from shotstream.runtime.model.state_dicts import (
    check_dit,
    content_hash,
    dit_shapes,
    load_dit,
    merge_lora,
    read_checkpoint,
    save_dit,
    wan_dit_to_diffusers,
    whole_file,
    write_safetensors,
)

log = logging.getLogger(__name__)

LAYOUTS = ("wan", "diffusers", "shotstream-pt", "shotstream")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Progress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all)."""

_WEIGHTS, _CONFIG = "diffusion_pytorch_model.safetensors", "config.json"
_STEPS = 3


@dataclass(frozen=True)
class ConvertReport:
    """What was read and written. ``sha256`` is that of the tensors, the same in every layout with the same dtype."""

    source: Path
    source_layout: str
    path: Path
    layout: str
    tensors: int
    parameters: int
    dtype: str
    sha256: str


def convert(
    src: str | Path,
    dst: str | Path,
    to: str,
    *,
    config: DiTConfig | None = None,
    role: str = "generator",
    base: str | Path | None = None,
    lora_scale: float = 1.0,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> ConvertReport:
    """Read ``src`` in whatever layout it has and write it to ``dst`` as ``to``.

    ``to``: ``wan`` (a ``.safetensors`` file, or a folder that also gets Wan's ``config.json``), ``diffusers`` (a
    folder), ``shotstream-pt`` (``{"generator": {"model.<key>": ...}}``) or ``shotstream`` (our safetensors). ``base``:
    the checkpoint that a LoRA-only ``src`` belongs to. ``role``: which network of a training checkpoint. ``config``
    is needed only where neither the file nor its ``config.json`` nor the shapes tell the sizes. ``dtype`` None keeps
    the numbers as they are. Raises ``UserError``; an existing ``dst`` is replaced only when the new one is whole.
    """
    if to not in LAYOUTS:
        raise UserError(f"unknown layout '{to}'; there is {', '.join(LAYOUTS)}")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"unknown number format '{dtype}'; there is {', '.join(DTYPES)}")
    tell = progress or (lambda *_: None)
    tell("reading", 0, _STEPS)
    found = read_checkpoint(src, role)
    tensors = found.tensors
    layout = found.layout
    stored = found.config
    if layout == "lora":
        if base is None:
            raise UserError(f"{found.path} holds LoRA adapters alone; name the base checkpoint that they belong to")
        root = read_checkpoint(base, role)
        stored = root.config
        config = config or stored or find_config(root.path, root.tensors)
        tensors = merge_lora(load_dit(base, config, role=role), tensors, lora_scale)
    config = config or stored or find_config(found.path, tensors)
    check_dit(tensors, config, str(found.path))
    if dtype is not None:
        tensors = {key: value.to(DTYPES[dtype]) for key, value in tensors.items()}
    tell("writing", 1, _STEPS)
    path = Path(dst)
    if path.resolve() == found.path.resolve():
        raise UserError(f"{path} would overwrite what is being read; choose another name")
    written, digest = _write(path, tensors, config, to)
    tell("checking", 2, _STEPS)
    _verify(written, config, digest)
    tell("done", _STEPS, _STEPS)
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in tensors.values()})
    parameters = sum(value.numel() for value in tensors.values())
    return ConvertReport(found.path, layout, written, to, len(tensors), parameters, "+".join(kinds), digest)


def _write(path: Path, tensors: Mapping[str, torch.Tensor], config: DiTConfig, to: str) -> tuple[Path, str]:
    """Write one layout; returns the weights file and the tensors' hash."""
    if to == "shotstream":
        target = path / "dit.safetensors" if path.is_dir() else path
        return target, save_dit(target, tensors, config)
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    if to == "shotstream-pt":
        target = path / "model.pt" if path.is_dir() else path
        with whole_file(target) as partial:
            torch.save({"generator": {f"model.{key}": value for key, value in plain.items()}}, partial)
        return target, content_hash(plain)
    as_folder = to == "diffusers" or path.suffix != ".safetensors"
    if to == "diffusers" and path.suffix:
        raise UserError(f"the diffusers layout is a folder with {_WEIGHTS} and {_CONFIG}; {path} looks like a file")
    target = path / _WEIGHTS if as_folder else path
    renamed = wan_dit_to_diffusers(plain) if to == "diffusers" else plain
    write_safetensors(target, renamed, {"format": "pt"})
    if as_folder:
        settings = diffusers_settings(config) if to == "diffusers" else wan_settings(config)
        (path / _CONFIG).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    return target, content_hash(plain)


def _verify(path: Path, config: DiTConfig, digest: str) -> None:
    """Read back what was written: a full disk or a failing one shows here and not at the next start."""
    if content_hash(load_dit(path, config)) != digest:
        raise UserError(f"{path} does not read back as it was written; the disk may be faulty")


# ------------------------------------------------------------------------------------------------- config


def wan_settings(config: DiTConfig) -> dict[str, Any]:
    """Wan's ``config.json`` of this model."""
    return {
        "_class_name": "WanModel",
        "model_type": "t2v",
        "dim": config.dim,
        "eps": config.eps,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "in_dim": config.channels,
        "num_heads": config.heads,
        "num_layers": config.layers,
        "out_dim": config.channels,
        "text_dim": config.text_dim,
        "text_len": config.text_len,
    }


def diffusers_settings(config: DiTConfig) -> dict[str, Any]:
    """``config.json`` of diffusers' ``WanTransformer3DModel``."""
    return {
        "_class_name": "WanTransformer3DModel",
        "attention_head_dim": config.head_dim,
        "cross_attn_norm": True,
        "eps": config.eps,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "in_channels": config.channels,
        "num_attention_heads": config.heads,
        "num_layers": config.layers,
        "out_channels": config.channels,
        "patch_size": list(config.patch),
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": config.text_dim,
    }


def find_config(path: Path, tensors: Mapping[str, torch.Tensor]) -> DiTConfig:
    """The sizes of a DiT with Wan keys: from a ``config.json`` beside it, else a known model of these shapes.

    Shapes tell everything but heads and text length; a width that no known model has is taken to have heads of 128,
    as every Wan model, and said so in the log.
    """
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    for known in (WAN_1_3B, TINY):
        if shapes == dit_shapes(known):
            return known
    try:
        patch = shapes["patch_embedding.weight"]
        values = DiTConfig(
            dim=patch[0],
            heads=max(1, patch[0] // 128),
            ffn_dim=shapes["blocks.0.ffn.0.weight"][0],
            layers=1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("blocks.")),
            freq_dim=shapes["time_embedding.0.weight"][1],
            channels=patch[1],
            patch=(patch[2], patch[3], patch[4]),
            text_dim=shapes["text_embedding.0.weight"][1],
        )
    except (KeyError, IndexError) as error:
        raise UserError(f"{path} is not a whole DiT: it lacks {error}") from error
    settings = resolve_weights(path).parent / _CONFIG
    if settings.is_file():
        return _from_settings(settings, values)
    log.warning("%s: no config.json beside it; %d heads of 128 are assumed", path, values.heads)
    return values


def _from_settings(path: Path, shapes: DiTConfig) -> DiTConfig:
    """Heads, text length and eps from Wan's or diffusers' ``config.json``; the rest stays as the shapes say."""
    try:
        values = json.loads(path.read_text("utf-8"))
        heads = values.get("num_heads") or values["num_attention_heads"]
        return replace(
            shapes, heads=heads, text_len=values.get("text_len", shapes.text_len), eps=values.get("eps", shapes.eps)
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not describe a Wan transformer ({error})") from error
