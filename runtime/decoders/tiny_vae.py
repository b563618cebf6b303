"""The small causal video codec of the `tiny` preset: pixels <-> latents, four frames to one latent.

It has the geometry of the real model's codec (4k+1 frames <-> k+1 latents, every latent depends on the past only), so
that everything around it is shared; it has twice the channels, for cells four times as large, and is not compatible
with that codec's weights. The encoder average-pools pixels by two before its stride of eight; the decoder paints at
the full size, so one latent cell covers 16x16 pixels. Training lives in `shotstream.training.stages.vae`.

Letters: B clips, T pixel frames, F latent frames, C channels, H W height and width, N images. Inside the networks
frames are laid out time-major, [T*B, C, H, W]: a shift by one frame is then one concatenation.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from shotstream.runtime.decoders.common import TIME_FACTOR
from shotstream.runtime.decoders.steady import Steady
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.state_dicts import write_safetensors

FORMAT = "shotstream.tiny_vae.1"
_STRIDE = 8
_RGB = 3


@dataclasses.dataclass(frozen=True)
class TinyVAEConfig:
    """Sizes of a TinyVAE; round-trips through json, which a checkpoint carries in its metadata.

    `pool` is the average-pooling in front of the encoder and, with the stride of eight, sets the pixels that one
    latent cell covers (`cell`). `encoder_channels` are the widths at strides 2, 4, 8 and after the last time fold;
    `decoder_channels` and `decoder_blocks` the widths and memory blocks at strides 16, 8 and 4 of the full size.
    `hidden` are the hidden units of all memory blocks, the encoder's four and then the decoder's, where they are not as
    many as the block's channels; a block of the encoder without any is left out. UserError if they do not fit.
    """

    latent_channels: int = 32
    pool: int = 2
    encoder_channels: tuple[int, int, int, int] = (32, 64, 128, 160)
    decoder_channels: tuple[int, int, int] = (160, 80, 48)
    decoder_blocks: tuple[int, int, int] = (3, 2, 2)
    steady: tuple[float, float, float] | None = None
    """Low, high and least of the noise reduction over time in front of the decoder (`decoders/steady.py`)."""
    hidden: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        blocks = len(self.encoder_channels) + sum(self.decoder_blocks)
        wrong = len(self.hidden) != blocks or any(n < 0 for n in self.hidden) or 0 in self.hidden[4:]
        if self.hidden and wrong:
            raise UserError(
                f"a TinyVAE of these sizes has {blocks} memory blocks and as many numbers of hidden units; only those "
                f"of its encoder, the first four, may be 0: not {self.hidden}"
            )

    @property
    def encoder_hidden(self) -> tuple[int, ...]:
        """Hidden units of the encoder's memory blocks."""
        a, b, _, d = self.encoder_channels
        return self.hidden[:4] or (a, b, d, d)

    @property
    def decoder_hidden(self) -> tuple[tuple[int, ...], ...]:
        """Hidden units of the decoder's memory blocks, stride by stride."""
        sizes = zip(self.decoder_blocks, self.decoder_channels, strict=True)
        left = iter(self.hidden[4:] or [width for count, width in sizes for _ in range(count)])
        return tuple(tuple(next(left) for _ in range(count)) for count in self.decoder_blocks)

    @property
    def cell(self) -> int:
        """Full-resolution pixels along one side of a latent cell."""
        return _STRIDE * self.pool

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> TinyVAEConfig:
        """The config that `to_json` wrote; UserError on broken json or unknown fields."""
        try:
            fields: dict[str, Any] = json.loads(text)
            plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
            return cls(**plain)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"This is not a TinyVAE configuration ({error}): {text[:200]}") from error


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def fold_time(x: Tensor, batch: int, factor: int) -> Tensor:
    """[T*B, C, H, W] -> [T/factor*B, factor*C, H, W]: neighbouring frames become channels, earlier ones first."""
    frames, channels, height, width = x.shape
    x = x.view(frames // (factor * batch), factor, batch, channels, height, width).transpose(1, 2)
    return x.reshape(frames // factor, factor * channels, height, width)


def unfold_time(x: Tensor, batch: int, factor: int) -> Tensor:
    """The inverse of `fold_time`: [F*B, factor*C, H, W] -> [F*factor*B, C, H, W]."""
    frames, channels, height, width = x.shape
    x = x.reshape(frames // batch, batch, factor, channels // factor, height, width).transpose(1, 2)
    return x.reshape(frames * factor, channels // factor, height, width)


class MemoryBlock(nn.Module):
    """A residual block that sees this frame and the one before.

    One convolution computes both halves, what the frame says now and what it leaves for its successor; the second half
    is shifted by one frame. A stream therefore remembers a single feature map per block.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.split = _conv3(channels, 2 * hidden)
        self.mix = _conv3(hidden, channels)
        nn.init.normal_(self.mix.weight, std=0.3 / math.sqrt(9 * hidden))

    def forward(self, x: Tensor, batch: int, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [T*B, C, H, W]; `before` [B, hidden, H, W] is what the frame ahead of x left, None for none.

        Returns the output and what the last frame leaves (a view; a stream must copy it).
        """
        now, left = self.split(F.relu(x)).chunk(2, dim=1)
        if before is None:
            before = torch.zeros_like(left[:batch])
        shifted = torch.cat([before.to(left.dtype), left[:-batch]]) if len(left) > batch else before.to(left.dtype)
        return x + self.mix(F.relu(now + shifted)), left[-batch:]


def _block(channels: int, hidden: int) -> MemoryBlock | None:
    return MemoryBlock(channels, hidden) if hidden else None


class Encoder(nn.Module):
    """Pooled pixels to the posterior's mean and log-variance. A linear map of each 8x8x4 patch runs beside the
    convolutions, so that training can start at the PCA of the data."""

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        a, b, c, d = config.encoder_channels
        outputs = 2 * config.latent_channels
        hidden = config.encoder_hidden
        self.stem = _conv3(4 * _RGB, a)
        self.block_a = _block(a, hidden[0])
        self.down_a = nn.Conv2d(a, b, 4, stride=2, padding=1)
        self.fold_a = nn.Conv2d(2 * b, b, 1)
        self.block_b = _block(b, hidden[1])
        self.down_b = nn.Conv2d(b, c, 4, stride=2, padding=1)
        self.fold_b = nn.Conv2d(2 * c, d, 1)
        self.block_c = _block(d, hidden[2])
        self.block_d = _block(d, hidden[3])
        self.head = _conv3(d, outputs)
        self.linear = nn.Conv2d(TIME_FACTOR * _RGB * _STRIDE**2, outputs, 1)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """x [T*B, 3, H, W], T a multiple of four -> [T/4*B, 2*latent_channels, H/8, W/8]."""
        h = self._run(self.block_a, self.stem(F.pixel_unshuffle(x, 2)), batch)
        h = self._run(self.block_b, self.fold_a(fold_time(self.down_a(h), batch, 2)), batch)
        h = self._run(self.block_c, self.fold_b(fold_time(self.down_b(h), batch, 2)), batch)
        h = self._run(self.block_d, h, batch)
        patches = fold_time(F.pixel_unshuffle(x, _STRIDE), batch, TIME_FACTOR)
        return self.head(F.relu(h)) + self.linear(patches)

    @staticmethod
    def _run(block: MemoryBlock | None, h: Tensor, batch: int) -> Tensor:
        return h if block is None else block(h, batch, None)[0]


class Decoder(nn.Module):
    """Latents to pixels at full size. Nothing convolves there: the head works at a quarter of it and its 48 channels
    are shuffled into 4x4 pixels. A linear map from latent to patch runs beside, as in the encoder."""

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        a, b, c = config.decoder_channels
        hidden = config.decoder_hidden
        self._head_shuffle = config.cell // 4
        self._cell = config.cell
        self.stem = _conv3(config.latent_channels, a)
        self.blocks_a = nn.ModuleList(MemoryBlock(a, units) for units in hidden[0])
        self.unfold_a = nn.Conv2d(a, 2 * b, 1)
        self.smooth_a = _conv3(b, b)
        self.blocks_b = nn.ModuleList(MemoryBlock(b, units) for units in hidden[1])
        self.unfold_b = nn.Conv2d(b, 2 * c, 1)
        self.smooth_b = _conv3(c, c)
        self.blocks_c = nn.ModuleList(MemoryBlock(c, units) for units in hidden[2])
        self.head = _conv3(c, _RGB * self._head_shuffle**2)
        self.linear = nn.Conv2d(config.latent_channels, TIME_FACTOR * _RGB * self._cell**2, 1)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, z: Tensor, batch: int, memory: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """z [F*B, C, h, w] -> pixels [4*F*B, 3, H, W], not clamped, and what each memory block leaves."""
        left: list[Tensor] = []
        before = iter(memory) if memory is not None else None
        h = self._run(self.blocks_a, self.stem(z), batch, before, left)
        h = F.interpolate(unfold_time(self.unfold_a(h), batch, 2), scale_factor=2.0, mode="nearest")
        h = self._run(self.blocks_b, self.smooth_a(h), batch, before, left)
        h = F.interpolate(unfold_time(self.unfold_b(h), batch, 2), scale_factor=2.0, mode="nearest")
        h = self._run(self.blocks_c, self.smooth_b(h), batch, before, left)
        painted = F.pixel_shuffle(self.head(F.relu(h)), self._head_shuffle)
        patches = unfold_time(self.linear(z), batch, TIME_FACTOR)
        return painted + F.pixel_shuffle(patches, self._cell), left

    @staticmethod
    def _run(
        blocks: nn.ModuleList, h: Tensor, batch: int, before: Iterator[Tensor] | None, left: list[Tensor]
    ) -> Tensor:
        for block in blocks:
            h, last = block(h, batch, None if before is None else next(before))
            left.append(last)
        return h


class DecoderStream:
    """What one running clip's decoder remembers; it owns its tensors. Empty until the first chunk is decoded."""

    def __init__(self, batch: int = 1) -> None:
        self.batch = batch
        self.memory: list[Tensor] | None = None
        self.shown: Tensor | None = None
        """The last latents [B, C, h, w] that were decoded, where noise is reduced over time."""

    def reset(self) -> None:
        """Forget everything: the next chunk starts a new clip, and its first latent is one frame."""
        self.memory, self.shown = None, None

    def clone(self) -> DecoderStream:
        """An independent copy, for snapshots."""
        copy = DecoderStream(self.batch)
        copy.memory = None if self.memory is None else [m.clone() for m in self.memory]
        copy.shown = None if self.shown is None else self.shown.clone()
        return copy


class TinyVAE(nn.Module):
    """The codec: `encode`, `encode_frames`, `decode`, and `decode_chunk` for streams.

    Pixels are in [-1, 1]. Latents are normalised per channel with the `mean` and `std` kept in the checkpoint, so the
    model that generates them sees unit variance. Nothing here disables gradients; callers do.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: TinyVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config or TinyVAEConfig()
        self._steady = None if self.config.steady is None else Steady(*self.config.steady)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.register_buffer("mean", torch.zeros(self.config.latent_channels))
        self.register_buffer("std", torch.ones(self.config.latent_channels))

    # --- pixels to latents -------------------------------------------------------------------------------------

    def pool(self, video_BTCHW: Tensor) -> Tensor:
        """Full-resolution pixels averaged down to what the encoder reads."""
        pooled = F.avg_pool2d(video_BTCHW.flatten(0, 1), self.config.pool)
        return pooled.unflatten(0, video_BTCHW.shape[:2])

    def posterior(self, base_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, F, C, h, w], not normalised, of pooled pixels with T = 4m+1."""
        self._check_video(base_BTCHW)
        batch = base_BTCHW.shape[0]
        # The first latent stands for one frame, which fills its four places.
        padded = torch.cat([base_BTCHW[:, :1].expand(-1, TIME_FACTOR - 1, -1, -1, -1), base_BTCHW], 1)
        frames = padded.transpose(0, 1).flatten(0, 1)
        out = self.encoder(frames.contiguous(memory_format=torch.channels_last), batch)
        mean, log_variance = out.unflatten(0, (-1, batch)).transpose(0, 1).chunk(2, dim=2)
        return mean, log_variance

    def encode_base(self, base_BTCHW: Tensor) -> Tensor:
        """Latents [B, 1+m, C, h, w] of pixels that are already pooled (80x128 in `tiny`), T = 4m+1."""
        mean, _ = self.posterior(base_BTCHW.to(self.mean.dtype))
        return (mean - self._channel(self.mean)) / self._channel(self.std)

    def encode(self, video_BTCHW: Tensor) -> Tensor:
        """Latents [B, 1+m, C, h, w] of full-resolution pixels with T = 4m+1 frames."""
        return self.encode_base(self.pool(video_BTCHW))

    def encode_frames(self, frames_NCHW: Tensor) -> Tensor:
        """Latents [N, C, h, w] of full-resolution images, each encoded alone."""
        return self.encode(frames_NCHW[:, None])[:, 0]

    # --- latents to pixels -------------------------------------------------------------------------------------

    def decode(self, z_BFCHW: Tensor) -> Tensor:
        """Pixels [B, 1+4(F-1), 3, H, W] in [-1, 1] of a whole clip."""
        return self.decode_chunk(z_BFCHW, self.new_stream(z_BFCHW.shape[0]))

    def new_stream(self, batch: int = 1) -> DecoderStream:
        return DecoderStream(batch)

    def decode_chunk(self, z_BFCHW: Tensor, stream: DecoderStream) -> Tensor:
        """The next pixels of a clip: 1+4(F-1) frames for the stream's first latents, 4F afterwards.

        Decoding in chunks equals decoding at once. The stream keeps copies; `z_BFCHW` may be overwritten afterwards.
        """
        batch = z_BFCHW.shape[0]
        if batch != stream.batch:
            raise ValueError(f"the stream was made for {stream.batch} clips, got latents of {batch}")
        first = stream.memory is None
        if self._steady is not None:
            z_BFCHW = self._steady(z_BFCHW, stream.shown)
            stream.shown = z_BFCHW[:, -1].detach().clone()
        raw = z_BFCHW.to(self.mean.dtype) * self._channel(self.std) + self._channel(self.mean)
        video_BTCHW, left = self.decode_raw(raw, stream.memory)
        stream.memory = [m.detach().clone() for m in left]
        if first:
            video_BTCHW = video_BTCHW[:, TIME_FACTOR - 1 :]
        return video_BTCHW.clamp(-1.0, 1.0)

    def decode_raw(self, z_BFCHW: Tensor, memory: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """For training: latents as the encoder wrote them -> 4F frames, neither clamped nor trimmed, and the memory."""
        batch = z_BFCHW.shape[0]
        z = z_BFCHW.transpose(0, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        pixels, left = self.decoder(z, batch, memory)
        return pixels.unflatten(0, (-1, batch)).transpose(0, 1), left

    # --- checkpoints -------------------------------------------------------------------------------------------

    def save(self, path: Path | str, dtype: torch.dtype = torch.float32) -> None:
        """Write weights and config to one safetensors file, whole or not at all; floating weights as `dtype`."""
        tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in self.state_dict().items()}
        write_safetensors(path, tensors, {"format": FORMAT, "config": self.config.to_json()})

    @classmethod
    def load(cls, path: Path | str, dtype: torch.dtype = torch.float32) -> TinyVAE:
        """Read what `save` wrote, in evaluation mode on the CPU. UserError if the file is missing or does not fit."""
        if not Path(path).is_file():
            raise UserError(f"There is no codec checkpoint at {path}.")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        except SafetensorError as error:
            raise UserError(f"{path} is not a readable safetensors file: {error}") from error
        if metadata.get("format") != FORMAT or "config" not in metadata:
            raise UserError(f"{path} is not a TinyVAE checkpoint: its metadata lack format {FORMAT!r} and a config.")
        vae = cls(TinyVAEConfig.from_json(metadata["config"]))
        expected = vae.state_dict()
        problems = [f"missing {key}" for key in sorted(expected.keys() - tensors.keys())]
        problems += [f"unknown {key}" for key in sorted(tensors.keys() - expected.keys())]
        problems += [
            f"{key} is {list(tensors[key].shape)} instead of {list(expected[key].shape)}"
            for key in sorted(expected.keys() & tensors.keys())
            if tensors[key].shape != expected[key].shape
        ]
        if problems:
            shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise UserError(f"The codec checkpoint {path} does not fit its config: {shown}.")
        vae.load_state_dict(tensors)
        vae.use_channels_last()
        return vae.to(dtype).eval()

    def use_channels_last(self) -> None:
        """Lay the kernels out for convolutions on channels-last images: the fast way on a CPU."""
        for parameter in self.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    # --- helpers -----------------------------------------------------------------------------------------------

    @staticmethod
    def _channel(values_C: Tensor) -> Tensor:
        return values_C[:, None, None]

    @staticmethod
    def _check_video(base_BTCHW: Tensor) -> None:
        if base_BTCHW.ndim != 5 or base_BTCHW.shape[2] != _RGB:
            raise ValueError(f"expected pixels [B, T, 3, H, W], got {list(base_BTCHW.shape)}")
        frames, height, width = base_BTCHW.shape[1], base_BTCHW.shape[3], base_BTCHW.shape[4]
        if frames % TIME_FACTOR != 1:
            raise ValueError(f"a clip has 4m+1 frames, got {frames}")
        if height % _STRIDE or width % _STRIDE:
            raise ValueError(f"pooled height and width must be multiples of {_STRIDE}, got {height}x{width}")
