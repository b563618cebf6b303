"""The decoders on a GPU: nothing waits, the layout lasts, the pictures are those of a CPU. Written without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from shotstream.runtime.decoders.taehv import Taehv, TaehvConfig, random_taehv, taehv_from
from shotstream.runtime.decoders.wan_vae import WanVAE, WanVAEConfig, random_wan_vae, wan_vae_from

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = "cuda"


def _taehv(dtype: torch.dtype) -> tuple[Taehv, Taehv]:
    made = random_taehv(TaehvConfig(encoder_width=16, decoder_widths=(32, 24, 16, 16)), seed=1)
    return made, taehv_from(made.state_dict(), GPU, dtype)


def _wan(dtype: torch.dtype) -> tuple[WanVAE, WanVAE]:
    pytest.importorskip("diffusers")
    made = random_wan_vae(WanVAEConfig(base_dim=16), seed=1)
    return made, wan_vae_from(made.autoencoder.state_dict(), GPU, dtype)


Maker = Callable[[torch.dtype], tuple[Taehv, Taehv] | tuple[WanVAE, WanVAE]]
MAKERS: list[Maker] = [_taehv, _wan]


@pytest.fixture
def z() -> Tensor:
    return torch.randn(1, 7, 16, 6, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def exact_float32() -> Iterator[None]:
    """Without the shortened products that convolutions take by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("make", MAKERS)
def test_a_gpu_paints_what_a_cpu_paints(make: Maker, z: Tensor, exact_float32: None) -> None:
    on_cpu, on_gpu = make(torch.float32)
    pixels = on_cpu.decode(z)
    assert torch.allclose(on_gpu.decode(z.to(GPU)).cpu(), pixels, atol=2e-4)
    latents = on_gpu.encode_frames(pixels[0, :2].to(GPU))
    assert torch.allclose(latents.cpu(), on_cpu.encode_frames(pixels[0, :2]), atol=2e-4)


@pytest.mark.parametrize("make", MAKERS)
@torch.inference_mode()
def test_nothing_waits_on_a_stream_of_its_own(make: Maker, z: Tensor) -> None:
    decoder = make(torch.bfloat16)[1]
    latents, chunks, stream = z.to(GPU), [], decoder.new_stream(1)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    decoder.decode(latents[:, :4])  # libraries may set themselves up
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(side):
            chunks = [decoder.decode_chunk(part, stream) for part in latents.split(3, dim=1)]
            decoder.encode_frames(chunks[0][0, :1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert [chunk.shape[1] for chunk in chunks] == [9, 12, 4]
    assert torch.allclose(torch.cat(chunks, dim=1).float(), decoder.decode(latents).float(), atol=0.05)


@torch.inference_mode()
def test_the_wan_vae_is_channels_last_on_a_gpu_and_stays_so_between_convolutions(z: Tensor) -> None:
    decoder = _wan(torch.bfloat16)[1]
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    answered: list[bool] = []

    def look(module: nn.Module, inputs: object, output: Tensor) -> None:
        answered.append(output.is_contiguous(memory_format=layouts[output.ndim]))

    for module in decoder.autoencoder.decoder.modules():
        if isinstance(module, nn.Conv3d | nn.Conv2d):
            module.register_forward_hook(look)
    decoder.decode(z.to(GPU))
    assert sum(answered) > 0.95 * len(answered)
