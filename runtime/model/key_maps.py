"""Names of the same tensor in different layouts, as pure functions on state dicts: the DiT (Wan original and
diffusers), the video VAE and the umT5 encoder. No file is opened here and no tensor is copied or changed (only
the VAE's and encoder's top-level names move); ``state_dicts`` reads files and checks shapes.

The tables were written from the published module trees and checked by loading strictly and comparing outputs.
Every function names the keys it cannot place and raises ``UserError``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch

from shotstream.runtime.errors import UserError

StateDict = dict[str, torch.Tensor]

# Wan name -> diffusers name, for the modules outside the blocks.
_DIT_ROOT = {
    "patch_embedding.": "patch_embedding.",
    "text_embedding.0.": "condition_embedder.text_embedder.linear_1.",
    "text_embedding.2.": "condition_embedder.text_embedder.linear_2.",
    "time_embedding.0.": "condition_embedder.time_embedder.linear_1.",
    "time_embedding.2.": "condition_embedder.time_embedder.linear_2.",
    "time_projection.1.": "condition_embedder.time_proj.",
    "head.head.": "proj_out.",
    "head.modulation": "scale_shift_table",
}
# The same inside ``blocks.{i}.``. Careful: what Wan calls norm3 (the affine one) is norm2 in diffusers.
_DIT_BLOCK = {
    "modulation": "scale_shift_table",
    "norm3.": "norm2.",
    "ffn.0.": "ffn.net.0.proj.",
    "ffn.2.": "ffn.net.2.",
    **{
        f"{ours}.{a}.": f"{theirs}.{b}."
        for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for a, b in (
            ("q", "to_q"),
            ("k", "to_k"),
            ("v", "to_v"),
            ("o", "to_out.0"),
            ("norm_q", "norm_q"),
            ("norm_k", "norm_k"),
        )
    },
}
_BLOCK_KEY = re.compile(r"^blocks\.(\d+)\.(.+)$")


def named(keys: Iterable[str], limit: int = 3) -> str:
    """``'a, b, c and 5 more'``: the first few of ``keys`` in their order, for error messages."""
    listed = list(keys)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def _by_prefix(key: str, table: Mapping[str, str]) -> str | None:
    for old, new in table.items():
        if key == old or (old.endswith(".") and key.startswith(old)):
            return new + key[len(old) :]
    return None


def _rename(sd: Mapping[str, torch.Tensor], rule: Callable[[str], str | None], what: str) -> StateDict:
    renamed = {key: rule(key) for key in sd}
    unknown = [key for key, new in renamed.items() if new is None]
    if unknown:
        raise UserError(f"these are not {what} weights: unknown key {named(unknown)}")
    return {str(new): sd[key] for key, new in renamed.items()}


def _inverted(table: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in table.items()}


def _dit_rule(root: Mapping[str, str], block: Mapping[str, str]) -> Callable[[str], str | None]:
    def rule(key: str) -> str | None:
        found = _BLOCK_KEY.match(key)
        if not found:
            return _by_prefix(key, root)
        inner = _by_prefix(found[2], block)
        return None if inner is None else f"blocks.{found[1]}.{inner}"

    return rule


dit_key_to_diffusers = _dit_rule(_DIT_ROOT, _DIT_BLOCK)
dit_key_from_diffusers = _dit_rule(_inverted(_DIT_ROOT), _inverted(_DIT_BLOCK))


def wan_dit_to_diffusers(sd: Mapping[str, torch.Tensor]) -> StateDict:
    """Wan-original DiT keys to those of diffusers' ``WanTransformer3DModel`` (same tensors, same shapes)."""
    return _rename(sd, dit_key_to_diffusers, "Wan DiT")


def diffusers_dit_to_wan(sd: Mapping[str, torch.Tensor]) -> StateDict:
    """The inverse of :func:`wan_dit_to_diffusers`."""
    return _rename(sd, dit_key_from_diffusers, "diffusers Wan transformer")


# ----------------------------------------------------------------------------------------------- video VAE

_VAE_RESIDUAL = {
    "residual.0.": "norm1.",
    "residual.2.": "conv1.",
    "residual.3.": "norm2.",
    "residual.6.": "conv2.",
    "shortcut.": "conv_shortcut.",
}
_VAE_STAGE = {**_VAE_RESIDUAL, "resample.1.": "resample.1.", "time_conv.": "time_conv."}
_VAE_ATTENTION = {"norm.": "norm.", "to_qkv.": "to_qkv.", "proj.": "proj."}
_VAE_HALF = {"conv1.": "conv_in.", "head.0.": "norm_out.", "head.2.": "conv_out."}
_VAE_MIDDLE = {"0": "mid_block.resnets.0", "1": "mid_block.attentions.0", "2": "mid_block.resnets.1"}
_VAE_ROOT = {"conv1.": "quant_conv.", "conv2.": "post_quant_conv."}
_FLAT = re.compile(r"^(encoder\.downsamples|decoder\.upsamples)\.(\d+)\.(.+)$")
_MIDDLE = re.compile(r"^(encoder|decoder)\.middle\.([012])\.(.+)$")
_UP = re.compile(r"^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.(.+)$")
_DOWN = re.compile(r"^encoder\.down_blocks\.(\d+)\.(.+)$")
_MID = re.compile(r"^(encoder|decoder)\.(mid_block\.(?:resnets|attentions)\.\d)\.(.+)$")


