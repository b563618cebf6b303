"""Parity of the video VAE and the umT5 encoder at tiny sizes, through our key conversions.

The networks are those of diffusers and transformers; what is checked is that the original weights, renamed by us,
give the original outputs in them, whole, frame by frame and streamed. Without the `wan` extra the cases are skipped.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from shotstream.runtime.model.key_maps import wan_t5_to_transformers, wan_vae_to_diffusers
from shotstream.runtime.parity.report import CaseGroup, Row, Skip, compare
from shotstream.runtime.parity.vectors import VectorFile


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Skip(f"needs the package {name}; install shotstream[wan]") from error


def build_vae(case: Mapping[str, Any]) -> Any:
    """diffusers' Wan VAE with the case's sizes and weights."""
    c = case["config"]
    vae = _package("diffusers").AutoencoderKLWan(
        base_dim=c["dim"],
        z_dim=c["z_dim"],
        dim_mult=list(c["dim_mult"]),
        num_res_blocks=c["num_res_blocks"],
        attn_scales=list(c["attn_scales"]),
        temperal_downsample=list(c["temperal_downsample"]),
    )
    vae.load_state_dict(wan_vae_to_diffusers(case["state_dict"]))
    return vae.eval()


class _VaeRun:
    """Latents [B, F, C, H, W], normalised by the case's own constants; pixels [B, F, 3, H, W]."""

    def __init__(self, case: Mapping[str, Any]) -> None:
        self.vae = build_vae(case)
        shape = (1, 1, -1, 1, 1)
        self.mean, self.std = case["mean"].view(shape), case["std"].view(shape)

    def encode(self, video_BCFHW: Tensor) -> Tensor:
        mean = self.vae.encode(video_BCFHW).latent_dist.mean.transpose(1, 2)
        return (mean - self.mean) / self.std

    def decode(self, z_BFCHW: Tensor) -> Tensor:
        z = (z_BFCHW * self.std + self.mean).transpose(1, 2)
        return self.vae.decode(z).sample.transpose(1, 2).clamp(-1, 1)

    def decode_streamed(self, z_BFCHW: Tensor, parts: tuple[int, ...]) -> Tensor:
        """Decodes `parts` latent frames at a time over one cache, as a player does."""
        z = self.vae.post_quant_conv((z_BFCHW * self.std + self.mean).transpose(1, 2))
        self.vae.clear_cache()
        frames, first = [], True
        for part in z.split(list(parts), dim=2):
            for latent in part.split(1, dim=2):
                self.vae._conv_idx = [0]
                extra = {"first_chunk": True} if first else {}
                decoder = self.vae.decoder
                frames.append(decoder(latent, feat_cache=self.vae._feat_map, feat_idx=self.vae._conv_idx, **extra))
                first = False
        self.vae.clear_cache()
        return torch.cat(frames, dim=2).transpose(1, 2).clamp(-1, 1)


def _vae(file: VectorFile, name: str) -> Iterator[Row]:
    case = file.cases[name]
    run = _VaeRun(case)
    with torch.no_grad():
        if "latent" in case:
            yield compare(name, "latents of the clip", run.encode(case["video"]), case["latent"])
        if "latent_per_frame" in case:
            frames = case["video"].transpose(0, 2)  # every frame a clip of its own: [F, 3, 1, H, W]
            ours = run.encode(frames.permute(0, 1, 2, 3, 4))
            reference = case["latent_per_frame"]
            # Frame k alone gives one latent, wherever the file put the axis of the frames.
            yield compare(name, "latents of single frames", ours.reshape(reference.shape), reference)
        if "pixels" in case:
            yield compare(name, "pixels, decoded whole", run.decode(case["z"]), case["pixels"])
        if "pixels_streamed" in case:
            frames = case["z"].shape[1]
            parts = (1, 2, frames - 3) if frames > 3 else (1,) * frames
            ours = run.decode_streamed(case["z"], parts)
            yield compare(name, "pixels, streamed", ours, case["pixels_streamed"])


def build_t5(case: Mapping[str, Any]) -> Any:
    """transformers' umT5 encoder with the case's sizes and weights."""
    c, weights = case["config"], case["state_dict"]
    transformers = _package("transformers")
    # The number of layers is read off the weights: it is what a checkpoint really holds.
    layers = 1 + max(int(found[1]) for key in weights if (found := re.match(r"blocks\.(\d+)\.", key)))
    config = transformers.UMT5Config(
        vocab_size=c["vocab"],
        d_model=c["dim"],
        d_kv=c["dim_attn"] // c["num_heads"],
        d_ff=c["dim_ffn"],
        num_heads=c["num_heads"],
        num_layers=layers,
        relative_attention_num_buckets=c["num_buckets"],
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-6,
        dropout_rate=0.0,
    )
    model = transformers.UMT5EncoderModel(config)
    model.load_state_dict(wan_t5_to_transformers(weights))
    return model.eval()


def _t5(file: VectorFile, name: str) -> Iterator[Row]:
    case = file.cases[name]
    model, mask_NL = build_t5(case), case["mask"]
    with torch.no_grad():
        out_NLD = model(input_ids=case["ids"], attention_mask=mask_NL).last_hidden_state
    valid_NL1 = mask_NL.bool()[..., None]
    # Rows of padding are never used: only what the model reads is compared.
    if "out" in case:
        yield compare(name, "embeddings of tokens", out_NLD * valid_NL1, case["out"] * valid_NL1)
    if "out_zeroed" in case:
        yield compare(name, "embeddings, padding zeroed", out_NLD * valid_NL1, case["out_zeroed"])


GROUPS = [
    CaseGroup("vae", ("vae_tiny",), lambda name: name.startswith("vae_"), _vae),
    CaseGroup("text", ("t5_tiny",), lambda name: name.startswith("t5_"), _t5),
]
