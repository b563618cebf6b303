"""TAEHV for Wan2.1's latents: a small codec in place of the Wan VAE, for a small part of its time and with less detail.

The weights are Ollin Boer Bohan's (github.com/madebyollin/taehv, file ``taew2_1``, MIT); the code here is our own. It
reads and writes the latents that the diffusion model works on: the Wan VAE's mean and deviation per channel are
inside its weights. The file's pixels are in [0, 1], ours in [-1, 1].

The decoder makes four frames of every latent; a shot's first latent stands for one frame, and the three ahead of it
are dropped. A stream keeps what each memory block of the decoder saw last. Nothing here waits for the device.

Letters: B clips, F latent frames, T pixel frames, N images, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from shotstream.runtime.decoders.common import TIME_FACTOR, check_latents, check_pixels
from shotstream.runtime.decoders.taehv_layers import (
    DECODER_STAGE,
    DECODER_STEM,
    ENCODER_STEM,
    TaehvConfig,
    TaehvDecoder,
    TaehvEncoder,
)
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.checkpoint_files import iter_tensor_dicts, open_weights
from shotstream.runtime.model.key_maps import named
from shotstream.runtime.model.state_dicts import check_shapes, placed

NAME = "taehv"
PARAMETERS = 11_315_539
"""Encoder and decoder together."""


@dataclass
class TaehvStream:
    """A shot being decoded: what its memory blocks saw last (``[B, C, h, w]`` each) and how many latents went by."""

    batch: int
    memory: list[Tensor] | None = None
    """None until the first latents tell how large it is; from then on the same tensors, written in place."""
    frames: int = 0


class Taehv(nn.Module):
    """The codec as a decoder of the runtime; use :func:`load_taehv` or :func:`random_taehv`.

    State-dict keys are those of the published file. One set of weights serves any number of streams.
    """

    def __init__(self, config: TaehvConfig | None = None) -> None:
        super().__init__()
        self.config = config or TaehvConfig()
        self.encoder = TaehvEncoder(self.config)
        self.decoder = TaehvDecoder(self.config)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents it reads."""
        return self.config.latent_channels

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights; inputs are cast to it."""
        return next(self.parameters()).dtype

    def new_stream(self, batch: int = 1) -> TaehvStream:
        """The empty memory of a new shot of ``batch`` clips; a stream serves one shot only."""
        if batch < 1:
            raise UserError(f"a stream needs at least one clip, not {batch}")
        return TaehvStream(batch)

    @torch.no_grad()
    def decode_chunk(self, z_BFCHW: Tensor, stream: TaehvStream) -> Tensor:
        """The next latents of a shot to pixels ``[B, f, 3, 8H, 8W]``: f = 4F - 3 at the shot's start, 4F later.

        Result in the weights' dtype, clamped to [-1, 1]. The stream keeps copies; the latents may be overwritten.
        ``UserError`` for latents of another model; ``ValueError`` for latents of another size than the stream's.
        """
        check_latents(z_BFCHW, self.config.latent_channels, NAME)
        batch, frames, _, height, width = z_BFCHW.shape
        z = _images(z_BFCHW.to(self.dtype))
        if stream.memory is None:
            stream.memory = self.decoder.new_memory(stream.batch, height, width, z)
        if (batch, height, width) != (stream.batch, *stream.memory[0].shape[-2:]):
            sizes = f"{stream.batch} clips of {tuple(stream.memory[0].shape[-2:])}"
            raise ValueError(f"the stream decodes {sizes}, not {batch} of {(height, width)}")
        skip = TIME_FACTOR - 1 if stream.frames == 0 else 0
        pixels = self.decoder(z, stream.memory, skip)
        stream.frames += frames
        return _clips(pixels.mul_(2).sub_(1).clamp_(-1, 1), batch)

    def decode(self, z_BFCHW: Tensor) -> Tensor:
        """A whole shot to pixels ``[B, 1 + 4(F - 1), 3, 8H, 8W]``: one stream, one chunk."""
        return self.decode_chunk(z_BFCHW, self.new_stream(z_BFCHW.shape[0]))

    @torch.no_grad()
    def encode(self, video_BTCHW: Tensor) -> Tensor:
        """A clip to latents ``[B, ceil(T/4), C, H/8, W/8]``; its last frame is repeated to a multiple of four.

        So 4m + 1 frames give 1 + m latents, as many as the Wan VAE gives; but the k-th has seen frames up to 4k + 3,
        three more than there. This is how the published codec does it. One frame alone fills its four places.
        """
        check_pixels(video_BTCHW)
        batch, frames = video_BTCHW.shape[:2]
        missing = -frames % TIME_FACTOR
        x = video_BTCHW.to(self.dtype).add(1).div_(2)
        if missing:
            x = torch.cat([x, x[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        return _clips(self.encoder(_images(x), batch), batch)

    def encode_frames(self, frames_NCHW: Tensor) -> Tensor:
        """Context frames to latents ``[N, C, H/8, W/8]``, every one a clip of its own, one at a time."""
        latents = [self.encode(frame[None, None])[:, 0] for frame in frames_NCHW]
        return latents[0] if len(latents) == 1 else torch.cat(latents)


def parameter_count(config: TaehvConfig) -> int:
    """Weights of a codec of this size, encoder and decoder together."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Taehv(config).parameters())