def _up_names(sd: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Flat decoder index -> ``up_blocks.i.resnets.j`` / ``up_blocks.i.upsamplers.0``, read off the keys."""
    is_upsampler: dict[int, bool] = {}
    for key in sd:
        found = _FLAT.match(key)
        if found and found[1].startswith("decoder"):
            index = int(found[2])
            is_upsampler[index] = is_upsampler.get(index, False) or found[3].startswith("resample.")
    names, block, resnet = {}, 0, 0
    for index in sorted(is_upsampler):
        if is_upsampler[index]:
            names[str(index)] = f"up_blocks.{block}.upsamplers.0"
            block, resnet = block + 1, 0
        else:
            names[str(index)] = f"up_blocks.{block}.resnets.{resnet}"
            resnet += 1
    return names


def wan_vae_to_diffusers(sd: Mapping[str, torch.Tensor]) -> StateDict:
    """``Wan2.1_VAE.pth`` keys to those of diffusers' ``AutoencoderKLWan``; any width and depth."""
    up = _up_names(sd)

    def rule(key: str) -> str | None:
        if found := _FLAT.match(key):
            half, index, rest = found.groups()
            inner = _by_prefix(rest, _VAE_STAGE)
            stage = f"down_blocks.{index}" if half.startswith("encoder") else up[index]
            return None if inner is None else f"{half.split('.')[0]}.{stage}.{inner}"
        if found := _MIDDLE.match(key):
            half, index, rest = found.groups()
            inner = _by_prefix(rest, _VAE_ATTENTION if index == "1" else _VAE_RESIDUAL)
            return None if inner is None else f"{half}.{_VAE_MIDDLE[index]}.{inner}"
        for half in ("encoder.", "decoder."):
            if key.startswith(half):
                inner = _by_prefix(key[len(half) :], _VAE_HALF)
                return None if inner is None else half + inner
        return _by_prefix(key, _VAE_ROOT)

    return _rename(sd, rule, "Wan VAE")


def diffusers_vae_to_wan(sd: Mapping[str, torch.Tensor]) -> StateDict:
    """The inverse of :func:`wan_vae_to_diffusers`."""
    entries = {(int(m[1]), m[2] == "upsamplers", int(m[3])) for key in sd if (m := _UP.match(key))}
    flat = {entry: index for index, entry in enumerate(sorted(entries))}
    stage, attention = _inverted(_VAE_STAGE), _inverted(_VAE_ATTENTION)
    middle, half_names = _inverted(_VAE_MIDDLE), _inverted(_VAE_HALF)

    def rule(key: str) -> str | None:
        if found := _UP.match(key):
            index = flat[int(found[1]), found[2] == "upsamplers", int(found[3])]
            inner = _by_prefix(found[4], stage)
            return None if inner is None else f"decoder.upsamples.{index}.{inner}"
        if found := _DOWN.match(key):
            inner = _by_prefix(found[2], stage)
            return None if inner is None else f"encoder.downsamples.{found[1]}.{inner}"
        if (found := _MID.match(key)) and found[2] in middle:
            inner = _by_prefix(found[3], attention if "attentions" in found[2] else stage)
            return None if inner is None else f"{found[1]}.middle.{middle[found[2]]}.{inner}"
        for half in ("encoder.", "decoder."):
            if key.startswith(half):
                inner = _by_prefix(key[len(half) :], half_names)
                return None if inner is None else half + inner
        return _by_prefix(key, _inverted(_VAE_ROOT))

    return _rename(sd, rule, "diffusers Wan VAE")


# -------------------------------------------------------------------------------------------- text encoder

_T5_ROOT = {"token_embedding.": "shared.", "norm.": "encoder.final_layer_norm."}
_T5_BLOCK = {
    "norm1.": "layer.0.layer_norm.",
    "attn.": "layer.0.SelfAttention.",
    "pos_embedding.embedding.": "layer.0.SelfAttention.relative_attention_bias.",
    "norm2.": "layer.1.layer_norm.",
    "ffn.gate.0.": "layer.1.DenseReluDense.wi_0.",
    "ffn.fc1.": "layer.1.DenseReluDense.wi_1.",
    "ffn.fc2.": "layer.1.DenseReluDense.wo.",
}
# Order matters on the way back: the relative bias also starts with "layer.0.SelfAttention.".
_T5_BLOCK_BACK = dict(sorted(_inverted(_T5_BLOCK).items(), key=lambda item: -len(item[0])))
_T5_TIED = "encoder.embed_tokens.weight"


def wan_t5_to_transformers(sd: Mapping[str, torch.Tensor]) -> StateDict:
    """``models_t5_umt5-xxl-enc-bf16.pth`` keys to those of transformers' ``UMT5EncoderModel``.

    The token table appears under both of its tied names (one tensor), so that a strict load succeeds.
    """

    def rule(key: str) -> str | None:
        found = _BLOCK_KEY.match(key)
        if not found:
            return _by_prefix(key, _T5_ROOT)
        inner = _by_prefix(found[2], _T5_BLOCK)
        return None if inner is None else f"encoder.block.{found[1]}.{inner}"

    renamed = _rename(sd, rule, "umT5 encoder")
    if "shared.weight" in renamed:
        renamed[_T5_TIED] = renamed["shared.weight"]
    return renamed


def transformers_t5_to_wan(sd: Mapping[str, torch.Tensor]) -> StateDict:
    """The inverse of :func:`wan_t5_to_transformers`; the tied second name of the token table is dropped."""

    def rule(key: str) -> str | None:
        found = re.match(r"^encoder\.block\.(\d+)\.(.+)$", key)
        if not found:
            return _by_prefix(key, _inverted(_T5_ROOT))
        inner = _by_prefix(found[2], _T5_BLOCK_BACK)
        return None if inner is None else f"blocks.{found[1]}.{inner}"

    kept = {key: value for key, value in sd.items() if key != _T5_TIED}
    if "shared.weight" not in kept and _T5_TIED in sd:
        kept["shared.weight"] = sd[_T5_TIED]
    return _rename(kept, rule, "transformers umT5 encoder")
