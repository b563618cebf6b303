"""The public reference's own loop, imported from a folder and watched from outside. Nothing of it is in this project.

No package of the reference's is needed: those that its loop only imports are replaced by empty ones, text encoder and
VAE by random tensors, and without flash-attn its fall-back on torch's attention runs.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError

CHUNKS = 7
"""Of a shot; the reference's loop has its 21 latent frames written into it."""
FILES = ("pipeline/causal_inference_ar.py", "wan/modules/causal_model.py", "wan/modules/attention.py", "model/base.py")
"""What is run of the reference; their hash says which version it was."""


@dataclass(frozen=True)
class Setting:
    """What is played. shots: the first is not counted. latent: height and width."""

    config: DiTConfig
    latent: tuple[int, int]
    device: torch.device
    dtype: torch.dtype
    chunks: int
    shots: int


@dataclass
class Lap:
    """One piece of work: `context`, `denoise` or `clean`, of which chunk, and the clock around it."""

    part: str
    chunk: int
    begin: Any
    end: Any


@dataclass
class Shot:
    """Everything that went into a shot of the reference and came out of it, and when."""

    text_NLE: Tensor
    begin: Any
    context_BFCHW: Tensor | None = None
    flags: list[int] = field(default_factory=list)
    noise: list[Tensor] = field(default_factory=list)
    renoise: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    laps: list[Lap] = field(default_factory=list)
    end: Any = None


