"""TAEHV with small random weights: streams, batches and single frames, against the whole clip computed another way."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shotstream.runtime.decoders.taehv import PARAMETERS, Taehv, TaehvConfig, parameter_count, random_taehv
from shotstream.runtime.errors import UserError

SMALL = TaehvConfig(latent_channels=5, encoder_width=6, decoder_widths=(10, 8, 7, 6))
GAIN = 1.1
StateDict = Mapping[str, Tensor]


def lively(dtype: torch.dtype = torch.float64, config: TaehvConfig = SMALL) -> Taehv:
    """Weights with which every layer matters: torch's own let a signal die away and leave the picture grey."""
    made = random_taehv(config, seed=1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    for weight in made.parameters():
        spread = GAIN / (weight[0].numel() ** 0.5 if weight.ndim == 4 else 5)
        weight.copy_(spread * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return made.to(dtype)


@pytest.fixture(scope="module")
def codec() -> Taehv:
    return lively()


@pytest.fixture(scope="module")
def z() -> Tensor:
    return 2 * torch.randn(2, 7, 5, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture(scope="module")
def video() -> Tensor:
    return torch.rand(2, 9, 3, 16, 24, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 2 - 1


# ------------------------------------------------------------- the same network as three-dimensional convolutions


def spatial(sd: StateDict, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = sd[f"{name}.weight"][:, :, None]
    around = weight.shape[-1] // 2
    return F.conv3d(x, weight, sd.get(f"{name}.bias"), stride=(1, stride, stride), padding=(0, around, around))


def memory(sd: StateDict, name: str, x: Tensor) -> Tensor:
    """The block's first layer as one causal kernel of two frames over the whole clip."""
    now, before = sd[f"{name}.conv.0.weight"].chunk(2, dim=1)
    kernel = torch.stack([before, now], dim=2)
    h = F.conv3d(F.pad(x, (0, 0, 0, 0, 1, 0)), kernel, sd[f"{name}.conv.0.bias"], padding=(0, 1, 1))
    h = spatial(sd, f"{name}.conv.4", spatial(sd, f"{name}.conv.2", h.relu()).relu())
    return (h + x).relu()


def whole_clip_decoded(sd: StateDict, z: Tensor) -> Tensor:
    """The published order of layers: double the picture, then mix channels, then spread them over time."""
    x = spatial(sd, "decoder.1", (z / 3).tanh().transpose(1, 2) * 3).relu()
    for first, factor in ((3, 1), (9, 2), (15, 2)):
        for block in range(first, first + 3):
            x = memory(sd, f"decoder.{block}", x)
        x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
        x = spatial(sd, f"decoder.{first + 4}.conv", x)
        frames = [part for moment in x.split(1, dim=2) for part in moment.chunk(factor, dim=1)]
        x = spatial(sd, f"decoder.{first + 5}", torch.cat(frames, dim=2))
    pixels = spatial(sd, "decoder.22", x.relu()).transpose(1, 2)[:, 3:]
    return pixels.clamp(0, 1) * 2 - 1


def whole_clip_encoded(sd: StateDict, video: Tensor) -> Tensor:
    frames = list(((video + 1) / 2).unbind(1))
    while len(frames) % 4:
        frames.append(frames[-1])
    x = spatial(sd, "encoder.0", torch.stack(frames, dim=2)).relu()
    for first, factor in ((2, 2), (7, 2), (12, 1)):
        weight = sd[f"encoder.{first}.conv.weight"]
        kernel = torch.stack(weight[:, :, 0, 0].chunk(factor, dim=1), dim=2)[..., None, None]
        x = F.conv3d(x, kernel, stride=(factor, 1, 1))
        x = spatial(sd, f"encoder.{first + 1}", x, stride=2)
        for block in range(first + 2, first + 5):
            x = memory(sd, f"encoder.{block}", x)
    return spatial(sd, "encoder.17", x).transpose(1, 2)


# -------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("split", [(7,), (3, 3, 1), (1, 1, 2, 3)])
def test_chunk_by_chunk_or_at_once_it_is_the_clip_computed_another_way(
    codec: Taehv, z: Tensor, split: tuple[int, ...]
) -> None:
    stream = codec.new_stream(2)
    chunks = [codec.decode_chunk(part, stream) for part in z.split(split, dim=1)]
    assert [chunk.shape[1] for chunk in chunks] == [4 * split[0] - 3, *(4 * count for count in split[1:])]
    pixels = torch.cat(chunks, dim=1)
    expected = whole_clip_decoded(codec.state_dict(), z)
    assert pixels.shape == expected.shape == (2, 25, 3, 24, 32)
    assert torch.allclose(pixels, expected, atol=1e-12)
    assert 0.3 < (expected.abs() < 1).double().mean() < 0.99  # neither grey nor black and white


def test_a_new_stream_forgets_and_an_old_one_does_not(codec: Taehv, z: Tensor) -> None:
    old = codec.new_stream(2)
    codec.decode_chunk(z[:, :3], old)
    following = codec.decode_chunk(z[:, 3:], old)[:, 3:]
    fresh = codec.decode_chunk(z[:, 3:], codec.new_stream(2))
    assert not torch.allclose(following[:, :4], fresh[:, :4], atol=1e-3)


def test_streams_and_the_clips_of_a_batch_do_not_disturb_each_other(codec: Taehv, z: Tensor) -> None:
    together = codec.decode(z)
    streams = [codec.new_stream(1) for _ in range(2)]
    parts: list[list[Tensor]] = [[], []]
    for chunk in z.split(3, dim=1):
        for i in range(2):
            parts[i].append(codec.decode_chunk(chunk[i : i + 1], streams[i]))
    for i in range(2):
        assert torch.allclose(torch.cat(parts[i], dim=1)[0], together[i], atol=1e-12)


def test_the_latents_may_be_overwritten_once_a_chunk_is_decoded(codec: Taehv, z: Tensor) -> None:
    stream, buffer, chunks = codec.new_stream(2), torch.empty_like(z[:, :1]), []
    for frame in z.split(1, dim=1):
        buffer.copy_(frame)
        chunks.append(codec.decode_chunk(buffer, stream))
        assert torch.equal(buffer, frame)
    assert torch.allclose(torch.cat(chunks, dim=1), codec.decode(z), atol=1e-12)


def test_a_stream_goes_on_in_and_outside_of_inference_mode_in_the_same_memory(codec: Taehv, z: Tensor) -> None:
    stream = codec.new_stream(2)
    with torch.inference_mode():
        first = codec.decode_chunk(z[:, :3], stream)
    assert stream.memory is not None
    places = [tensor.data_ptr() for tensor in stream.memory]
    second = codec.decode_chunk(z[:, 3:], stream)
    assert torch.allclose(torch.cat([first, second], dim=1), codec.decode(z), atol=1e-12)
    assert [tensor.data_ptr() for tensor in stream.memory] == places
    assert sum(tensor.numel() for tensor in stream.memory) == SMALL.stream_values(3, 4, batch=2)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float16, 0.05), (torch.bfloat16, 0.3)])
def test_every_number_format_gives_its_own_pixels_near_the_exact_ones(
    codec: Taehv, z: Tensor, dtype: torch.dtype, bound: float
) -> None:
    pixels = lively(dtype).decode(z.float())
    assert pixels.dtype == dtype
    assert (pixels.double() - codec.decode(z)).abs().max() < bound


# -------------------------------------------------------------------------------------------------- encoding


@pytest.mark.parametrize("frames", [1, 4, 5, 6, 9])
def test_a_clip_encodes_as_computed_another_way_with_its_last_frame_repeated(
    codec: Taehv, video: Tensor, frames: int
) -> None:
    latents = codec.encode(video[:, :frames])
    assert latents.shape == (2, (frames + 3) // 4, 5, 2, 3)
    assert torch.allclose(latents, whole_clip_encoded(codec.state_dict(), video[:, :frames]), atol=1e-12)


def test_a_context_frame_is_a_clip_of_one_whatever_stands_beside_it(codec: Taehv, video: Tensor) -> None:
    alone = codec.encode_frames(video[0])
    assert alone.shape == (9, 5, 2, 3)
    assert torch.equal(alone[4], codec.encode_frames(video[0, 4:5])[0])
    assert torch.allclose(alone[4], codec.encode(video[:1, 4:5].expand(-1, 4, -1, -1, -1))[0, 0], atol=1e-12)


# -------------------------------------------------------------------------------------------------- sizes, refusals


def test_the_released_size_has_128_tensors_and_its_published_number_of_weights() -> None:
    with torch.device("meta"):
        sd = Taehv().state_dict()
    assert len(sd) == 128
    assert sum(t.numel() for t in sd.values()) == parameter_count(TaehvConfig()) == PARAMETERS
    assert PARAMETERS * 2 < 22_642_902 < PARAMETERS * 2 + 16_384  # the published fp16 file, with its header


def test_what_does_not_fit_is_refused_in_one_sentence(codec: Taehv, z: Tensor) -> None:
    with pytest.raises(UserError, match=r"'taehv' does not fit this model: it reads latents of 5 channels, and .* 4"):
        codec.decode(z[:, :, :4])
    stream = codec.new_stream(2)
    codec.decode_chunk(z, stream)
    for wrong in (z[:1], z[..., :2]):
        with pytest.raises(ValueError, match="the stream decodes 2 clips of"):
            codec.decode_chunk(wrong, stream)
    with pytest.raises(UserError, match="resize"):
        codec.encode(torch.zeros(1, 1, 3, 12, 16))
    with pytest.raises(UserError, match=r"shape \[B, T, 3, H, W\]"):
        codec.encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(UserError, match="at least one clip"):
        codec.new_stream(0)
