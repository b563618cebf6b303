"""The ``wan-1.3b`` preset: ShotStream's released student with the Wan VAE (or TAEHV) and umT5-XXL, and its memory plan.

It finds files, refuses early what cannot fit, loads and puts in place; the parts themselves live in ``model/``,
``decoders/`` and ``text/``. Weights come from a folder as ``shotstream fetch wan-1.3b`` makes it, or are random.

"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shotstream.runtime.config import WAN_1_3B, DiTConfig
from shotstream.runtime.decoders.common import SPACE_FACTOR, TIME_FACTOR
from shotstream.runtime.decoders.taehv import NAME as TAEHV
from shotstream.runtime.decoders.taehv import Taehv, TaehvConfig, load_taehv, parameter_count, random_taehv
from shotstream.runtime.decoders.wan_vae import NAME as WAN_VAE
from shotstream.runtime.decoders.wan_vae import PARAMETERS as VAE_PARAMETERS
from shotstream.runtime.decoders.wan_vae import WanVAE, WanVAEConfig, WanVAEOptions, load_wan_vae, random_wan_vae
from shotstream.runtime.errors import UserError
from shotstream.runtime.fetch import default_folder, known_sha256
from shotstream.runtime.model.state_dicts import dit_shapes, load_dit, placed
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.plugins import ModelParts, ModelRequest, Registry, TextEncoder
from shotstream.runtime.text.umt5 import PARAMETERS as UMT5_PARAMETERS
from shotstream.runtime.text.umt5 import load_umt5

PRESET = "wan-1.3b"
# Where each part may lie in the folder: as fetched, as the reference's scripts put it, flat, or converted by us.
_PLACES: Mapping[str, tuple[str, ...]] = {
    "dit": ("dit.safetensors", "ShotStream/shotstream_merged.pt", "ckpts/shotstream_merged.pt", "shotstream_merged.pt"),
    "vae": ("Wan2.1-T2V-1.3B/Wan2.1_VAE.pth", "wan_models/Wan2.1_VAE.pth", "Wan2.1_VAE.pth", "vae"),
    "text": (
        "Wan2.1-T2V-1.3B/models_t5_umt5-xxl-enc-bf16.pth",
        "wan_models/models_t5_umt5-xxl-enc-bf16.pth",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "text_encoder",
    ),
    "tokenizer": (
        "Wan2.1-T2V-1.3B/google/umt5-xxl",
        "wan_models/google/umt5-xxl",
        "google/umt5-xxl",
        "tokenizer",
    ),
    TAEHV: ("taehv/taew2_1.safetensors", "taew2_1.safetensors", "taehv/taew2_1.pth", "taew2_1.pth"),
}
_OPTIONS = {*_PLACES, "lora", "text_device", "decoder"}
_DECODERS = (WAN_VAE, TAEHV)


@dataclass(frozen=True)
class WanSizes:
    """Sizes of a preset of this family; the defaults are the released model's."""

    config: DiTConfig = WAN_1_3B
    vae: WanVAEConfig = field(default_factory=WanVAEConfig)
    vae_options: WanVAEOptions = field(default_factory=WanVAEOptions)
    taehv: TaehvConfig = field(default_factory=TaehvConfig)
    """Of random weights; a file brings its own sizes."""
    latent_size: tuple[int, int] = (60, 104)
    """Height and width of a latent frame; a pixel frame is eight times that: 480 x 832."""
    vae_parameters: int = VAE_PARAMETERS
    text_parameters: int = UMT5_PARAMETERS

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a pixel frame."""
        return self.latent_size[0] * SPACE_FACTOR, self.latent_size[1] * SPACE_FACTOR


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes a loaded runtime holds on its device, by item; one session, one shot in work."""

    items: Mapping[str, int]

    @property
    def total(self) -> int:
        """All items together, in bytes."""
        return sum(self.items.values())

    def sentence(self) -> str:
        """``17.9 GB: text encoder 11.4, caches 7.8, ...``, largest first."""
        parts = sorted(self.items.items(), key=lambda item: -item[1])
        return f"{self.total / 1e9:.1f} GB: " + ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts)


