"""The real model's codec at a tiny width: streaming, encoding one frame alone, loading both layouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shotstream.runtime.decoders.wan_vae import (
    PARAMETERS,
    WanVAE,
    WanVAEConfig,
    _autoencoder,
    load_wan_vae,
    random_wan_vae,
)
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.key_maps import diffusers_vae_to_wan, wan_vae_to_diffusers

pytest.importorskip("diffusers")
TINY = WanVAEConfig(base_dim=8)


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    return random_wan_vae(TINY, seed=3)


@pytest.fixture(scope="module")
def z() -> torch.Tensor:
    return torch.randn(1, 7, 16, 2, 4, generator=torch.Generator().manual_seed(1))


def test_chunks_decode_to_nine_then_twelve_frames_and_equal_the_whole_shot_bit_for_bit(
    vae: WanVAE, z: torch.Tensor
) -> None:
    stream = vae.new_stream(1)
    chunks = [vae.decode_chunk(part, stream) for part in (z[:, :3], z[:, 3:6], z[:, 6:])]
    assert [chunk.shape[1] for chunk in chunks] == [9, 12, 4]
    whole = vae.decode(z)
    assert whole.shape == (1, 25, 3, 16, 32)
    assert torch.equal(torch.cat(chunks, dim=1), whole)
    assert whole.abs().max() <= 1


def test_our_whole_decode_equals_that_of_diffusers(vae: WanVAE, z: torch.Tensor) -> None:
    mean, scale = vae._norm.at(z)
    with torch.no_grad():
        theirs = vae.autoencoder.decode(z.transpose(1, 2) / scale + mean).sample.transpose(1, 2)
    assert (vae.decode(z) - theirs).abs().max() < 5e-6  # one 1x1 convolution sums in another order


def test_two_streams_on_one_codec_do_not_disturb_each_other(vae: WanVAE, z: torch.Tensor) -> None:
    one, two = vae.new_stream(), vae.new_stream()
    first = vae.decode_chunk(z[:, :3], one)
    vae.decode_chunk(-z[:, :3], two)
    second = vae.decode_chunk(z[:, 3:6], one)
    assert torch.equal(torch.cat([first, second], dim=1), vae.decode(z[:, :6]))


def test_a_clip_encodes_as_diffusers_encodes_it(vae: WanVAE) -> None:
    video = torch.rand(1, 9, 3, 16, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    mean, scale = vae._norm.at(video)
    with torch.no_grad():
        theirs = (vae.autoencoder.encode(video.transpose(1, 2)).latent_dist.mode() - mean) * scale
    assert torch.allclose(vae.encode(video), theirs.transpose(1, 2), atol=1e-6)


def test_a_context_frame_encodes_alone_and_as_the_first_frame_of_a_clip(vae: WanVAE) -> None:
    frames = torch.rand(5, 3, 16, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    alone = vae.encode_frames(frames)
    assert alone.shape == (5, 16, 2, 4)
    assert torch.equal(alone[3], vae.encode_frames(frames[3:4])[0])
    assert torch.allclose(alone[0], vae.encode(frames[None])[0, 0], atol=1e-6)


def test_bf16_weights_take_float32_latents_and_give_bf16_pixels(z: torch.Tensor) -> None:
    pixels = random_wan_vae(TINY, seed=3, dtype=torch.bfloat16).decode(z[:, :2])
    assert pixels.dtype == torch.bfloat16
    assert torch.isfinite(pixels).all()


def test_both_file_layouts_load_to_the_same_codec(vae: WanVAE, z: torch.Tensor, tmp_path: Path) -> None:
    theirs = dict(vae.autoencoder.state_dict())
    original = diffusers_vae_to_wan(theirs)
    torch.save(original, tmp_path / "Wan2.1_VAE.pth")
    save_file(theirs, tmp_path / "diffusion_pytorch_model.safetensors")
    expected = vae.decode(z[:, :3])
    assert torch.equal(load_wan_vae(tmp_path / "Wan2.1_VAE.pth").decode(z[:, :3]), expected)
    assert torch.equal(load_wan_vae(tmp_path / "diffusion_pytorch_model.safetensors").decode(z[:, :3]), expected)
    assert set(wan_vae_to_diffusers(original)) == set(theirs)


def test_a_codec_file_with_a_missing_tensor_is_refused_by_name(vae: WanVAE, tmp_path: Path) -> None:
    original = diffusers_vae_to_wan(dict(vae.autoencoder.state_dict()))
    del original["decoder.middle.0.residual.2.weight"]
    torch.save(original, tmp_path / "Wan2.1_VAE.pth")
    with pytest.raises(UserError, match=r"missing decoder\.mid_block\.resnets\.0\.conv1\.weight"):
        load_wan_vae(tmp_path / "Wan2.1_VAE.pth")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds no Wan VAE"):
        load_wan_vae(tmp_path / "other.pth")


def test_the_released_size_has_194_tensors_in_both_layouts() -> None:
    sd = _autoencoder(WanVAEConfig(), "meta").state_dict()
    assert len(sd) == len(diffusers_vae_to_wan(sd)) == 194
    assert sum(t.numel() for t in sd.values()) == PARAMETERS


def test_frames_of_a_wrong_count_or_size_are_refused_in_one_sentence(vae: WanVAE) -> None:
    with pytest.raises(UserError, match="4m \\+ 1 frames"):
        vae.encode(torch.zeros(1, 4, 3, 16, 16))
    with pytest.raises(UserError, match="resize"):
        vae.encode(torch.zeros(1, 1, 3, 12, 16))
