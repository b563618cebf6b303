"""The tiny codec: frame counts, streaming, causality, and checkpoints that say what is wrong with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shotstream.runtime.decoders.tiny_vae import FORMAT, TinyVAE, TinyVAEConfig, fold_time, unfold_time
from shotstream.runtime.errors import UserError

SMALL = TinyVAEConfig(
    encoder_channels=(4, 6, 8, 10), decoder_channels=(12, 8, 6), decoder_blocks=(2, 1, 1), latent_channels=4
)


@pytest.fixture
def vae() -> TinyVAE:
    torch.manual_seed(0)
    made = TinyVAE(SMALL).eval().requires_grad_(False)
    # The head starts near zero; make it speak so that the memory blocks matter to the outcome.
    torch.nn.init.normal_(made.decoder.head.weight, std=0.05)
    torch.nn.init.normal_(made.encoder.head.weight, std=0.05)
    made.mean.copy_(torch.linspace(-0.5, 0.5, 4))
    made.std.copy_(torch.linspace(0.5, 2.0, 4))
    return made


def video(frames: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, frames, 3, 32, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def latents(frames: int, batch: int = 1) -> torch.Tensor:
    return 0.5 * torch.randn(batch, frames, 4, 2, 4, generator=torch.Generator().manual_seed(2))


def test_the_tiny_preset_turns_33_frames_of_160x256_into_9_latents_of_10x16() -> None:
    with torch.no_grad():
        z = TinyVAE().encode(torch.zeros(1, 33, 3, 160, 256))
    assert z.shape == (1, 9, 32, 10, 16)


def test_a_clip_survives_the_round_trip_with_its_shape_and_range(vae: TinyVAE) -> None:
    made = vae.decode(3 * vae.encode(video(9, batch=2)))
    assert made.shape == (2, 9, 3, 32, 64)
    assert made.abs().max() <= 1


def test_decoding_in_chunks_equals_decoding_at_once(vae: TinyVAE) -> None:
    z, stream = latents(7, batch=2), vae.new_stream(2)
    parts = [vae.decode_chunk(part, stream) for part in z.split([3, 3, 1], dim=1)]
    assert [part.shape[1] for part in parts] == [9, 12, 4]
    assert torch.allclose(torch.cat(parts, 1), vae.decode(z), atol=1e-5)


def test_a_stream_owns_its_memory(vae: TinyVAE) -> None:
    z, stream = latents(6), vae.new_stream()
    expected = vae.decode(z)
    chunk = z[:, :3].clone()
    vae.decode_chunk(chunk, stream)
    chunk.fill_(9.0)
    copy = stream.clone()
    assert torch.allclose(vae.decode_chunk(z[:, 3:], stream), expected[:, 9:], atol=1e-5)
    assert torch.allclose(vae.decode_chunk(z[:, 3:], copy), expected[:, 9:], atol=1e-5)


def test_a_reset_stream_starts_a_new_clip(vae: TinyVAE) -> None:
    z, stream = latents(3), vae.new_stream()
    first = vae.decode_chunk(z, stream)
    stream.reset()
    assert torch.equal(vae.decode_chunk(z, stream), first)


def test_a_stream_refuses_a_batch_it_was_not_made_for(vae: TinyVAE) -> None:
    with pytest.raises(ValueError, match="made for 1 clips"):
        vae.decode_chunk(latents(3, batch=2), vae.new_stream())


def test_a_latent_knows_nothing_of_the_future(vae: TinyVAE) -> None:
    clip = video(9)
    changed = clip.clone()
    changed[:, 5:] = 0
    before, after = vae.encode(clip), vae.encode(changed)
    assert torch.allclose(before[:, :2], after[:, :2], atol=1e-6)
    assert not torch.allclose(before[:, 2], after[:, 2], atol=1e-3)


def test_clips_of_a_batch_do_not_touch_each_other(vae: TinyVAE) -> None:
    clips, z = video(5, batch=3), latents(3, batch=3)
    assert torch.allclose(vae.encode(clips)[1], vae.encode(clips[1:2])[0], atol=1e-5)
    assert torch.allclose(vae.decode(z)[1], vae.decode(z[1:2])[0], atol=1e-5)


def test_an_image_alone_is_the_first_latent_of_any_clip_it_opens(vae: TinyVAE) -> None:
    clip = video(9)
    assert torch.allclose(vae.encode_frames(clip[:, 0]), vae.encode(clip)[:, 0], atol=1e-5)


def test_pixels_pooled_beforehand_give_the_same_latents(vae: TinyVAE) -> None:
    clip = video(5)
    assert torch.equal(vae.encode_base(vae.pool(clip)), vae.encode(clip))


def test_latents_are_normalised_by_the_statistics_in_the_checkpoint(vae: TinyVAE) -> None:
    clip = video(5)
    raw, _ = vae.posterior(vae.pool(clip))
    expected = (raw - vae.mean[:, None, None]) / vae.std[:, None, None]
    assert torch.allclose(vae.encode(clip), expected)


@pytest.mark.parametrize("frames", [4, 6])
def test_a_clip_whose_length_is_not_4m_plus_1_is_refused(vae: TinyVAE, frames: int) -> None:
    with pytest.raises(ValueError, match="4m\\+1"):
        vae.encode(video(frames))


def test_unfolding_time_undoes_folding_it() -> None:
    x = torch.arange(8 * 3 * 2 * 2 * 2.0).view(16, 3, 2, 2)
    folded = fold_time(x, batch=2, factor=4)
    assert folded.shape == (4, 12, 2, 2)
    assert torch.equal(unfold_time(folded, batch=2, factor=4), x)


def test_a_config_round_trips_through_json() -> None:
    assert TinyVAEConfig.from_json(SMALL.to_json()) == SMALL


def test_a_checkpoint_round_trips_with_its_config(vae: TinyVAE, tmp_path: Path) -> None:
    vae.save(tmp_path / "vae.safetensors")
    loaded = TinyVAE.load(tmp_path / "vae.safetensors")
    assert loaded.config == SMALL
    assert torch.allclose(loaded.decode(latents(3)), vae.decode(latents(3)), atol=1e-6)


def test_a_half_precision_checkpoint_loads_as_float32(vae: TinyVAE, tmp_path: Path) -> None:
    vae.save(tmp_path / "vae.safetensors", torch.float16)
    loaded = TinyVAE.load(tmp_path / "vae.safetensors")
    assert loaded.mean.dtype == torch.float32
    assert torch.allclose(loaded.decode(latents(3)), vae.decode(latents(3)), atol=0.02)


def test_a_checkpoint_that_does_not_fit_names_the_keys(vae: TinyVAE, tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    vae.save(path)
    tensors = load_file(path)
    del tensors["mean"]
    tensors["extra"] = torch.zeros(1)
    tensors["std"] = torch.ones(5)
    save_file(tensors, path, metadata={"format": FORMAT, "config": SMALL.to_json()})
    with pytest.raises(UserError, match=r"missing mean; unknown extra; std is \[5\] instead of \[4\]"):
        TinyVAE.load(path)


def test_a_file_that_is_no_codec_checkpoint_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no codec checkpoint"):
        TinyVAE.load(tmp_path / "absent.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="not a readable safetensors"):
        TinyVAE.load(tmp_path / "junk.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not a TinyVAE checkpoint"):
        TinyVAE.load(tmp_path / "other.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "bad.safetensors", metadata={"format": FORMAT, "config": '{"a": 1}'})
    with pytest.raises(UserError, match="not a TinyVAE configuration"):
        TinyVAE.load(tmp_path / "bad.safetensors")


# ------------------------------------------------------------------------------------ noise reduced over time
def steady(vae: TinyVAE, **settings: float) -> TinyVAE:
    """The same codec with noise reduction."""
    chosen = {"low": 0.2, "high": 0.4, "least": 0.25, **settings}
    made = TinyVAE(replace(vae.config, steady=tuple(chosen.values()))).eval().requires_grad_(False)
    made.load_state_dict(vae.state_dict())
    return made


def test_noise_reduction_damps_what_changes_little_and_lets_motion_through(vae: TinyVAE) -> None:
    still = latents(1).expand(-1, 5, -1, -1, -1).clone()
    flicker = still + 0.05 * torch.randn(still.shape, generator=torch.Generator().manual_seed(3))
    flicker[:, 0] = still[:, 0]
    quiet = steady(vae).decode(flicker) - vae.decode(still)
    assert quiet.square().mean() < 0.25 * (vae.decode(flicker) - vae.decode(still)).square().mean()
    moving = latents(5)
    moving[:, ::2] += 1.5  # every place changes by more than `high`
    assert torch.allclose(steady(vae).decode(moving), vae.decode(moving), atol=1e-6)


def test_a_lasting_change_arrives(vae: TinyVAE) -> None:
    z = latents(1).expand(-1, 20, -1, -1, -1).clone()
    z[:, 1:] += 0.1
    shown, wanted = steady(vae).decode(z), vae.decode(z)
    assert not torch.allclose(shown[:, 1:5], wanted[:, 1:5], atol=1e-3)
    assert torch.allclose(shown[:, -1], wanted[:, -1], atol=2e-3)


def test_noise_reduction_runs_on_a_stream_and_copies_of_it(vae: TinyVAE) -> None:
    codec, z = steady(vae), latents(7, batch=2)
    whole, stream = codec.decode(z), codec.new_stream(2)
    first = codec.decode_chunk(z[:, :3], stream)
    copy = stream.clone()
    rest = [codec.decode_chunk(z[:, 3:], each) for each in (stream, copy)]
    assert torch.equal(*rest)
    assert torch.allclose(torch.cat([first, rest[0]], 1), whole, atol=1e-6)
    copy.reset()
    assert torch.allclose(codec.decode_chunk(z, copy), whole, atol=1e-6)


def test_noise_reduction_is_kept_in_the_file_and_checked(vae: TinyVAE, tmp_path: Path) -> None:
    steady(vae).save(tmp_path / "vae.safetensors")
    assert TinyVAE.load(tmp_path / "vae.safetensors").config.steady == (0.2, 0.4, 0.25)
    with pytest.raises(UserError, match="0 <= low < high"):
        steady(vae, low=0.5)