class Clock:
    """CUDA events, or the wall clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms(self, begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) if self.cuda else 1000 * (end - begin)


class Watcher:
    """Sees every pass of the reference's generator from outside: what went in, what came out, when."""

    def __init__(self, clock: Clock, steps: int) -> None:
        self.clock, self.steps = clock, steps
        self.shots: list[Shot] = []
        self._began: Any = None

    def begin_shot(self, text_NLE: Tensor) -> None:
        self.shots.append(Shot(text_NLE, self.clock.now()))

    def end_shot(self) -> None:
        self.shots[-1].end = self.clock.now()

    def before(self, _module: nn.Module, _args: Any, _kwargs: Any) -> None:
        self._began = self.clock.now()

    def after(self, _module: nn.Module, _args: Any, given: dict[str, Any], result: tuple[Tensor, Tensor]) -> None:
        ended, shot, z_BFCHW = self.clock.now(), self.shots[-1], given["noisy_image_or_video"]
        if given["kv_cache"] is None:
            shot.context_BFCHW, shot.flags = z_BFCHW, given["shot_flags_for_rope"].tolist()
            shot.laps.append(Lap("context", -1, self._began, ended))
            return
        chunk, step = divmod(len(shot.laps) - 1, self.steps + 1)
        shot.laps.append(Lap("denoise" if step < self.steps else "clean", chunk, self._began, ended))
        if step == 0:
            shot.noise.append(z_BFCHW)
        if step == self.steps - 1:
            shot.latents.append(result[1])

    def attach(self, pipeline: Any) -> None:
        """Hook into its generator, and into its scheduler for the noise that is mixed in between steps."""
        pipeline.generator.register_forward_pre_hook(self.before, with_kwargs=True)
        pipeline.generator.register_forward_hook(self.after, with_kwargs=True)
        add_noise = pipeline.scheduler.add_noise

        def noted(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
            self.shots[-1].renoise.append(noise)
            return add_noise(x0, noise, t)

        pipeline.scheduler.add_noise = noted


def import_reference(folder: Path, setting: Setting) -> Any:
    """Its module ``pipeline.causal_inference_ar``; UserError if the folder is not the reference.

    Its packages are entered by path, since their ``__init__`` files import training, video and web packages.
    """
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise UserError(
            f"{folder} is not a checkout of the reference, it has no {missing[0]}; "
            "`git clone https://github.com/KlingAIResearch/ShotStream` makes one"
        )

    class Model(nn.Module):
        """In place of diffusers': random weights where the reference would load them."""

        @classmethod
        def from_pretrained(cls, _path: str, **options: Any) -> nn.Module:
            c = setting.config
            sizes = {"dim": c.dim, "ffn_dim": c.ffn_dim, "num_heads": c.heads, "num_layers": c.layers}
            sizes |= {"freq_dim": c.freq_dim, "text_dim": c.text_dim, "text_len": c.text_len, "in_dim": c.channels}
            with setting.device:
                return cast(Any, cls)(**sizes, out_dim=c.channels, eps=c.eps, **options)

    own: dict[str, dict[str, Any]] = {
        name: {"__path__": [str(folder.joinpath(*name.split(".")))]}
        for name in ("wan", "wan.modules", "utils", "model", "pipeline")
    }
    unused: dict[str, dict[str, Any]] = {
        "wan.modules.tokenizers": {"HuggingfaceTokenizer": None},
        "wan.modules.vae": {"_video_vae": None},
        "wan.modules.t5": {"umt5_xxl": None},
    }
    foreign: dict[str, dict[str, Any]] = {
        "diffusers.configuration_utils": {"ConfigMixin": type("ConfigMixin", (), {}), "register_to_config": _as_it_is},
        "diffusers.models.modeling_utils": {"ModelMixin": Model},
        "einops": {"rearrange": rearrange, "repeat": None},
        "peft": {},
        "flask": {"config": None},
    }
    for name, content in (own | unused | foreign).items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(content)
    try:
        return importlib.import_module("pipeline.causal_inference_ar")
    except Exception as error:
        raise UserError(
            f"the reference in {folder} cannot be imported ({type(error).__name__}: {error}); "
            "this script knows its version of 2026-03-31"
        ) from error
    finally:
        for name in foreign:  # others in this process may look for the real ones
            del sys.modules[name]


def _as_it_is(function: Any) -> Any:
    return function


def rearrange(x: Tensor, pattern: str) -> Tensor:
    """As einops', for what the loop asks of it: axes in another order, axes of length one dropped and added."""
    left, right = (side.split() for side in pattern.split("->"))
    names = [name for name in left if name != "1"]
    kept = x.reshape([size for size, name in zip(x.shape, left, strict=True) if name != "1"])
    sizes = iter((kept := kept.permute([names.index(name) for name in right if name != "1"])).shape)
    return kept.reshape([1 if name == "1" else next(sizes) for name in right])


def choose_attention(setting: Setting) -> str:
    """What the imported reference attends with, by name. Its cross-attention calls flash-attn without a fall-back.

    Its fall-back computes in bfloat16 unless told otherwise, and flash-attn has no float32.
    """
    found: Any = sys.modules["wan.modules.attention"]
    if setting.device.type == "cpu" or setting.dtype == torch.float32:
        found.FLASH_ATTN_2_AVAILABLE = found.FLASH_ATTN_3_AVAILABLE = False
    if found.FLASH_ATTN_3_AVAILABLE:
        return "flash-attn 3"
    if found.FLASH_ATTN_2_AVAILABLE:
        return "flash-attn 2"

    def fall_back(q: Tensor, k: Tensor, v: Tensor, k_lens: None = None) -> Tensor:
        return found.attention(q, k, v, k_lens=k_lens, dtype=setting.dtype)

    for name, function in (("wan.modules.causal_model", "attention"), ("wan.modules.model", "flash_attention")):
        setattr(sys.modules[name], function, fall_back)
    return "torch's scaled_dot_product_attention, its fall-back without flash-attn"


class NoText(nn.Module):
    """In place of its text encoder: random rows."""

    def __init__(self, setting: Setting, watcher: Watcher) -> None:
        super().__init__()
        self.setting, self.watcher = setting, watcher

    def forward(self, text_prompts: Sequence[str]) -> dict[str, Tensor]:
        s = self.setting
        shape = (len(text_prompts), s.config.text_len, s.config.text_dim)
        text_NLE = torch.randn(shape, device=s.device, dtype=s.dtype)
        self.watcher.begin_shot(text_NLE)
        return {"prompt_embeds": text_NLE}


class NoVAE(nn.Module):
    """In place of its VAE: random latents, and frames of one pixel."""

    def __init__(self, setting: Setting, watcher: Watcher) -> None:
        super().__init__()
        self.setting, self.watcher = setting, watcher
        self.model = nn.Module()
        self.model.encoder = nn.Module()
        self.model.encoder.conv1 = nn.Conv1d(1, 1, 1)  # the loop asks it for device and number format

    def encode_to_latent(self, frames_NC1HW: Tensor) -> Tensor:
        return torch.randn(len(frames_NC1HW), 1, self.setting.config.channels, *self.setting.latent)

    def decode_to_pixel(self, z_BFCHW: Tensor, use_cache: bool) -> Tensor:
        self.watcher.end_shot()
        return torch.zeros(1, 4 * z_BFCHW.shape[1] - 3, 3, 1, 1, device=z_BFCHW.device)


class ShortNoise:
    """The module torch for the loop, whose noise always has 21 latent frames: here it has fewer."""

    def __init__(self, frames: int) -> None:
        self._frames = frames

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def randn(self, shape: Sequence[int]) -> Tensor:
        return torch.randn([shape[0], self._frames, *shape[2:]])


def play_reference(folder: Path, setting: Setting) -> tuple[list[Shot], dict[str, Tensor], str]:
    """Its loop over all shots: what was seen and when, its weights, and which attention ran.

    Options are those of its ``tools/train/config/4_dmd_long.yaml`` and ``default_config.yaml``. What it prints at every
    step is not shown; that it waits for the device to do so is part of its times.
    """
    loop = import_reference(folder, setting)
    attention = choose_attention(setting)
    config = setting.config
    watcher = Watcher(Clock(setting.device), len(config.nominal_steps))
    base: Any = sys.modules["model.base"]
    base.WanTextEncoder = lambda: NoText(setting, watcher)
    base.WanVAEWrapper = lambda: NoVAE(setting, watcher)
    if setting.chunks != CHUNKS:
        loop.torch = ShortNoise(setting.chunks * config.chunk_frames)
    options = types.SimpleNamespace(
        timestep_shift=config.shift, denoising_step_list=list(config.nominal_steps), warp_denoising_step=True,
        num_frame_per_block=config.chunk_frames, max_context_frames=config.context_frames, dynamic_sample_frames=True,
        change_rope=True, multi_caption=True, context_noise=0,
    )  # fmt: skip
    story = {
        "global_captions": [["A story."]],
        "shots_captions": [[[[f"Shot {number}."]] for number in range(setting.shots)]],
        "shot_flag": list(range(setting.shots)),
    }
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        pipeline = loop.CausalInferenceArPipeline(options, setting.device).to(setting.dtype)
        pipeline.frame_seq_length = config.tokens_per_frame(*setting.latent)  # 1560 in the loop
        weights = pipeline.generator.model.state_dict()
        enliven(weights)
        watcher.attach(pipeline)
        pipeline.inference(story)
    return watcher.shots, weights, attention


def enliven(weights: dict[str, Tensor]) -> None:
    """Random numbers where an untrained model has zeros, which would hide mistakes: biases, gates, the last layer."""
    for key, tensor in weights.items():
        if tensor.ndim == 1 or key == "head.head.weight":
            tensor += torch.randn_like(tensor) * (0.1 if tensor.ndim == 1 else tensor.shape[1] ** -0.5)
