"""The Wan VAE in channels-last layout and with several latents at once: the same pictures, and the layout lasts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from shotstream.runtime.decoders.wan_vae import WanVAE, WanVAEConfig, WanVAEOptions, random_wan_vae, wan_vae_from
from shotstream.runtime.errors import UserError

pytest.importorskip("diffusers")
TINY = WanVAEConfig(base_dim=8)
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def codec(**options: Any) -> WanVAE:
    return random_wan_vae(TINY, seed=3, options=WanVAEOptions(**options))


@pytest.fixture(scope="module")
def z() -> Tensor:
    return torch.randn(2, 7, 16, 2, 4, generator=torch.Generator().manual_seed(1))


def test_channels_last_decodes_and_encodes_the_same_up_to_rounding(z: Tensor) -> None:
    plain, laid_out = codec(channels_last=False), codec(channels_last=True)
    pixels = plain.decode(z)
    assert torch.allclose(laid_out.decode(z), pixels, atol=2e-5)
    assert pixels.std() > 0.01
    assert torch.allclose(laid_out.encode(pixels[:, :9]), plain.encode(pixels[:, :9]), atol=2e-5)
    stream = laid_out.new_stream(2)
    chunks = [laid_out.decode_chunk(part, stream) for part in z.split(3, dim=1)]
    assert torch.equal(torch.cat(chunks, dim=1), laid_out.decode(z))


def test_only_the_kernels_change_their_layout_and_on_a_cpu_only_when_asked(z: Tensor) -> None:
    def laid_out(made: WanVAE) -> set[bool]:
        kernels = [
            m.weight for m in made.modules() if isinstance(m, nn.Conv3d | nn.Conv2d) and m.weight[0, 0].numel() > 1
        ]
        return {kernel.is_contiguous(memory_format=LAYOUTS[kernel.ndim]) for kernel in kernels}

    assert laid_out(codec()) == laid_out(codec(channels_last=False)) == {False}
    loaded = wan_vae_from(codec().autoencoder.state_dict(), options=WanVAEOptions(channels_last=True))
    assert laid_out(loaded) == laid_out(codec(channels_last=True)) == {True}
    assert torch.equal(loaded.decode(z), codec(channels_last=True).decode(z))


class _AsCuDNN(TorchDispatchMode):
    """Makes every convolution answer in channels-last layout, as cuDNN does for such weights; counts in which layout
    they were asked. A CPU's convolutions answer as they please."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[bool] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ == "convolution":
            layout = LAYOUTS[args[0].ndim]
            self.asked[args[0].is_contiguous(memory_format=layout)] += 1
            out = out.contiguous(memory_format=layout)
        return out


def test_feature_maps_stay_channels_last_from_convolution_to_convolution() -> None:
    """But for three places in diffusers' layers: behind the attention, and twice where frames are spread over time."""
    made = random_wan_vae(WanVAEConfig(), device="meta", options=WanVAEOptions(channels_last=True))
    stream = made.new_stream(1)
    with _AsCuDNN() as seen:
        made.decode_chunk(torch.empty(1, 2, 16, 6, 8, device="meta"), stream)
        seen.asked.clear()
        made.decode_chunk(torch.empty(1, 3, 16, 6, 8, device="meta"), stream)
    assert sum(seen.asked.values()) == 3 * 39
    assert seen.asked[False] == 3 * 3


@pytest.mark.parametrize("count", [2, 3])
def test_latents_at_once_give_the_same_frames_in_fewer_calls(
    z: Tensor, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, several = codec(), codec(latents_per_call=count)
    calls: list[int] = []
    forward = several.autoencoder.decoder.forward

    def counted(x: Tensor, **rest: Any) -> Tensor:
        calls.append(x.shape[2])
        return forward(x, **rest)

    monkeypatch.setattr(several.autoencoder.decoder, "forward", counted)
    stream = several.new_stream(2)
    chunks = [several.decode_chunk(part, stream) for part in z.split(3, dim=1)]
    assert [chunk.shape[1] for chunk in chunks] == [9, 12, 4]
    assert calls == ([1, 2, 2, 1, 1] if count == 2 else [1, 2, 3, 1])
    assert torch.allclose(torch.cat(chunks, dim=1), one.decode(z), atol=2e-5)


def test_frames_of_a_chunk_lie_one_behind_the_other_and_within_range(z: Tensor) -> None:
    pixels = codec().decode_chunk(40 * z, codec().new_stream(2))
    assert pixels.is_contiguous()
    assert pixels.abs().max() == 1


def test_latents_of_another_model_and_impossible_options_are_refused(z: Tensor) -> None:
    with pytest.raises(
        UserError, match=r"'wan-vae' does not fit this model: it reads latents of 16 channels, and .* 8"
    ):
        codec().decode(z[:, :, :8])
    with pytest.raises(UserError, match="at least 1, not 0"):
        WanVAEOptions(latents_per_call=0)