def memory_plan(
    sizes: WanSizes,
    dtype: torch.dtype = torch.bfloat16,
    captions: int = 7,
    text_on_device: bool = True,
    decoder: str = WAN_VAE,
) -> MemoryPlan:
    """What this preset needs. ``captions``: text keys and values kept, six of history and one.

    Weights, caches, text keys and TAEHV's stream follow from the sizes exactly. Two items are estimates: what the Wan
    VAE's causal convolutions remember (two frames each, seven or so at every resolution), and the working space, i.e.
    two feed-forward activations of a context pass or what lives at the decoder's widest place (``_decoder_peak``).
    """
    c, byte = sizes.config, dtype.itemsize
    height, width = sizes.latent_size
    tokens = c.tokens_per_frame(height, width)
    weights = sum(math.prod(shape) for shape in dit_shapes(c).values())
    pixels = sizes.frame_size[0] * sizes.frame_size[1]
    per_token = 2 * c.layers * c.dim * byte
    items = {
        "transformer": weights * byte,
        "key-value caches": (c.context_frames + c.local_frames) * tokens * per_token,
        "caption keys and values": captions * c.text_len * per_token,
        "video codec": (parameter_count(sizes.taehv) if decoder == TAEHV else sizes.vae_parameters) * byte,
        "working space (estimated)": max(
            2 * c.context_frames * tokens * c.ffn_dim * byte, _decoder_peak(sizes, decoder) * byte
        ),
    }
    if decoder == TAEHV:
        items["decoder stream"] = sizes.taehv.stream_values(height, width) * byte
    else:
        items["decoder stream (estimated)"] = _stream_values(sizes.vae, pixels) * byte
    if text_on_device:
        items["text encoder"] = sizes.text_parameters * byte
    return MemoryPlan(items)