def random_taehv(
    config: TaehvConfig | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Taehv:
    """A codec of this size with random weights (tests, dry runs); the same seed gives the same on a device type."""
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        codec = Taehv(config)
    return _ready(codec.to(dtype))


def load_taehv(path: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Taehv:
    """Load ``taew2_1.pth`` or ``taew2_1.safetensors``; ``UserError`` for anything else."""
    file = open_weights(path)
    dicts = list(iter_tensor_dicts(file.content))
    if len(dicts) != 1:
        raise UserError(f"{file.path} holds no TAEHV weights: its entries are {named(file.content)}")
    return taehv_from(dicts[0][1], device, dtype, where=str(file.path))


def taehv_from(
    sd: Mapping[str, Tensor],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    where: str = "the state dict",
) -> Taehv:
    """A codec from a state dict; ``UserError`` names missing, extra and mis-shaped keys. Widths come from the weights.

    Files for other models have the same keys. Those with other channels are refused; ``taehv`` (Hunyuan Video),
    ``taecvx`` and ``taeos1_3`` cannot be told apart by their shapes, only by the file's hash.
    """
    stem, head = sd.get(f"decoder.{DECODER_STEM}.weight"), sd.get(f"encoder.{ENCODER_STEM}.weight")
    convolutions = [sd.get(f"decoder.{DECODER_STAGE + 6 * stage + 5}.weight") for stage in range(3)]
    found = [tensor for tensor in (stem, head, *convolutions) if tensor is not None and tensor.ndim == 4]
    if len(found) != 5:
        raise UserError(f"{where} holds no TAEHV weights: its keys start with {named(sd)}")
    outputs = [tensor.shape[0] for tensor in found]
    config = TaehvConfig(
        latent_channels=found[0].shape[1],
        encoder_width=outputs[1],
        decoder_widths=(outputs[0], outputs[2], outputs[3], outputs[4]),
    )
    with torch.device("meta"):
        codec = Taehv(config)
    shapes = {key: tuple(value.shape) for key, value in codec.state_dict().items()}
    check_shapes(sd, shapes, where, f"a TAEHV for latents of {config.latent_channels} channels")
    codec.load_state_dict(placed(sd, device, dtype), assign=True)
    return _ready(codec)


def _ready(codec: Taehv) -> Taehv:
    codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return codec.eval().requires_grad_(False)


def _images(clips_BTCHW: Tensor) -> Tensor:
    """``[B, T, C, H, W]`` -> ``[T*B, C, H, W]``, channels last."""
    return clips_BTCHW.transpose(0, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _clips(images: Tensor, batch: int) -> Tensor:
    """``[T*B, C, H, W]`` -> ``[B, T, C, H, W]``, without a copy."""
    return images.unflatten(0, (-1, batch)).transpose(0, 1)
