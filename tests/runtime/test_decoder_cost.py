"""What the real-size decoders cost on paper, counted on the meta device: arithmetic, bytes moved, working memory. The
figures of runtime/decoders/README.md are the ones asserted here; nothing is timed, no GPU is needed."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from shotstream.runtime.decoders.taehv import random_taehv
from shotstream.runtime.decoders.wan_vae import WanVAEOptions, random_wan_vae
from shotstream.runtime.plugins import Decoder
from shotstream.runtime.wan import WanSizes, _decoder_peak, memory_plan

SIZES = WanSizes()
COUNTED_WITH = "0.42.1"
"""The version of diffusers whose layers the figures of traffic belong to: another one may normalise otherwise."""
HEIGHT, WIDTH = SIZES.latent_size


class _Traffic(TorchDispatchMode):
    """Bytes that operations read and write, by operation (a view moves none), and the most that lived at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.launches = 0
        self.peak = self._now = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith("empty") and name != "_unsafe_view":
            read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            self.bytes[name] += sum(_size(value) for value in (*read, *made))
            self.launches += 1
        for value in made:
            self._follow(value.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._live:
            self._live[key] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self._now -= self._live.pop(key, 0)


def _size(value: Tensor) -> int:
    """Bytes of a tensor; what is only spread out counts once."""
    return min(value.numel() * value.element_size(), value.untyped_storage().nbytes())


def twelve_frames(decoder: Decoder) -> tuple[float, _Traffic]:
    """TFLOP and traffic of a shot's second chunk, three latents to twelve frames, in bf16."""
    stream = decoder.new_stream(1)
    z = torch.empty(1, 3, 16, HEIGHT, WIDTH, device="meta", dtype=torch.bfloat16)
    decoder.decode_chunk(z, stream)
    flops, traffic = FlopCounterMode(display=False), _Traffic()
    with flops, traffic:
        assert decoder.decode_chunk(z, stream).shape == (1, 12, 3, 480, 832)
    return flops.get_total_flops() / 1e12, traffic


def one_frame(decoder: Decoder) -> float:
    """TFLOP of encoding a context frame."""
    with FlopCounterMode(display=False) as flops:
        decoder.encode_frames(torch.empty(1, 3, 480, 832, device="meta", dtype=torch.bfloat16))
    return flops.get_total_flops() / 1e12


def test_taehv_takes_a_twentysixth_of_the_arithmetic_and_the_memory_planned_for_it() -> None:
    decoder = random_taehv(device="meta", dtype=torch.bfloat16)
    tflop, traffic = twelve_frames(decoder)
    assert tflop == pytest.approx(1.58, rel=0.01)
    assert one_frame(decoder) == pytest.approx(0.24, rel=0.01)
    assert sum(traffic.bytes.values()) / 1e9 == pytest.approx(12.1, rel=0.02)
    assert traffic.launches < 130
    planned = _decoder_peak(SIZES, "taehv") * 2
    assert planned * 0.85 < traffic.peak < planned * 1.1


@pytest.mark.parametrize(("at_once", "gigabytes", "launches"), [(1, 341, 1400), (3, 314, 460)])
def test_the_wan_vae_takes_the_arithmetic_of_the_cost_model_and_moves_more_than_its_convolutions_need(
    at_once: int, gigabytes: float, launches: int
) -> None:
    pytest.importorskip("diffusers")
    options = WanVAEOptions(channels_last=True, latents_per_call=at_once)
    decoder = random_wan_vae(device="meta", dtype=torch.bfloat16, options=options)
    tflop, traffic = twelve_frames(decoder)
    assert tflop == pytest.approx(40.65, rel=0.01)
    assert one_frame(decoder) == pytest.approx(2.72, rel=0.01)
    assert traffic.bytes["convolution"] / 1e9 < 31
    # The caches that a chunk replaces are counted as they are made, so the stream is part of this peak.
    plan = memory_plan(WanSizes(vae_options=options)).items
    planned = plan["working space (estimated)"] + plan["decoder stream (estimated)"]
    assert traffic.peak < planned * 1.1
    if metadata.version("diffusers") == COUNTED_WITH:
        assert sum(traffic.bytes.values()) / 1e9 == pytest.approx(gigabytes, rel=0.02)
        assert traffic.launches < launches
        assert traffic.peak > planned * 0.85
