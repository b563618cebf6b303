"""The real preset: its exact size on the meta device, its memory plan, and a film at tiny sizes from real layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shotstream.runtime.config import WAN_1_3B, DiTConfig
from shotstream.runtime.decoders.wan_vae import WanVAEConfig, random_wan_vae
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.key_maps import diffusers_vae_to_wan, transformers_t5_to_wan
from shotstream.runtime.model.state_dicts import dit_shapes, save_dit
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.plugins import ModelRequest
from shotstream.runtime.presets import CorePlugin
from shotstream.runtime.runtime import Runtime
from shotstream.runtime.text.umt5 import UMT5Sizes, _build
from shotstream.runtime.wan import MemoryPlan, WanPlugin, WanSizes, check_memory, memory_plan, random_transformer

SMALL = WanSizes(
    config=DiTConfig(dim=32, heads=2, ffn_dim=64, layers=2, text_len=24, text_dim=32),
    vae=WanVAEConfig(base_dim=8),
    latent_size=(4, 6),
    vae_parameters=924_491,
    text_parameters=30_000,
)
CPU = torch.device("cpu")


def request(weights: str | Path = "random", **options: object) -> ModelRequest:
    return ModelRequest(CPU, torch.float32, weights, options=options)


def runtime(weights: str | Path = "random") -> Runtime:
    return Runtime("wan-1.3b", weights=weights, plugins=[CorePlugin(), WanPlugin(SMALL)])


def play(made: Runtime, captions: list[str]) -> list[torch.Tensor]:
    """Two chunks of every shot, as pixels."""
    chunks = []
    with made.open("A fox. ", seed=5) as session:
        for caption in captions:
            session.cut(caption, chunks=2)
            chunks += [torch.as_tensor(chunk.frames) for chunk in session.chunks()]
    return chunks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small random weights written as the real downloads are."""
    tokenizers = pytest.importorskip("tokenizers")
    pytest.importorskip("diffusers")
    root = tmp_path_factory.mktemp("wan")
    base = root / "Wan2.1-T2V-1.3B"
    (base / "google/umt5-xxl").mkdir(parents=True)
    (root / "ShotStream").mkdir()
    dit = random_transformer(SMALL.config, 1, CPU, torch.float32).state_dict()
    released = {"generator": {f"model.{key}": value for key, value in dit.items()}, "step": 7}
    torch.save(released, root / "ShotStream/shotstream_merged.pt")
    vae = random_wan_vae(SMALL.vae, seed=1).autoencoder.state_dict()
    torch.save(diffusers_vae_to_wan(vae), base / "Wan2.1_VAE.pth")
    torch.manual_seed(0)
    t5 = _build(UMT5Sizes(vocab=64, dim=32, heads=4, head_dim=8, ffn_dim=48, layers=2), "cpu")
    t5 = {key: value.bfloat16() for key, value in t5.state_dict().items()}
    torch.save(transformers_t5_to_wan(t5), base / "models_t5_umt5-xxl-enc-bf16.pth")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz:.0123456789A"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.save(str(base / "google/umt5-xxl/tokenizer.json"))
    return root


def test_the_real_size_has_exactly_825_tensors_and_1418996800_parameters() -> None:
    with torch.device("meta"):
        sd = Transformer(WAN_1_3B).state_dict()
    assert len(sd) == 825
    assert sum(tensor.numel() for tensor in sd.values()) == 1_418_996_800
    assert {key: tuple(tensor.shape) for key, tensor in sd.items()} == dit_shapes(WAN_1_3B)
    assert sum(t.numel() for key, t in sd.items() if key.startswith("blocks.7.")) == 46_440_704


def test_the_preset_is_480_by_832_with_latents_of_16_by_60_by_104() -> None:
    sizes = WanSizes()
    assert (sizes.config.channels, *sizes.latent_size) == (16, 60, 104)
    assert sizes.frame_size == (480, 832)
    assert sizes.config.tokens_per_frame(*sizes.latent_size) == 1560
    assert (sizes.config.shift, sizes.config.head_dim) == (8.0, 128)


def test_the_memory_plan_names_the_figures_of_the_cost_model() -> None:
    plan = memory_plan(WanSizes(), captions=1)
    assert plan.items["transformer"] == 2 * 1_418_996_800
    assert plan.items["key-value caches"] == 27 * 1560 * 184_320  # 7.76 GB
    assert plan.items["caption keys and values"] == 512 * 184_320  # 94.4 MB
    assert "text encoder" not in memory_plan(WanSizes(), text_on_device=False).items
    assert plan.sentence().startswith("26.7 GB: text encoder 11.4, key-value caches 7.8")


def test_a_model_that_does_not_fit_is_refused_before_loading() -> None:
    with pytest.raises(UserError, match=r"but the model needs 1000000\.0 GB: everything"):
        check_memory(MemoryPlan({"everything": 10**15}), CPU)


def test_random_weights_play_a_story_of_two_shots_with_9_then_12_frames() -> None:
    pytest.importorskip("diffusers")
    with runtime() as made:
        chunks = play(made, ["It runs.", "It sleeps."])
    assert [len(chunk) for chunk in chunks] == [9, 12, 9, 12]
    assert {chunk.shape[1:3] for chunk in chunks} == {(32, 48)}


def test_a_folder_as_downloaded_plays_and_gives_the_same_film_twice(folder: Path) -> None:
    films = []
    for _ in range(2):
        with runtime(folder) as made:
            films.append(torch.cat(play(made, ["it runs."])))
    assert torch.equal(*films)


def test_weights_have_one_identity_and_other_weights_another(folder: Path) -> None:
    plugin = WanPlugin(SMALL)
    first, again = (plugin.load(request(folder)).weights_hash for _ in range(2))
    assert first == again != plugin.load(request()).weights_hash


def test_our_converted_file_goes_before_the_release_and_loads_the_same(folder: Path, tmp_path: Path) -> None:
    plugin = WanPlugin(SMALL)
    released = plugin.load(request(folder)).transformer
    save_dit(tmp_path / "dit.safetensors", released.state_dict(), SMALL.config)
    ours = plugin.load(request(folder, dit=tmp_path / "dit.safetensors")).transformer
    assert all(torch.equal(a, b) for a, b in zip(released.parameters(), ours.parameters(), strict=True))


def test_missing_folders_files_and_unknown_options_are_named(folder: Path, tmp_path: Path) -> None:
    plugin = WanPlugin(SMALL)
    with pytest.raises(UserError, match=r"run: shotstream fetch wan-1\.3b"):
        plugin.load(request(tmp_path / "nowhere"))
    (tmp_path / "ShotStream").mkdir()
    (tmp_path / "ShotStream/shotstream_merged.pt").write_bytes(
        (folder / "ShotStream/shotstream_merged.pt").read_bytes()
    )
    with pytest.raises(UserError, match=r"lacks .*models_t5_umt5-xxl-enc-bf16\.pth \(text\)"):
        plugin.load(request(tmp_path))
    with pytest.raises(UserError, match="has no option quality"):
        plugin.load(request(quality=3))


def test_a_checkpoint_of_another_size_is_refused_by_key_and_shape(folder: Path) -> None:
    wider = replace(SMALL, config=replace(SMALL.config, dim=64))
    with pytest.raises(
        UserError, match=r"shotstream_merged\.pt does not fit a model of width 64 .* wrong shape patch_emb"
    ):
        WanPlugin(wider).load(request(folder))
