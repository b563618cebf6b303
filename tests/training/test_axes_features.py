"""The slot `features`: models of transformers from a folder, here tiny and random ones, and the oracle's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shotstream.runtime.errors import UserError
from shotstream.runtime.runtime import assemble_registry
from shotstream.training.evaluation.features import Features, knows_text
from shotstream.training.evaluation.sources import Frames
from shotstream.training.world import render_shot, sample_story

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")
SIZE = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32}  # fmt: skip
FRAMES: Frames = np.random.default_rng(0).integers(0, 256, (20, 40, 64, 3), np.uint8)


def make(name: str, folder: Path | None = None) -> Any:
    return assemble_registry().factory("features", name)(folder, CPU)


def save_vision(folder: Path, kind: str) -> Any:
    torch.manual_seed(0)
    config = {"vit": "ViTConfig", "dinov2": "Dinov2Config", "dinov2_with_registers": "Dinov2WithRegistersConfig"}[kind]
    bare = {"add_pooling_layer": False} if kind == "vit" else {}
    model = transformers.AutoModel.from_config(getattr(transformers, config)(**SIZE), **bare)
    model.save_pretrained(folder)
    _save_preprocessor(folder, "ViTImageProcessor")
    return model.eval()


def save_clip(folder: Path) -> Any:
    """A CLIP whose words are letters."""
    torch.manual_seed(0)
    letters = [chr(i) for i in range(33, 127)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    ids = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.CLIPConfig(
        text_config={**text, **ids, "vocab_size": len(words), "max_position_embeddings": 12},
        vision_config=SIZE, projection_dim=8,
    )  # fmt: skip
    model = transformers.CLIPModel(config)
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    _save_preprocessor(folder, "CLIPImageProcessor")
    return model.eval()


def _save_preprocessor(folder: Path, kind: str) -> None:
    size = {"height": 32, "width": 32} if kind == "ViTImageProcessor" else {"shortest_edge": 32}
    plain = {"image_processor_type": kind, "size": size, "crop_size": {"height": 32, "width": 32}, "do_resize": True,
             "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": True,
             "rescale_factor": 1 / 255}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(plain))


def assert_unit(vectors: Any, count: int, dim: int) -> None:
    assert vectors.dtype == np.float32
    assert vectors.shape == (count, dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov2_with_registers"])
def test_dino_gives_the_class_token_of_every_frame(tmp_path: Path, kind: str) -> None:
    model = save_vision(tmp_path, kind)
    vectors = make("dino", tmp_path).frames(FRAMES)
    assert_unit(vectors, 20, 16)
    assert not knows_text(make("dino", tmp_path))
    bright = np.full((1, 32, 32, 3), 255, np.uint8)
    with torch.no_grad():
        token = model(pixel_values=torch.ones(1, 3, 32, 32)).last_hidden_state[0, 0]
    np.testing.assert_allclose(make("dino", tmp_path).frames(bright)[0], token / token.norm(), atol=1e-5)


def test_clip_knows_pictures_and_captions(tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    clip = make("clip", tmp_path)
    assert knows_text(clip)
    assert_unit(clip.frames(FRAMES), 20, 8)
    captions = clip.captions(["a cat", "a dog", "a cat", "a cat and what it does all day long"])
    assert_unit(captions, 4, 8)
    np.testing.assert_allclose(captions[0], captions[2], atol=1e-5)
    assert captions[0] @ captions[1] < 0.999
    np.testing.assert_allclose(clip.captions(["a cat"])[0], captions[0], atol=1e-4)


def _without(part: str) -> Callable[[Path], None]:
    return lambda folder: (folder / part).unlink()


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _lacking(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state.pop("embeddings.cls_token")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_without("config.json"), "no config.json"),
        (_without("model.safetensors"), "cannot be loaded"),
        (_without("preprocessor_config.json"), "cannot be loaded"),
        (_pickled, "cannot be loaded"),
        (_lacking, "embeddings.cls_token"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a model's configuration"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "t5"}'), "'t5'"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "cannot be loaded"),
    ],
)  # fmt: skip
def test_a_folder_that_lacks_something_is_refused_with_one_sentence(
    tmp_path: Path, spoil: Callable[[Path], Any], says: str
) -> None:
    save_vision(tmp_path, "dinov2")
    spoil(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        make("dino", tmp_path)
    assert "\n" not in str(caught.value)


def test_an_extractor_without_its_folder_says_how_to_give_it() -> None:
    for name in ("dino", "clip"):
        with pytest.raises(UserError, match="--features-weights"):
            make(name)
    with pytest.raises(UserError, match="there is dino, clip, oracle"):
        make("resnet")


# ------------------------------------------------------------------------------------ the oracle's own
def _closeness(features: Features, one: Frames, other: Frames) -> float:
    return float((features.frames(one) * features.frames(other)).sum(1).mean())


def test_the_oracle_s_features_tell_heroes_and_scenes_apart() -> None:
    story = sample_story(70_000_001, 2)
    hero = story.characters[0]
    frames = render_shot(story, 0, 9)
    recoloured = replace(story, characters=(replace(hero, color="green", species="bear"), *story.characters[1:]))
    elsewhere = replace(story, background=replace(story.background, place="beach", time="sunset"))
    subject, scene = make("oracle"), make("oracle-scene")
    assert_unit(subject.frames(frames), 9, 4 * 96)
    assert_unit(scene.frames(frames), 9, 128)
    assert not knows_text(subject)
    other_hero, other_place = render_shot(recoloured, 0, 9), render_shot(elsewhere, 0, 9)
    assert _closeness(subject, frames, other_hero) < _closeness(subject, frames, other_place)
    assert _closeness(scene, frames, other_place) < _closeness(scene, frames, other_hero)
    assert _closeness(subject, frames, frames) == pytest.approx(1)


def test_the_oracle_s_features_refuse_films_of_another_world() -> None:
    with pytest.raises(UserError, match="16:10, not for 64x64"):
        make("oracle").frames(np.zeros((2, 64, 64, 3), np.uint8))
