"""The codec's training stage on tiny sizes: it learns, resumes to the same bits, and its pool follows the step."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from shotstream.runtime.decoders.tiny_vae import TinyVAE, TinyVAEConfig
from shotstream.runtime.errors import UserError
from shotstream.training.data.clips import Clip, ClipPool, PoolConfig, held_out_clip, to_pixels, world_clip
from shotstream.training.stages.vae import (
    VAERecipe,
    grown,
    lr_factor,
    motion_weight,
    run_vae_stage,
    start_at_pca,
)
from shotstream.training.stages.vae_checks import (
    Statistics,
    align_latents,
    clip_psnr,
    latent_importance,
    measure_latents,
)

RECIPE = VAERecipe(
    steps=6,
    threads=1,
    vae=TinyVAEConfig(
        latent_channels=4, encoder_channels=(4, 4, 6, 8), decoder_channels=(8, 6, 4), decoder_blocks=(1, 1, 1)
    ),
    pool=PoolConfig(size=6, start=4, rate=1.0, frames=9, height=32, width=64, background=False),
    crop=32,
    crops=((2, 5), (1, 9)),
    warmup=2,
    checkpoint_every=2,
    evaluate_every=3,
    sheet_every=6,
    held_out_clips=2,
    statistics=Statistics(clips=3, frames=9, height=32, width=64, importance_clips=2),
)


def sliding_box(seed: int, frames: int, height: int, width: int) -> Clip:
    """A coloured box that moves a pixel a frame over a flat ground."""
    rng = np.random.default_rng(seed)
    ground, box = rng.integers(0, 256, (2, 3))
    clip = np.empty((frames, height, width, 3), np.uint8)
    clip[:] = ground
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 4)
    for t in range(frames):
        clip[t, top : top + 8, left + t : left + t + 12] = box
    return clip


def train(out: Path, recipe: VAERecipe = RECIPE) -> Path:
    return run_vae_stage(recipe, out, source=sliding_box, validation=sliding_box)


class Killed(Exception):
    pass


def test_a_killed_stage_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_file(train(tmp_path / "whole"))

    original, calls = ClipPool.advance, []

    def advance_or_die(self: ClipPool, step: int) -> None:
        calls.append(step)
        if len(calls) == 6:
            raise Killed
        original(self, step)

    monkeypatch.setattr(ClipPool, "advance", advance_or_die)
    with pytest.raises(Killed):
        train(tmp_path / "broken")
    monkeypatch.setattr(ClipPool, "advance", original)
    assert torch.load(tmp_path / "broken" / "checkpoint.pt", weights_only=True)["step"] == 4
    resumed = load_file(train(tmp_path / "broken"))

    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "broken" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_a_finished_stage_leaves_a_codec_a_log_and_a_sheet(tmp_path: Path) -> None:
    vae = TinyVAE.load(train(tmp_path))
    assert vae.config == RECIPE.vae
    z = vae.encode(to_pixels(np.stack([sliding_box(n, 9, 32, 64) for n in range(20)])))
    assert 0.3 < z.std() < 3
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 6
    assert last["psnr_min"] <= last["psnr"]
    assert (tmp_path / "sheet_000006.png").exists()


def test_a_decoder_goes_on_learning_with_more_blocks(tmp_path: Path) -> None:
    before = TinyVAE.load(train(tmp_path / "first"))
    sizes = TinyVAEConfig(decoder_blocks=(1, 2, 3))  # its other sizes do not count
    z = torch.randn(1, 3, 4, 2, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(grown(before, sizes).decode(z), before.decode(z), atol=1e-6)
    start = str(tmp_path / "first" / "vae.safetensors")
    recipe = dataclasses.replace(RECIPE, start=start, frozen_encoder=True, vae=sizes)
    after = TinyVAE.load(train(tmp_path / "second", recipe))
    assert after.config == dataclasses.replace(before.config, decoder_blocks=(1, 2, 3))
    assert after.decoder.blocks_c[2].mix.weight.any(), "the new blocks learn"
    kept = zip(after.encoder.parameters(), before.encoder.parameters(), strict=True)
    assert all(torch.equal(new, old) for new, old in kept)
    assert torch.equal(after.mean, before.mean)


def test_a_codec_goes_on_learning_and_its_latents_are_turned_back(tmp_path: Path) -> None:
    before = TinyVAE.load(train(tmp_path / "first"))
    recipe = dataclasses.replace(RECIPE, steps=40, start=str(tmp_path / "first" / "vae.safetensors"))
    after = TinyVAE.load(train(tmp_path / "second", recipe))
    assert not torch.equal(after.encoder.stem.weight, before.encoder.stem.weight), "the encoder learns too"
    video = to_pixels(np.stack([sliding_box(n, 9, 32, 64) for n in range(20)]))
    with torch.no_grad():
        old, new = before.encode(video), after.encode(video)
    assert float((new - old).square().mean()) < 0.2 * float(old.var(dim=(0, 1, 3, 4)).mean())


def test_turned_latents_draw_the_same_pictures() -> None:
    torch.manual_seed(0)
    vae, before = TinyVAE(RECIPE.vae).eval(), TinyVAE(RECIPE.vae).eval()
    statistics = Statistics(clips=12, frames=9, height=32, width=64)
    for codec, part in ((vae, 0.3), (before, 0.2)):
        codec.mean.copy_(torch.randn(4) * part)
        codec.std.copy_(torch.rand(4) + 0.5)
    start_at_pca(before, np.stack([sliding_box(n, 9, 32, 64) for n in range(8)]))
    with torch.no_grad():  # the same latents in another basis
        vae.load_state_dict({k: v for k, v in before.state_dict().items() if k.startswith("encoder")}, strict=False)
        mixing = torch.randn(4, 4)
        for layer in (vae.encoder.head, vae.encoder.linear):
            for parameter in (layer.weight, layer.bias):
                parameter[:4] = torch.einsum("oi,i...->o...", mixing, parameter[:4])
        video = to_pixels(np.stack([sliding_box(n, 9, 32, 64) for n in range(3)]))
        pictures = vae.decode(vae.encode(video))
        assert not torch.allclose(vae.encode(video), before.encode(video), atol=0.1)
        assert align_latents(vae, before, sliding_box, statistics) < 1e-6
        torch.testing.assert_close(vae.encode(video), before.encode(video), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(vae.decode(vae.encode(video)), pictures, atol=1e-3, rtol=1e-3)


def test_a_resumed_stage_refuses_another_recipe(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(UserError, match="lr differ"):
        train(tmp_path, dataclasses.replace(RECIPE, lr=1.0))


def test_a_fresh_start_never_overwrites_a_checkpoint(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(UserError, match="already holds a checkpoint"):
        run_vae_stage(RECIPE, tmp_path, resume=False, source=sliding_box, validation=sliding_box)


def test_a_recipe_from_yaml_values_keeps_its_tuples_and_names_unknown_fields() -> None:
    recipe = VAERecipe.from_dict({"crops": [[2, 5]], "vae": {"decoder_blocks": [1, 1, 1]}, "pool": {"size": 9}})
    assert recipe.crops == ((2, 5),)
    assert recipe.vae.decoder_blocks == (1, 1, 1)
    assert recipe.pool.size == 9
    with pytest.raises(UserError, match=r"no field pool\.colour"):
        VAERecipe.from_dict({"pool": {"colour": 1}})


def test_the_linear_start_already_reconstructs() -> None:
    clips = np.stack([sliding_box(n, 9, 32, 64) for n in range(12)])
    torch.manual_seed(0)
    vae = TinyVAE(RECIPE.vae)
    linear = start_at_pca(vae, clips)
    assert linear > 15
    assert np.mean(clip_psnr(vae, clips)) > linear - 3


def test_only_moving_pixels_weigh_more() -> None:
    weight = motion_weight(to_pixels(sliding_box(3, 5, 32, 64)[None]), 3.0)
    assert set(weight.unique().tolist()) == {1.0, 3.0}
    assert (weight == 3).float().mean() < 0.2


def test_the_rate_warms_up_holds_and_falls_by_steps_or_by_the_clock() -> None:
    recipe = VAERecipe(steps=100, warmup=10, decay_fraction=0.5, minutes=10)
    assert lr_factor(0, 0, recipe) == pytest.approx(0.1)
    assert lr_factor(30, 0, recipe) == 1
    assert lr_factor(75, 0, recipe) == pytest.approx(0.5)
    assert lr_factor(30, 450, recipe) == pytest.approx(0.5)
    assert lr_factor(30, 600, recipe) == 0.01


def test_the_pool_depends_on_the_step_alone() -> None:
    walked = ClipPool(sliding_box, RECIPE.pool)
    for step in range(10):
        walked.advance(step)
    jumped = ClipPool(sliding_box, RECIPE.pool, step=9)
    assert np.array_equal(walked.clips(), jumped.clips())


def test_a_background_worker_renders_the_same_clips_and_leaves_with_the_pool() -> None:
    config = dataclasses.replace(RECIPE.pool, background=True, height=80, width=128, start=3)
    with ClipPool(world_clip, config) as pool:
        pool.advance(2)
        expected = [world_clip(n, 9, 80, 128) for n in range(5)]
        assert np.array_equal(pool.clips(), np.stack(expected))
        worker = pool._process
    assert worker is not None
    assert not worker.is_alive()


def test_a_worker_that_died_is_an_error_not_a_wait() -> None:
    config = dataclasses.replace(RECIPE.pool, background=True, height=80, width=128)
    with ClipPool(world_clip, config) as pool:
        assert pool._process is not None
        assert pool._process.pid is not None
        os.kill(pool._process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="clip worker"):
            pool.advance(50)


def test_held_out_clips_are_not_training_clips() -> None:
    assert held_out_clip(0, 2, 80, 128).shape == (2, 80, 128, 3)
    assert not np.array_equal(held_out_clip(0, 2, 80, 128), world_clip(0, 2, 80, 128))


def test_a_channel_weighs_what_a_player_sees_of_it() -> None:
    torch.manual_seed(0)
    vae = TinyVAE(RECIPE.vae)
    z = torch.randn(1, 2, 4, 4, 8)
    with torch.no_grad():
        vae.decoder.linear.weight[:, 1] *= 20
    share = latent_importance(vae, z)
    assert share.mean() == pytest.approx(1)
    assert share.argmax() == 1


def test_the_channel_that_shows_most_has_the_largest_latents() -> None:
    torch.manual_seed(0)
    vae = TinyVAE(RECIPE.vae)
    with torch.no_grad():
        vae.decoder.linear.weight[:, 2] *= 20
    measure_latents(vae, sliding_box, RECIPE.statistics, bfloat16=False)
    clips = np.stack([sliding_box(2_000_000_000 + n, 9, 32, 64) for n in range(3)])
    spread = vae.encode(to_pixels(clips)).std((0, 1, 3, 4))
    assert spread.argmax() == 2
    assert spread[2] > 1.2 > 1 > spread.min()
