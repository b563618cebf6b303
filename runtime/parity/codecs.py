"""Parity of the video VAE and the umT5 encoder at tiny sizes, through our key conversions.

The networks are those of diffusers and transformers; what is checked is that the original weights, renamed by us,
give the original outputs in them, whole, frame by frame and streamed. Without the `wan` extra the cases are skipped.
"""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shotstream.runtime.model.key_maps import wan_t5_to_transformers, wan_vae_to_diffusers
from shotstream.runtime.parity.report import (
    FLOAT32,
    CaseGroup,
    Row,
    Skip,
    compare,
    compare_equal,
    relative_error,
)
from shotstream.runtime.parity.vectors import VectorFile

if TYPE_CHECKING:
    from shotstream.runtime.decoders.wan_vae import WanVAE


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


def _accepted(single: Tensor, double: Tensor) -> float:
    """The error bound of a deep network: two float32 runs may each be off by what ours is off from float64.

    These networks round to about 3e-6 by themselves (another instruction set moves them as much), so that the bound of
    the transformer would be a matter of luck. Wrong names or wrong order of calls are off by 1e-3 and more.
    """
    return max(FLOAT32, 2 * relative_error(single, double))


def _vae(file: VectorFile, name: str) -> Iterator[Row]:
    case = file.cases[name]
    _package("diffusers")
    from shotstream.runtime.decoders.wan_vae import WanVAE

    single = WanVAE(build_vae(case), tuple(case["mean"].tolist()), tuple(case["std"].tolist()))
    # In float64 only the reference's own rounding is left in the comparison.
    double = copy.deepcopy(single).double()

    def row(quantity: str, run: Callable[[WanVAE], Tensor], reference: Tensor) -> Row:
        ours = run(double)
        return compare(name, quantity, ours, reference, _accepted(run(single), ours))

    video_BTCHW = case["video"].transpose(1, 2)
    if "latent" in case:
        yield row("latents of the clip", lambda vae: vae.encode(video_BTCHW), case["latent"])
    if "latent_per_frame" in case:
        yield row(
            "latents of single frames",
            lambda vae: vae.encode_frames(video_BTCHW[0]).view_as(case["latent_per_frame"]),
            case["latent_per_frame"],
        )
    if "pixels" in case:
        yield row("pixels, decoded whole", lambda vae: vae.decode(case["z"]), case["pixels"])
    if "pixels_streamed" in case:
        yield row("pixels, streamed", lambda vae: _streamed(vae, case["z"]), case["pixels_streamed"])
    if "z" in case:
        same = torch.equal(_streamed(single, case["z"]), single.decode(case["z"]))
        yield compare_equal(name, "streamed equals whole, bit for bit", same, True)


def _streamed(vae: WanVAE, z_BFCHW: Tensor) -> Tensor:
    """Decodes 1, then 2, then the remaining latents over one stream, as a player would in uneven chunks."""
    frames = z_BFCHW.shape[1]
    parts = [1, 2, frames - 3] if frames > 3 else [1] * frames
    stream = vae.new_stream(z_BFCHW.shape[0])
    return torch.cat([vae.decode_chunk(part, stream) for part in z_BFCHW.split(parts, dim=1)], dim=1)


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
    valid_NL1 = mask_NL.bool()[..., None]
    with torch.no_grad():
        single = model(input_ids=case["ids"], attention_mask=mask_NL).last_hidden_state * valid_NL1
        double = model.double()(input_ids=case["ids"], attention_mask=mask_NL).last_hidden_state * valid_NL1
    # Float32 is what is compared: transformers keeps norms and softmax in float32 whatever the weights are.
    tolerance = _accepted(single, double)
    # Rows of padding are never used: only what the model reads is compared.
    if "out" in case:
        yield compare(name, "embeddings of tokens", single, case["out"] * valid_NL1, tolerance)
    if "out_zeroed" in case:
        yield compare(name, "embeddings, padding zeroed", single, case["out_zeroed"], tolerance)


GROUPS = [
    CaseGroup("vae", ("vae_tiny",), lambda name: name.startswith("vae_"), _vae),
    CaseGroup("text", ("t5_tiny",), lambda name: name.startswith("t5_"), _t5),
]