def _stream_values(vae: WanVAEConfig, pixels: int) -> int:
    """Values that the decoder's causal convolutions keep: seven at each resolution, two frames each."""
    return 2 * 7 * sum(vae.base_dim * width * pixels // 4**level for level, width in enumerate(vae.dim_mult))


def _decoder_peak(sizes: WanSizes, decoder: str) -> int:
    """Values that live at a decoder's widest place, beside its stream; tests count them on the meta device.

    Wan VAE: eight full-size maps of the narrowest width over a call's frames, some of them in float32 in the norms.
    TAEHV: a whole chunk's last map before and after its convolution, and the one that was doubled to it.
    """
    pixels = sizes.frame_size[0] * sizes.frame_size[1]
    if decoder == TAEHV:
        frames = TIME_FACTOR * sizes.config.chunk_frames
        return 9 * frames * pixels * sizes.taehv.decoder_widths[2] // 4
    return 8 * TIME_FACTOR * sizes.vae_options.latents_per_call * pixels * sizes.vae.base_dim


def check_memory(plan: MemoryPlan, device: torch.device) -> None:
    """Refuse with a sentence what would end in an out-of-memory error minutes later."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    elif "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # all of it: the rest is mostly file cache
    else:
        return
    if plan.total > free:
        raise UserError(f"{device} has {free / 1e9:.1f} GB, but the model needs {plan.sentence()}")


class RandomTextEncoder:
    """Stand-in for umT5-XXL when weights are random: reproducible rows from a caption's words, no model behind it."""

    def __init__(self, text_len: int, text_dim: int, device: torch.device, dtype: torch.dtype) -> None:
        self.text_len, self.text_dim = text_len, text_dim
        self._device, self._dtype = device, dtype

    def tokens(self, caption: str) -> int:
        """One row per word and one for the end."""
        return len(_words(caption)) + 1

    def encode(self, captions: list[str]) -> Tensor:
        """Rows ``[N, text_len, text_dim]``: a word is always the same row, rows behind the caption are zero."""
        out = torch.zeros(len(captions), self.text_len, self.text_dim)
        for i, caption in enumerate(captions):
            words = [*_words(caption), "</s>"]
            if len(words) > self.text_len:
                raise UserError(f"a caption of {len(words)} words does not fit {self.text_len} rows; shorten it")
            for j, word in enumerate(words):
                seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
                out[i, j] = torch.randn(self.text_dim, generator=torch.Generator().manual_seed(seed))
        return out.to(self._device, self._dtype)


def _words(caption: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", caption.lower())


class WanPlugin:
    """Registers the preset, its codec and its text encoder; nothing heavy is imported before one is asked for."""

    name = "wan"

    def __init__(self, sizes: WanSizes | None = None) -> None:
        self.sizes = sizes or WanSizes()

    def build(self, registry: Registry) -> None:
        """Register ``wan-1.3b``, ``wan-vae``, ``taehv`` and ``umt5-xxl``."""
        registry.register("model", PRESET, self.load)
        registry.register("decoder", WAN_VAE, self.load_decoder)
        registry.register("decoder", TAEHV, self.load_taehv)
        registry.register("text", "umt5-xxl", self.load_text)

    def load(self, request: ModelRequest) -> ModelParts:
        """The whole model on the device. Options: paths for ``dit``, ``lora``, ``vae``, ``taehv``, ``text``,
        ``tokenizer``; ``decoder`` (``wan-vae`` or ``taehv``, which then is the only one loaded and planned for); and
        ``text_device`` (``cpu`` leaves the text encoder's 11.4 GB off the GPU). ``UserError`` names what is wrong."""
        _check_options(request)
        chosen = _decoder(request)
        text_device = torch.device(request.options.get("text_device", request.device))
        # With random weights there is no text encoder; on a CPU its file is mapped and may leave memory again.
        counted = request.weights != "random" and text_device == request.device and text_device.type != "cpu"
        plan = memory_plan(self.sizes, request.dtype, text_on_device=counted, decoder=chosen)
        check_memory(plan, request.device)
        transformer = self._transformer(request)
        return ModelParts(
            name=PRESET,
            config=self.sizes.config,
            transformer=transformer,
            text=self.load_text(request),
            decoder=self.load_taehv(request) if chosen == TAEHV else self.load_decoder(request),
            weights_hash=self._hash(request),
            latent_shape=(self.sizes.config.channels, *self.sizes.latent_size),
            frame_size=self.sizes.frame_size,
            default_chunks=self.sizes.config.local_frames // self.sizes.config.chunk_frames,
            decoder_name=chosen,
        )

    def load_decoder(self, request: ModelRequest) -> WanVAE:
        """The Wan VAE alone."""
        options = self.sizes.vae_options
        if request.weights == "random":
            return random_wan_vae(self.sizes.vae, request.seed, request.device, request.dtype, options)
        return load_wan_vae(_place(request, "vae"), request.device, request.dtype, options)

    def load_taehv(self, request: ModelRequest) -> Taehv:
        """TAEHV alone; its file is looked for where ``shotstream fetch taehv`` puts it, then in the preset's folder."""
        if request.weights == "random":
            return random_taehv(self.sizes.taehv, request.seed, request.device, request.dtype)
        return load_taehv(_place(request, TAEHV), request.device, request.dtype)

    def load_text(self, request: ModelRequest) -> TextEncoder:
        """umT5-XXL alone; with random weights its stand-in."""
        device = torch.device(request.options.get("text_device", request.device))
        if request.weights == "random":
            config = self.sizes.config
            return RandomTextEncoder(config.text_len, config.text_dim, device, request.dtype)
        # On the CPU the file's bf16 stays mapped; elsewhere it takes the request's number format.
        dtype = None if device.type == "cpu" else request.dtype
        encoder = load_umt5(_place(request, "text"), _place(request, "tokenizer"), device, dtype)
        if encoder.text_dim != self.sizes.config.text_dim:
            raise UserError(
                f"the text encoder gives rows of {encoder.text_dim}, the transformer reads "
                f"{self.sizes.config.text_dim}; the files do not belong together"
            )
        encoder.text_len = self.sizes.config.text_len
        return encoder

    def _transformer(self, request: ModelRequest) -> Transformer:
        config = self.sizes.config
        if request.weights == "random":
            return random_transformer(config, request.seed, request.device, request.dtype)
        with torch.device("meta"):
            transformer = Transformer(config)
        base, lora = _place(request, "dit"), request.options.get("lora")
        sd = load_dit(lora, config, base=base) if lora else load_dit(base, config)
        transformer.load_state_dict(placed(sd, request.device, request.dtype), assign=True)
        return transformer.eval().requires_grad_(False)

    def _hash(self, request: ModelRequest) -> str:
        """Identity of the weights: the files' hashes (from the fetch record where it still holds), or the seed."""
        digest = hashlib.sha256(self.sizes.config.to_json().encode())
        small = _decoder(request) == TAEHV
        if request.weights == "random":
            digest.update(f"random {request.seed} {self.sizes.taehv if small else self.sizes.vae}".encode())
            return digest.hexdigest()
        root = _root(request)
        for part in ("dit", TAEHV if small else "vae", "text"):
            path = _place(request, part)
            path = path if path.is_file() else next(p for p in sorted(path.iterdir()) if p.suffix != ".json")
            inside = path.is_relative_to(root)
            folder, target = (root, path.relative_to(root)) if inside else (path.parent, Path(path.name))
            digest.update(f"{part} {known_sha256(folder, target.as_posix())}".encode())
        if lora := request.options.get("lora"):
            digest.update(f"lora {known_sha256(Path(lora).parent, Path(lora).name)}".encode())
        return digest.hexdigest()


def random_transformer(config: DiTConfig, seed: int, device: torch.device | str, dtype: torch.dtype) -> Transformer:
    """A transformer with random weights made on the device itself, so that the real size takes seconds on a GPU."""
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        transformer = Transformer(config)
    return transformer.to(dtype).eval().requires_grad_(False)


def _check_options(request: ModelRequest) -> None:
    unknown = sorted(set(request.options) - _OPTIONS)
    if unknown:
        raise UserError(f"'{PRESET}' has no option {', '.join(unknown)}; it has {', '.join(sorted(_OPTIONS))}")


def _decoder(request: ModelRequest) -> str:
    """The decoder asked for; one that is not ours is the runtime's to make, and then ours is loaded as usual."""
    if request.decoder in _DECODERS:
        return str(request.decoder)
    name = str(request.options.get("decoder", WAN_VAE))
    if name not in _DECODERS:
        raise UserError(f"'{PRESET}' has no decoder '{name}'; it has {', '.join(_DECODERS)}")
    return name


def _root(request: ModelRequest) -> Path:
    return default_folder(PRESET) if request.weights == "default" else Path(request.weights)


def _place(request: ModelRequest, part: str) -> Path:
    """Where a part is: as given in the options, or at one of its usual places in the weights folder."""
    options: Mapping[str, Any] = request.options
    if part in options:
        return Path(options[part])
    model, roots = PRESET, [_root(request)]
    if part == TAEHV:  # a model of its own to `shotstream fetch`
        model = TAEHV
        if request.weights == "default":
            roots.insert(0, default_folder(TAEHV))
    if not any(root.is_dir() for root in roots):
        raise UserError(f"there are no weights of '{model}' at {roots[0]}; run: shotstream fetch {model}")
    for root in roots:
        for place in _PLACES[part]:
            if (root / place).exists():
                return root / place
    raise UserError(f"{roots[0]} lacks {_PLACES[part][1]} ({part}); run: shotstream fetch {model} --to {roots[0]}")
