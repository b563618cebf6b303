"""Every layout of DiT weights loads to the same model; whatever does not fit is named in one sentence."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from shotstream.runtime.config import WAN_1_3B, DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.key_maps import diffusers_dit_to_wan, named, wan_dit_to_diffusers
from shotstream.runtime.model.state_dicts import (
    FORMAT,
    content_hash,
    dit_shapes,
    load_dit,
    merge_lora,
    placed,
    plain_key,
    read_checkpoint,
    save_dit,
)
from shotstream.runtime.model.transformer import Transformer

CONFIG = DiTConfig(dim=24, heads=2, ffn_dim=40, layers=2, text_len=8, text_dim=20)
StateDict = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights() -> StateDict:
    torch.manual_seed(4)
    return {key: value.detach().clone() for key, value in Transformer(CONFIG).state_dict().items()}


def lora_of(rank: int = 4, seed: int = 0) -> StateDict:
    """Adapters on every Linear of every block, keyed as the inter-shot stage saves them."""
    generator = torch.Generator().manual_seed(seed)
    adapters = {}
    for key, shape in dit_shapes(CONFIG).items():
        if key.startswith("blocks.") and key.endswith(".weight") and len(shape) == 2:
            module = f"base_model.model.{key.removesuffix('.weight')}"
            adapters[f"{module}.lora_A.weight"] = torch.randn(rank, shape[1], generator=generator)
            adapters[f"{module}.lora_B.weight"] = torch.randn(shape[0], rank, generator=generator)
    return adapters


def prefixed(weights: StateDict, prefix: str) -> StateDict:
    return {prefix + key: value for key, value in weights.items()}


def write(path: Path, layout: str, weights: StateDict) -> Path:
    """A checkpoint as the layout's own tools write it."""
    contents: dict[str, Any] = {
        "release": {"generator": prefixed(weights, "model."), "step": 1000},
        "dmd": {
            "generator": prefixed(weights, "model."),
            "generator_optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 2e-6}]},
            "step": 50,
            "fake_score": prefixed({key: value + 1 for key, value in weights.items()}, "model."),
            "critic_optimizer": {},
        },
        "ema": {
            "generator": prefixed({key: value + 1 for key, value in weights.items()}, "model."),
            "generator_ema": prefixed(weights, "model._fsdp_wrapped_module."),
        },
        "fsdp": {"generator": {_fsdp(key): value for key, value in weights.items()}},
        "pth": weights,
        "compiled": prefixed(weights, "_orig_mod."),
        "comfy": prefixed(weights, "model.diffusion_model."),
    }
    if layout in contents:
        torch.save(contents[layout], path / "weights.pt")
        return path / "weights.pt"
    if layout == "ours":
        save_dit(path / "dit.safetensors", weights, CONFIG)
        return path / "dit.safetensors"
    tensors = wan_dit_to_diffusers(weights) if layout == "diffusers" else dict(weights)
    if layout == "sharded":
        keys = sorted(tensors)
        halves = {"a.safetensors": keys[:20], "b.safetensors": keys[20:]}
        for name, part in halves.items():
            save_file({key: tensors[key] for key in part}, path / name)
        index = {"weight_map": {key: name for name, part in halves.items() for key in part}}
        (path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
        return path
    save_file(tensors, path / "diffusion_pytorch_model.safetensors")
    return path


def _fsdp(key: str) -> str:
    return "model._fsdp_wrapped_module." + key.replace("blocks.0.", "blocks.0._fsdp_wrapped_module.")


@pytest.mark.parametrize(
    ("layout", "found"),
    [
        ("wan", "wan"),
        ("sharded", "wan"),
        ("diffusers", "diffusers"),
        ("release", "shotstream-pt"),
        ("dmd", "shotstream-pt"),
        ("fsdp", "shotstream-pt"),
        ("pth", "wan"),
        ("compiled", "wan"),
        ("comfy", "wan"),
        ("ours", "shotstream"),
    ],
)
def test_every_layout_loads_to_the_same_weights(tmp_path: Path, weights: StateDict, layout: str, found: str) -> None:
    path = write(tmp_path, layout, weights)
    assert read_checkpoint(path).layout == found
    loaded = load_dit(path, CONFIG)
    assert set(loaded) == set(weights)
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)
    Transformer(CONFIG).load_state_dict(loaded, strict=True)


