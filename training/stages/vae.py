"""The stage that trains the codec of the `tiny` preset (`shotstream.runtime.decoders.tiny_vae`) on world renders.

A stage is a function of its recipe and an output folder: it can be killed at any moment and run again, and goes on
from its last checkpoint to the same weights, bit for bit on the same machine and thread count (unless the recipe ends
it by the clock). The folder holds `checkpoint.pt`, `log.jsonl`, `sheet_*.png` and at the end `vae.safetensors`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shotstream.runtime.decoders.common import TIME_FACTOR
from shotstream.runtime.decoders.tiny_vae import MemoryBlock, TinyVAE, TinyVAEConfig, fold_time
from shotstream.runtime.errors import UserError
from shotstream.training.data.clips import Clip, ClipPool, ClipSource, PoolConfig, held_out_clip, to_pixels, world_clip
from shotstream.training.stages.curves import write_curves
from shotstream.training.stages.optim import MuonAdamW, build_optimizer
from shotstream.training.stages.vae_checks import (
    Statistics,
    align_latents,
    clip_psnr,
    measure_latents,
    sample_sheet,
    statistics_clips,
)
from shotstream.training.stages.vae_idle import without_idle_units

logger = logging.getLogger(__name__)

_VALIDATION_SEED = 1_000_000_000


@dataclasses.dataclass(frozen=True)
class VAERecipe:
    """Everything that decides the outcome of the stage. Sizes are pixels at full resolution, rates per step.

    `crops` are pairs of (clips in the batch, frames of each), one drawn for every step. `minutes` ends training by
    the clock, learning-rate decay included, if that comes before `steps`. `start` is a codec that goes on learning.
    With `frozen_encoder` only its decoder does, and latents made earlier stay valid; else they drift, and in the end
    are turned back to what they were as far as a linear map can, so that a model of them has little to learn anew.
    Where `vae.decoder_blocks` has more than it, it gets new ones that change nothing at first; its other sizes are its
    own. With `idle_margin`, hidden units that stay as far below firing on all clips of `statistics` are left out in
    the end.
    """

    steps: int = 4000
    minutes: float | None = None
    start: str = ""
    frozen_encoder: bool = False
    idle_margin: float | None = None
    seed: int = 0
    threads: int = 2
    vae: TinyVAEConfig = dataclasses.field(default_factory=TinyVAEConfig)
    pool: PoolConfig = dataclasses.field(default_factory=PoolConfig)
    crop: int = 128
    crops: tuple[tuple[int, int], ...] = ((6, 5), (3, 9))
    lr: float = 2.5e-3
    adam_lr: float = 2.5e-4
    warmup: int = 30
    decay_fraction: float = 0.5
    gradient_weight: float = 0.5
    temporal_weight: float = 0.25
    square_weight: float = 0.0
    moving_weight: float = 3.0
    kl_weight: float = 1e-4
    noise_fraction: float = 0.5
    noise_sigma: float = 0.35
    clip_norm: float = 1.0
    bfloat16: bool = True
    checkpoint_every: int = 100
    evaluate_every: int = 250
    sheet_every: int = 500
    held_out_clips: int = 12
    statistics: Statistics = dataclasses.field(default_factory=Statistics)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> VAERecipe:
        """A recipe from plain yaml or json values; UserError for a name that does not exist."""
        values = dict(fields)
        for part, kind in (("vae", TinyVAEConfig), ("pool", PoolConfig), ("statistics", Statistics)):
            if isinstance(values.get(part), Mapping):
                values[part] = _build(kind, values[part], f"{part}.")
        return _build(cls, values, "")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def _build(kind: type[Any], values: Mapping[str, Any], prefix: str) -> Any:
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        names = ", ".join(prefix + name for name in unknown)
        raise UserError(f"The recipe of the VAE stage has no field {names}; it knows {', '.join(sorted(known))}.")
    return kind(**{name: _tuples(value) for name, value in values.items()})


# --- what a step is made of ----------------------------------------------------------------------------------------


def draw_crops(clips: Clip, recipe: VAERecipe, generator: torch.Generator) -> Tensor:
    """A batch [B, T, 3, crop, crop] of random places and stretches; the corner lies on the pooling grid."""

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    batch, frames = recipe.crops[below(len(recipe.crops))]
    pool, crop = recipe.vae.pool, recipe.crop
    chosen = []
    for _ in range(batch):
        clip = clips[below(len(clips))]
        t = below(clip.shape[0] - frames + 1)
        y = below((clip.shape[1] - crop) // pool + 1) * pool
        x = below((clip.shape[2] - crop) // pool + 1) * pool
        chosen.append(clip[t : t + frames, y : y + crop, x : x + crop])
    return to_pixels(np.stack(chosen))


def motion_weight(video_BTCHW: Tensor, moving: float) -> Tensor:
    """[B, T, 1, H, W]: `moving` where a pixel or its neighbour differs from the frame before or after, else 1."""
    change = (video_BTCHW.diff(dim=1).abs().amax(2, keepdim=True) > 0.06).float()
    changed = torch.maximum(F.pad(change, (0, 0, 0, 0, 0, 0, 1, 0)), F.pad(change, (0, 0, 0, 0, 0, 0, 0, 1)))
    near = F.max_pool2d(changed.flatten(0, 1), 3, stride=1, padding=1).view_as(changed)
    return 1 + (moving - 1) * near


def reconstruction_loss(made_BTCHW: Tensor, true_BTCHW: Tensor, recipe: VAERecipe) -> Tensor:
    """Absolute error of pixels, of spatial gradients and of changes in time, and squared error of pixels, which minds
    the worst ones; moving pixels count more."""
    weight = motion_weight(true_BTCHW, recipe.moving_weight)
    error = made_BTCHW - true_BTCHW
    share = weight / weight.mean()
    loss = (error.abs() * share).mean() + recipe.square_weight * (error.square() * share).mean()
    gradient = (error.diff(dim=-1).abs() * share[..., 1:]).mean()
    gradient = gradient + (error.diff(dim=-2).abs() * share[..., 1:, :]).mean()
    temporal = (error.diff(dim=1).abs() * share[:, 1:]).mean()
    return loss + recipe.gradient_weight * gradient + recipe.temporal_weight * temporal


def blur_latents(z_BFCHW: Tensor, recipe: VAERecipe, generator: torch.Generator) -> Tensor:
    """Add noise to some clips' latents, relative to the batch's spread: the decoder will be given generated latents,
    which are never perfect, and should clean them up."""
    batch = z_BFCHW.shape[0]
    noisy = torch.rand(batch, generator=generator) < recipe.noise_fraction
    sigma = torch.rand(batch, generator=generator) * recipe.noise_sigma * noisy
    spread = z_BFCHW.detach().std(dim=(0, 1, 3, 4))[:, None, None]
    return z_BFCHW + torch.randn(z_BFCHW.shape, generator=generator) * spread * sigma[:, None, None, None, None]


def training_loss(vae: TinyVAE, video_BTCHW: Tensor, recipe: VAERecipe, generator: torch.Generator) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
        with torch.set_grad_enabled(not recipe.frozen_encoder):
            mean, log_variance = (part.float() for part in vae.posterior(vae.pool(video_BTCHW)))
        log_variance = log_variance.clamp(-12, 2)
        z = mean + torch.randn(mean.shape, generator=generator) * (0.5 * log_variance).exp()
        made, _ = vae.decode_raw(blur_latents(z, recipe, generator))
    made = made[:, TIME_FACTOR - 1 :].float()
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    return reconstruction_loss(made, video_BTCHW, recipe) + recipe.kl_weight * kl


@torch.no_grad()
def start_at_pca(vae: TinyVAE, clips: Clip) -> float:
    """Set the linear shortcuts to the principal components of pooled patches, with unit-variance latents, and to the
    full-resolution patches that these predict best. Returns the PSNR that the linear codec has by itself."""
    channels = vae.config.latent_channels
    bases: list[Tensor] = []
    fulls: list[Tensor] = []
    for clip in clips:
        video = to_pixels(clip[None])
        padded = torch.cat([video[:, :1].expand(-1, TIME_FACTOR - 1, -1, -1, -1), video], 1)
        for frames, side, out in ((vae.pool(padded)[0], 8, bases), (padded[0], vae.config.cell, fulls)):
            patches = fold_time(F.pixel_unshuffle(frames, side), 1, TIME_FACTOR)
            out.append(patches.permute(0, 2, 3, 1).flatten(0, 2))
    base, full = torch.cat(bases), torch.cat(fulls)
    base_mean, full_mean = base.mean(0), full.mean(0)
    variance, directions = torch.linalg.eigh((base - base_mean).T @ (base - base_mean) / len(base))
    variance = variance.flip(0)[:channels].clamp_min(1e-6)
    whiten = (directions.flip(1)[:, :channels] / variance.sqrt()).T
    z = (base - base_mean) @ whiten.T
    # Whitened latents have the identity as covariance, so the least-squares map is the cross-covariance itself.
    paint = (full - full_mean).T @ z / len(z)
    encoder, decoder = vae.encoder.linear, vae.decoder.linear
    assert encoder.bias is not None
    assert decoder.bias is not None
    encoder.weight.zero_()
    encoder.weight[:channels] = whiten[:, :, None, None]
    encoder.bias[:channels] = -(whiten @ base_mean)
    encoder.bias[channels:] = -5.0
    decoder.weight.copy_(paint[:, :, None, None])
    decoder.bias.copy_(full_mean)
    return -10 * math.log10(float(((z @ paint.T + full_mean - full) ** 2).mean()) / 4)


def grown(vae: TinyVAE, wanted: TinyVAEConfig) -> TinyVAE:
    """A codec whose decoder has at least the wanted memory blocks, and that decodes as `vae` does."""
    have = vae.config.decoder_blocks
    a, b, c = (max(pair) for pair in zip(have, wanted.decoder_blocks, strict=True))
    sizes = zip((a, b, c), vae.config.decoder_hidden, vae.config.decoder_channels, strict=True)
    units = [n for count, known, width in sizes for n in (*known, *[width] * (count - len(known)))]
    hidden = (*vae.config.encoder_hidden, *units) if vae.config.hidden else ()
    larger = TinyVAE(dataclasses.replace(vae.config, decoder_blocks=(a, b, c), hidden=hidden))
    stacks = (larger.decoder.blocks_a, larger.decoder.blocks_b, larger.decoder.blocks_c)
    for blocks, kept in zip(stacks, have, strict=True):
        for new in list(blocks)[kept:]:
            for part in cast(MemoryBlock, new).mix.parameters():
                nn.init.zeros_(part)
    larger.load_state_dict(vae.state_dict(), strict=False)
    return larger.train()


# --- the stage -----------------------------------------------------------------------------------------------------


def lr_factor(step: int, elapsed_s: float, recipe: VAERecipe) -> float:
    """Warm-up, constant, then linear decay over the last `decay_fraction`, of the steps or of the minutes."""
    progress = step / recipe.steps
    if recipe.minutes is not None:
        progress = max(progress, elapsed_s / (60 * recipe.minutes))
    decay = (1 - progress) / recipe.decay_fraction
    return min(1.0, (step + 1) / recipe.warmup, max(decay, 0.01))


class _Run:
    """The state that a checkpoint holds, and where it lies."""

    def __init__(self, recipe: VAERecipe, out: Path) -> None:
        self.recipe = recipe
        self.out = out
        self.step = 0
        self.elapsed_s = 0.0
        self.generator = torch.Generator().manual_seed(recipe.seed)
        torch.manual_seed(recipe.seed)
        self.vae = grown(TinyVAE.load(recipe.start), recipe.vae) if recipe.start else TinyVAE(recipe.vae)
        if recipe.frozen_encoder:
            self.vae.encoder.requires_grad_(False)
        self.optimizer: MuonAdamW = build_optimizer(
            self.vae.named_parameters(),
            lr=recipe.lr,
            adam_lr=recipe.adam_lr,
            adam_only=lambda name: ".linear." in name,
        )

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def finished(self) -> bool:
        minutes = self.recipe.minutes
        return self.step >= self.recipe.steps or (minutes is not None and self.elapsed_s >= 60 * minutes)

    def save(self) -> None:
        state = {
            "recipe": json.dumps(dataclasses.asdict(self.recipe)),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "vae": self.vae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }
        partial = self.checkpoint.with_suffix(".tmp")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.checkpoint)

    def restore(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        before = json.loads(state["recipe"])
        now = json.loads(json.dumps(dataclasses.asdict(self.recipe)))
        changed = sorted(name for name in now if now[name] != before.get(name))
        if changed:
            raise UserError(
                f"The checkpoint in {self.out} was written with another recipe ({', '.join(changed)} differ); "
                "use a new output folder, or the old recipe."
            )
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.vae.load_state_dict(state["vae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self._drop_log_after(self.step)

    def _drop_log_after(self, step: int) -> None:
        path = self.out / "log.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
            path.write_text("".join(line + "\n" for line in lines))

    def log(self, **values: float) -> None:
        entry = {"step": self.step, "elapsed_s": round(self.elapsed_s, 1), **values}
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        logger.info("vae stage %s", entry)


def run_vae_stage(
    recipe: VAERecipe | Mapping[str, Any],
    out: Path | str,
    resume: bool = True,
    source: ClipSource = world_clip,
    validation: ClipSource = held_out_clip,
) -> Path:
    """Train, or go on training, and return the path of `vae.safetensors` (fp32) in `out`.

    With `resume` false an existing checkpoint is an error rather than overwritten.
    """
    recipe = recipe if isinstance(recipe, VAERecipe) else VAERecipe.from_dict(recipe)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(recipe.threads)
    run = _Run(recipe, out)
    if run.checkpoint.exists() and not resume:
        raise UserError(f"{out} already holds a checkpoint; resume it or choose another output folder.")
    result = out / "vae.safetensors"
    pool = recipe.pool
    held_out = np.stack(
        [validation(_VALIDATION_SEED + n, pool.frames, pool.height, pool.width) for n in range(recipe.held_out_clips)]
    )
    resumed = run.checkpoint.exists()
    if resumed:
        run.restore()
    with ClipPool(source, pool, run.step) as clips:
        if not resumed and not recipe.start:
            run.log(linear_psnr=start_at_pca(run.vae, clips.clips()[:: max(1, len(clips.clips()) // 48)]))
        run.vae.use_channels_last()
        while not run.finished():
            started = time.monotonic()
            clips.advance(run.step)
            run.optimizer.set_lr(lr_factor(run.step, run.elapsed_s, recipe))
            loss = training_loss(run.vae, draw_crops(clips.clips(), recipe, run.generator), recipe, run.generator)
            run.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(run.vae.parameters(), recipe.clip_norm)
            run.optimizer.step()
            run.step += 1
            run.elapsed_s += time.monotonic() - started
            _look(run, float(loss.detach()), held_out)
    if not recipe.start:
        measure_latents(run.vae, source, recipe.statistics, recipe.bfloat16)
    elif not recipe.frozen_encoder:
        align_latents(run.vae, TinyVAE.load(recipe.start), source, recipe.statistics)
    vae = run.vae
    if recipe.idle_margin is not None:
        vae = without_idle_units(vae, statistics_clips(source, recipe.statistics), recipe.idle_margin)
    psnr = clip_psnr(vae, held_out)
    run.log(psnr=float(np.mean(psnr)), psnr_min=min(psnr))
    sample_sheet(vae, held_out, out / "sheet_final.png")
    vae.save(result)
    return result


def _look(run: _Run, loss: float, held_out: Clip) -> None:
    """After a step: log, evaluate, draw and save, each when its turn has come."""
    recipe, started = run.recipe, time.monotonic()
    if run.step % 20 == 0:
        run.log(loss=loss)
    if run.step % recipe.evaluate_every == 0:
        psnr = clip_psnr(run.vae, held_out, recipe.bfloat16)
        run.log(loss=loss, psnr=float(np.mean(psnr)), psnr_min=min(psnr))
    if run.step % recipe.sheet_every == 0:
        sample_sheet(run.vae, held_out, run.out / f"sheet_{run.step:06d}.png")
        write_curves(run.out / "log.jsonl", run.out / "curves.png")
    run.elapsed_s += time.monotonic() - started
    if run.step % recipe.checkpoint_every == 0 or run.finished():
        run.save()
