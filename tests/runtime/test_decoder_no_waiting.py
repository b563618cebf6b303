"""In the chunk loop no decoder moves numbers between host and device or asks the device for one, and streams share
nothing. The device here is torch's `meta`: it has shapes and no numbers, so asking for one fails, and a guard sees
every tensor that lies elsewhere. Pinned copies and allocators are not seen this way; a GPU has not been asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shotstream.runtime.decoders.taehv import TaehvConfig, random_taehv
from shotstream.runtime.decoders.tiny_vae import TinyVAE, TinyVAEConfig
from shotstream.runtime.decoders.wan_vae import WanVAEConfig, WanVAEOptions, random_wan_vae
from shotstream.runtime.plugins import Decoder


class Waited(Exception):
    """Something in the loop needed the host."""


class NoWaiting(TorchDispatchMode):
    """Raises for a tensor on the host, for a copy between devices, and for a number asked of the device."""

    ASKS = frozenset({"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique"})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in self.ASKS or (name.startswith("index") and _by_mask(args[1:])):
            raise Waited(f"{name} asks the device for numbers")
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, out)):
            if isinstance(value, Tensor) and value.device.type != "meta":
                raise Waited(f"{name} has a tensor on {value.device}")
        return out


def _by_mask(indices: tuple[Any, ...]) -> bool:
    """Whether a selection's size depends on numbers."""
    return any(isinstance(value, Tensor) and value.dtype == torch.bool for value in tree_leaves(indices))


def _taehv(device: str) -> Decoder:
    return random_taehv(TaehvConfig(latent_channels=16, encoder_width=6, decoder_widths=(10, 8, 7, 6)), device=device)


def _wan(device: str, **options: Any) -> Decoder:
    pytest.importorskip("diffusers")
    return random_wan_vae(WanVAEConfig(base_dim=8), device=device, options=WanVAEOptions(**options))


def _tiny(device: str) -> Decoder:
    config = TinyVAEConfig(
        latent_channels=16, encoder_channels=(4, 4, 4, 4), decoder_channels=(4, 4, 4), decoder_blocks=(1, 1, 1)
    )
    return TinyVAE(config).eval().requires_grad_(False).to(device)


MAKERS: dict[str, Callable[[str], Decoder]] = {
    "taehv": _taehv,
    "wan-vae": _wan,
    "wan-vae, channels last": lambda device: _wan(device, channels_last=True),
    "wan-vae, three latents at once": lambda device: _wan(device, latents_per_call=3),
    "tiny-vae": _tiny,
}


@pytest.mark.parametrize("name", MAKERS)
def test_no_decoder_waits_for_the_device_from_its_first_chunk_on(name: str) -> None:
    decoder = MAKERS[name]("meta")
    with torch.inference_mode(), NoWaiting():
        stream, frames = decoder.new_stream(1), []
        for count in (2, 1):
            z = torch.empty(1, count, 16, 2, 4, device="meta")
            pixels = decoder.decode_chunk(z, stream)
            frames.append(pixels.shape[1])
        decoder.encode_frames(pixels[0, :1])
    assert frames == [5, 4]


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.tensor(2.0),
        lambda x: x * torch.tensor([1.0, 2.0], device="cpu").to("meta").sum(),
        lambda x: x[torch.tensor([0])],
        lambda x: x if x.any() else -x,
        lambda x: x * x.max().item(),
        lambda x: x[x > 0],
        lambda x: x if torch.equal(x, x) else -x,
        lambda x: x.copy_(torch.ones(3)),
    ],
)
def test_the_guard_sees_what_would_wait(mistake: Callable[[Tensor], Any]) -> None:
    x = torch.empty(3, device="meta")
    with pytest.raises(Waited, match=r"asks the device for numbers|has a tensor on cpu"), NoWaiting():
        mistake(x)


def _storages(value: Any) -> Iterator[int]:
    """Where the tensors inside a stream (or module) lie."""
    if isinstance(value, Tensor):
        yield value.untyped_storage().data_ptr()
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _storages(item)
    elif hasattr(value, "__dict__"):
        yield from _storages(list(vars(value).values()))


@pytest.mark.parametrize("name", MAKERS)
def test_streams_share_no_memory_with_each_other_the_weights_the_latents_or_the_pixels(name: str) -> None:
    decoder = MAKERS[name]("cpu")
    assert isinstance(decoder, torch.nn.Module)
    generator = torch.Generator().manual_seed(0)
    streams = [decoder.new_stream(1) for _ in range(2)]
    others = {tensor.untyped_storage().data_ptr() for tensor in (*decoder.parameters(), *decoder.buffers())}
    held: list[Tensor] = []  # kept alive, so that no address is used twice
    for _ in range(2):
        for stream in streams:
            z = torch.randn(1, 3, 16, 2, 4, generator=generator)
            held += [z, decoder.decode_chunk(z, stream)]
    others |= {tensor.untyped_storage().data_ptr() for tensor in held}
    first, second = (set(_storages(stream)) for stream in streams)
    assert first
    assert not first & second
    assert not (first | second) & others