def test_the_networks_of_a_training_checkpoint_are_chosen_by_name(tmp_path: Path, weights: StateDict) -> None:
    key = "head.head.bias"
    dmd = write(tmp_path, "dmd", weights)
    assert torch.equal(load_dit(dmd, CONFIG, role="fake_score")[key], weights[key] + 1)
    with pytest.raises(UserError, match=r"has no 'generator_ema'; it holds generator, fake_score"):
        load_dit(dmd, CONFIG, role="generator_ema")
    with pytest.raises(UserError, match="unknown network 'student'"):
        load_dit(dmd, CONFIG, role="student")
    ema = write(tmp_path, "ema", weights)
    assert torch.equal(load_dit(ema, CONFIG, role="generator_ema")[key], weights[key])
    assert torch.equal(load_dit(ema, CONFIG)[key], weights[key] + 1)


def test_adapters_alone_merge_into_a_base_and_say_so_without_one(tmp_path: Path, weights: StateDict) -> None:
    base = write(tmp_path, "release", weights)
    torch.save({"generator_lora": lora_of(), "critic_lora": lora_of(seed=1), "step": 3}, tmp_path / "lora.pt")
    merged = load_dit(tmp_path / "lora.pt", CONFIG, base=base)
    name = "blocks.1.ffn.2"
    a, b = (lora_of()[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
    assert torch.allclose(merged[f"{name}.weight"], weights[f"{name}.weight"] + b @ a, atol=1e-6)
    assert torch.equal(merged["patch_embedding.weight"], weights["patch_embedding.weight"])
    half = load_dit(tmp_path / "lora.pt", CONFIG, base=base, lora_scale=0.5)
    assert torch.allclose(half[f"{name}.weight"], weights[f"{name}.weight"] + 0.5 * (b @ a), atol=1e-6)
    with pytest.raises(UserError, match="give the base checkpoint"):
        load_dit(tmp_path / "lora.pt", CONFIG)


def test_merging_leaves_the_base_untouched_and_names_adapters_that_fit_nothing(weights: StateDict) -> None:
    before = content_hash(weights)
    merge_lora(weights, lora_of())
    assert content_hash(weights) == before
    adapters = lora_of()
    stray = {"blocks.9.ffn.0.lora_A.weight": torch.zeros(4, 24), "blocks.9.ffn.0.lora_B.weight": torch.zeros(40, 4)}
    with pytest.raises(UserError, match=r"'blocks\.9\.ffn\.0' has no such layer"):
        merge_lora(weights, {**adapters, **stray})
    adapters.pop("base_model.model.blocks.0.self_attn.q.lora_B.weight")
    with pytest.raises(UserError, match=r"without their other half: blocks\.0\.self_attn\.q"):
        merge_lora(weights, adapters)


def test_missing_extra_and_misshaped_keys_are_all_named(tmp_path: Path, weights: StateDict) -> None:
    broken = {key: value for key, value in weights.items() if not key.startswith("blocks.1.self_attn.")}
    broken["blocks.5.modulation"] = torch.zeros(1, 6, 24)
    broken["head.head.bias"] = torch.zeros(3)
    torch.save({"generator": prefixed(broken, "model.")}, tmp_path / "weights.pt")
    with pytest.raises(UserError) as caught:
        load_dit(tmp_path / "weights.pt", CONFIG)
    sentence = str(caught.value)
    assert "missing blocks.1.self_attn.q.weight, blocks.1.self_attn.q.bias" in sentence
    assert "and 7 more" in sentence
    assert "unexpected blocks.5.modulation" in sentence
    assert "wrong shape head.head.bias is (3,), not (64,)" in sentence
    assert "\n" not in sentence


class Foreign:
    """Something that a safe unpickler must not build."""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "is a git-lfs pointer"),
        (b"GGUF" + bytes(40), "is a GGUF file"),
        (b"<!DOCTYPE html><html>", "is neither a safetensors nor a torch file"),
        (struct.pack("<Q", 5000) + b'{"a":', "is truncated"),
        (struct.pack("<Q", 10) + b"{not json}" + bytes(20), "header is not readable"),
        (pickle.dumps({"generator": Foreign()}, protocol=2), "is refused for safety"),
        (b"PK\x03\x04" + bytes(60), "is truncated or not a torch checkpoint"),
    ],
)
def test_files_that_are_no_weights_are_refused_in_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "weights.bin").write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        read_checkpoint(tmp_path / "weights.bin")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["wan", "release", "ours"])
@pytest.mark.parametrize("kept", [0.3, 0.95])
def test_a_truncated_file_is_refused(tmp_path: Path, weights: StateDict, layout: str, kept: float) -> None:
    path = write(tmp_path, layout, weights)
    path = path if path.is_file() else path / "diffusion_pytorch_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UserError, match="truncated"):
        read_checkpoint(path)


