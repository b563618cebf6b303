"""Checkpoints survive every way between the layouts bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.convert import LAYOUTS, convert, find_config
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.state_dicts import content_hash, dit_shapes, load_dit, read_checkpoint, save_dit

CONFIG = DiTConfig(dim=24, heads=2, ffn_dim=40, layers=2, text_len=8, text_dim=20)
TARGETS = {"wan": "wan", "diffusers": "diffusers", "shotstream-pt": "m.pt", "shotstream": "m.safetensors"}
StateDict = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights() -> StateDict:
    generator = torch.Generator().manual_seed(6)
    return {key: torch.randn(shape, generator=generator) for key, shape in dit_shapes(CONFIG).items()}


@pytest.fixture
def ours(tmp_path: Path, weights: StateDict) -> Path:
    save_dit(tmp_path / "start.safetensors", weights, CONFIG)
    return tmp_path / "start.safetensors"


@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
def test_any_layout_to_any_other_keeps_every_bit(
    tmp_path: Path, ours: Path, weights: StateDict, first: str, second: str
) -> None:
    one = convert(ours, tmp_path / "one" / TARGETS[first], first)
    two = convert(one.path, tmp_path / "two" / TARGETS[second], second, config=CONFIG)
    assert (one.layout, two.source_layout, two.layout) == (first, first, second)
    assert one.sha256 == two.sha256 == content_hash(weights)
    loaded = load_dit(two.path, CONFIG)
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


def test_folders_carry_the_config_of_their_layout_and_find_it_again(tmp_path: Path, ours: Path) -> None:
    for to, name in (("wan", "WanModel"), ("diffusers", "WanTransformer3DModel")):
        written = convert(ours, tmp_path / to, to).path
        assert json.loads((written.parent / "config.json").read_text())["_class_name"] == name
        found = read_checkpoint(written)
        config = find_config(found.path, found.tensors)
        assert (config.heads, config.layers, config.ffn_dim, config.text_dim) == (2, 2, 40, 20)
    back = convert(tmp_path / "wan", tmp_path / "back.safetensors", "shotstream").path
    assert read_checkpoint(back).config == CONFIG


def test_a_diffusers_folder_opens_in_diffusers(tmp_path: Path, ours: Path, weights: StateDict) -> None:
    diffusers = pytest.importorskip("diffusers")
    convert(ours, tmp_path / "diffusers", "diffusers")
    model = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "diffusers")
    theirs = model.state_dict()
    assert torch.equal(theirs["blocks.1.norm2.weight"], weights["blocks.1.norm3.weight"])
    assert model.config.num_attention_heads == 2


def test_adapters_are_merged_on_the_way(tmp_path: Path, ours: Path, weights: StateDict) -> None:
    a, b = torch.randn(4, 24), torch.randn(24, 4)
    name = "blocks.0.cross_attn.v"
    torch.save(
        {
            "generator_lora": {
                f"base_model.model.{name}.lora_A.weight": a,
                f"base_model.model.{name}.lora_B.weight": b,
            }
        },
        tmp_path / "lora.pt",
    )
    report = convert(tmp_path / "lora.pt", tmp_path / "merged.pt", "shotstream-pt", base=ours)
    assert report.source_layout == "lora"
    content = torch.load(tmp_path / "merged.pt", weights_only=True)
    assert torch.allclose(content["generator"][f"model.{name}.weight"], weights[f"{name}.weight"] + b @ a, atol=1e-6)
    with pytest.raises(UserError, match="name the base checkpoint"):
        convert(tmp_path / "lora.pt", tmp_path / "merged.pt", "shotstream-pt")


def test_numbers_can_be_made_bfloat16(tmp_path: Path, ours: Path, weights: StateDict) -> None:
    report = convert(ours, tmp_path / "half.safetensors", "shotstream", dtype="bfloat16")
    assert report.dtype == "bfloat16"
    assert torch.equal(load_dit(report.path, CONFIG)["head.head.bias"], weights["head.head.bias"].bfloat16())


def test_progress_is_told_from_start_to_end(tmp_path: Path, ours: Path) -> None:
    told: list[tuple[str, int, int]] = []
    convert(ours, tmp_path / "m.pt", "shotstream-pt", progress=lambda *args: told.append(args))
    assert told[0] == ("reading", 0, 3)
    assert told[-1] == ("done", 3, 3)


def test_impossible_wishes_get_one_sentence(tmp_path: Path, ours: Path) -> None:
    with pytest.raises(UserError, match="unknown layout 'gguf'; there is wan, diffusers, shotstream-pt, shotstream"):
        convert(ours, tmp_path / "x", "gguf")
    with pytest.raises(UserError, match="unknown number format 'int8'"):
        convert(ours, tmp_path / "x", "wan", dtype="int8")
    with pytest.raises(UserError, match="would overwrite what is being read"):
        convert(ours, ours, "shotstream")
    with pytest.raises(UserError, match="layout is a folder"):
        convert(ours, tmp_path / "x.safetensors", "diffusers")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        convert(ours, tmp_path / "file" / "m.pt", "shotstream-pt")


def test_a_width_without_config_is_taken_to_have_heads_of_128(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wide = DiTConfig(dim=256, heads=2, ffn_dim=8, layers=1, text_dim=8)
    sd = {key: torch.zeros(shape) for key, shape in dit_shapes(wide).items()}
    torch.save({"generator": sd}, tmp_path / "m.pt")
    assert find_config(tmp_path / "m.pt", sd) == wide
    assert "2 heads of 128 are assumed" in caplog.text
