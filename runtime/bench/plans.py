"""Memory plans of our models, from their sizes or the headers of their files. Nothing is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from shotstream.runtime.config import TINY, DiTConfig
from shotstream.runtime.decoders.common import TIME_FACTOR
from shotstream.runtime.decoders.taehv import NAME as TAEHV
from shotstream.runtime.decoders.tiny_vae import TinyVAE, TinyVAEConfig
from shotstream.runtime.decoders.wan_vae import NAME as WAN_VAE
from shotstream.runtime.errors import UserError
from shotstream.runtime.memory import MemoryWatch, Plan, PlanItem, check_room
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.plugins import ModelRequest
from shotstream.runtime.presets import TINY_LATENT, weights_file
from shotstream.runtime.runtime import RuntimeOptions, assemble_registry, checked_device
from shotstream.runtime.text.tiny import TinyTextEncoder
from shotstream.runtime.wan import PRESET, WanSizes, memory_plan

CACHES = "key-value caches"
CAPTIONS = "caption keys and values"
KEPT_CAPTIONS = 7
"""Whose keys and values a session keeps at most: those of six remembered shots and of the running one."""
_ESTIMATED = " (estimated)"
_DECODER_MAPS, _BLOCK_MAPS = 4, 3
"""Feature maps of its finest stage that the tiny decoder holds at once, and that each block there adds, because what it
leaves for the next frame is a view: by torch's own count 60 MB with two blocks and 77 MB with three, in float32."""


def watch_memory(model: str, options: RuntimeOptions) -> MemoryWatch:
    """A watch with the model's plan, for right before the runtime is made; UserError if the plan does not fit."""
    device = checked_device(options.device)
    dtype = options.dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    given = dict(options.model_options or {})
    if options.decoder is not None:
        given["decoder"] = options.decoder
    plan = plan_for(model, ModelRequest(device, dtype, options.weights, options.weights_seed, given))
    if plan is not None:
        check_room(plan, device)
    _import_what_loading_imports(options)
    return MemoryWatch(device, plan)


def _import_what_loading_imports(options: RuntimeOptions) -> None:
    """Plugins, and torch's compiler, which the meta device brings in: some 200 MB that are not the model's."""
    assemble_registry(options.plugins)
    torch.randn(1, device="meta") / 2


def plan_for(model: str, request: ModelRequest) -> Plan | None:
    """The plan of a model by its name; None for models and decoders (the option `decoder`) of other plugins.

    Caches are those of the engine `eager`; one that keeps them in eight bits needs less. Raises UserError for weights
    files that are not there or cannot be read.
    """
    decoder = request.options.get("decoder")
    if model == "tiny" and decoder in (None, "tiny-vae"):
        return tiny_plan(request)
    return wan_plan(request) if model == PRESET and decoder in (None, WAN_VAE, TAEHV) else None


def wan_plan(request: ModelRequest, sizes: WanSizes | None = None) -> Plan:
    """Of the real model. On a CPU the text encoder's file is mapped and may leave memory again: it does not count."""
    text_device = torch.device(request.options.get("text_device", request.device))
    counted = request.weights != "random" and text_device == request.device and text_device.type != "cpu"
    decoder = request.options.get("decoder", WAN_VAE)
    items = memory_plan(sizes or WanSizes(), request.dtype, KEPT_CAPTIONS, counted, decoder).items
    return Plan(
        [PlanItem(name.removesuffix(_ESTIMATED), n, not name.endswith(_ESTIMATED)) for name, n in items.items()]
    )


def tiny_plan(request: ModelRequest) -> Plan:
    """Of the embedded model: weights as its files (or its configuration, when random) have them."""
    if request.weights == "random":
        with torch.device("meta"):
            values = {"dit": _values(Transformer(TINY)), "vae": _values(TinyVAE()), "text": _values(TinyTextEncoder())}
        config, codec = TINY, TinyVAEConfig()
    else:
        read = {part: _header(weights_file(request, part)) for part in ("dit", "vae", "text")}
        values = {part: count for part, (count, _) in read.items()}
        config, codec = DiTConfig.from_json(read["dit"][1]), TinyVAEConfig.from_json(read["vae"][1])
    byte = request.dtype.itemsize
    return Plan(
        [
            PlanItem("transformer", values["dit"] * byte),
            PlanItem("video codec", values["vae"] * byte),
            PlanItem("text encoder", values["text"] * torch.float32.itemsize),
            *session_items(config, TINY_LATENT, byte),
            PlanItem("decoder stream", _stream_values(codec, TINY_LATENT) * byte),
            PlanItem("working space", _working_values(config, codec, TINY_LATENT) * byte, exact=False),
        ]
    )


def session_items(config: DiTConfig, latent_size: tuple[int, int], byte: int) -> list[PlanItem]:
    """What a session of any transformer keeps. latent_size: height and width; byte: of one value."""
    per_token = 2 * config.layers * config.dim * byte
    frames = config.context_frames + config.local_frames
    return [
        PlanItem(CACHES, frames * config.tokens_per_frame(*latent_size) * per_token),
        PlanItem(CAPTIONS, KEPT_CAPTIONS * config.text_len * per_token),
    ]


def _values(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.state_dict().values())


def _header(path: Path) -> tuple[int, str]:
    """How many values a safetensors file holds, and the configuration in its metadata; no tensor is read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            shapes: list[Sequence[int]] = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}); fetch it again") from error
    if "config" not in metadata:
        raise UserError(f"{path} carries no configuration in its metadata; it was not written by shotstream")
    return sum(torch.Size(shape).numel() for shape in shapes), metadata["config"]


def _stream_values(codec: TinyVAEConfig, latent_size: tuple[int, int]) -> int:
    """What a decoder remembers of the last frame: a map per hidden unit, at one, two and four times the latent.

    Where noise is reduced over time, the latents too.
    """
    cells = latent_size[0] * latent_size[1]
    shown = 0 if codec.steady is None else codec.latent_channels * cells
    return shown + sum(sum(units) * cells * 4**stage for stage, units in enumerate(codec.decoder_hidden))


def _working_values(config: DiTConfig, codec: TinyVAEConfig, latent_size: tuple[int, int]) -> int:
    """The larger of two feed-forward activations of a context pass, and what a chunk's decoding holds at once."""
    cells = latent_size[0] * latent_size[1]
    tokens = config.context_frames * config.tokens_per_frame(*latent_size)
    frames = TIME_FACTOR * config.chunk_frames
    maps = _DECODER_MAPS + _BLOCK_MAPS * codec.decoder_blocks[-1]
    return max(2 * tokens * config.ffn_dim, maps * frames * codec.decoder_channels[-1] * cells * 16)