def test_a_flipped_bit_in_our_own_file_is_noticed(tmp_path: Path, weights: StateDict) -> None:
    path = write(tmp_path, "ours", weights)
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="is damaged"):
        load_dit(path, CONFIG)


def test_foreign_safetensors_and_models_are_refused_by_what_they_hold(tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"holds no DiT weights: its keys start with encoder\.weight"):
        read_checkpoint(tmp_path / "other.safetensors")
    metadata = {"format": "shotstream.tiny_vae.1"}
    save_file({"patch_embedding.weight": torch.zeros(2)}, tmp_path / "vae.safetensors", metadata=metadata)
    with pytest.raises(UserError, match=f"not the '{FORMAT}'"):
        read_checkpoint(tmp_path / "vae.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pt")


def test_missing_paths_and_ambiguous_folders_are_refused(tmp_path: Path, weights: StateDict) -> None:
    with pytest.raises(UserError, match="there is no file or folder"):
        read_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no weight files"):
        read_checkpoint(tmp_path)
    torch.save(weights, tmp_path / "a.pt")
    torch.save(weights, tmp_path / "b.pt")
    with pytest.raises(UserError, match="holds 2 weight files; name one"):
        read_checkpoint(tmp_path)


def test_our_file_carries_config_and_hash_and_leaves_no_partial(tmp_path: Path, weights: StateDict) -> None:
    digest = save_dit(tmp_path / "dit.safetensors", weights, CONFIG, stage="inter")
    found = read_checkpoint(tmp_path / "dit.safetensors")
    assert (found.config, content_hash(found.tensors)) == (CONFIG, digest)
    assert [path.name for path in tmp_path.iterdir()] == ["dit.safetensors"]


def test_our_file_is_readable_by_whoever_may_read_new_files(tmp_path: Path, weights: StateDict) -> None:
    (tmp_path / "plain").touch()
    save_dit(tmp_path / "dit.safetensors", weights, CONFIG)
    assert (tmp_path / "dit.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
@pytest.mark.parametrize("layout", ["release", "ours"])
def test_loading_maps_the_file_instead_of_reading_it(tmp_path: Path, weights: StateDict, layout: str) -> None:
    path = write(tmp_path, layout, weights)
    loaded = read_checkpoint(path).tensors
    rows = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    spans = [tuple(int(edge, 16) for edge in row[0].split("-")) for row in rows]
    assert spans
    for tensor in loaded.values():
        assert any(start <= tensor.data_ptr() < end for start, end in spans)
    assert placed(loaded, "cpu")["head.head.bias"] is loaded["head.head.bias"]


def test_the_tables_of_names_are_inverse_at_the_real_size() -> None:
    keys = {key: torch.empty(0) for key in dit_shapes(WAN_1_3B)}
    there = wan_dit_to_diffusers(keys)
    assert len(there) == 825
    assert "blocks.3.norm2.weight" in there
    assert "blocks.29.attn2.to_out.0.bias" in there
    assert "scale_shift_table" in there
    assert set(diffusers_dit_to_wan(there)) == set(keys)


def test_diffusers_own_transformer_has_exactly_the_mapped_keys_and_shapes() -> None:
    diffusers = pytest.importorskip("diffusers")
    from shotstream.runtime.convert import diffusers_settings

    settings = {k: v for k, v in diffusers_settings(CONFIG).items() if k != "_class_name"}
    with torch.device("meta"):
        theirs = diffusers.WanTransformer3DModel(**settings).state_dict()
    ours = wan_dit_to_diffusers({key: torch.empty(shape, device="meta") for key, shape in dit_shapes(CONFIG).items()})
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items()}


@given(st.permutations(["model", "_fsdp_wrapped_module", "_orig_mod", "module", "_checkpoint_wrapped_module"]))
def test_wrappers_come_off_in_any_order(wrappers: list[str]) -> None:
    assert plain_key(".".join([*wrappers, "blocks.0.ffn.0.weight"])) == "blocks.0.ffn.0.weight"


def test_long_lists_of_keys_are_cut_with_their_count() -> None:
    assert named("abcde") == "a, b, c and 2 more"
    assert named("ab") == "a, b"
