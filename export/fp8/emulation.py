"""The segments' matrix products in torch: watched, or rounded to eight bits as the graphs of `products` round them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shotstream.export.fp8.products import FP8_MAX, Product, input_scale, weight_scales

Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Place:
    """A product: `attribute` of `owner` is what is called for it."""

    owner: Any
    attribute: str
    weight_ND: Tensor
    bias_N: Tensor | None


def places(segments: Mapping[str, nn.Module]) -> dict[Product, Place]:
    """Every product of a model's segments that may be eight-bit."""
    found: dict[Product, Place] = {}
    starts: list[Any] = [module.start for module in segments.values() if hasattr(module, "start")]
    rests: list[Any] = [module.rest for module in segments.values() if hasattr(module, "rest")]
    for number, (start, rest) in enumerate(zip(starts, rests, strict=True)):
        dense, block = start.product, rest.block
        found[number, "qkv"] = Place(start, "product", dense.weight_ND, dense.bias_N)
        cross, ffn = block.cross_attn, block.ffn
        layers = {"o": block.self_attn.o, "cross_q": cross.q, "cross_o": cross.o, "up": ffn[0], "down": ffn[2]}
        for kind, layer in layers.items():
            found[number, kind] = Place(layer, "forward", layer.weight, layer.bias)
    return found


@contextmanager
def watched(found: Mapping[Product, Place]) -> Iterator[dict[Product, Tensor]]:
    """Meanwhile, the largest number that each product has been fed so far, a tensor without dimensions."""
    seen: dict[Product, Tensor] = {}

    def watch(product: Product, place: Place) -> Call:
        def call(x: Tensor) -> Tensor:
            most = x.abs().amax().float()
            seen[product] = torch.maximum(seen[product], most) if product in seen else most
            return F.linear(x, place.weight_ND, place.bias_N)

        return call

    with _replaced(found, watch):
        yield seen


@contextmanager
def emulated(found: Mapping[Product, Place], amax: Mapping[Product, float]) -> Iterator[None]:
    """Meanwhile, these products are eight-bit. amax: the largest input of each."""

    def eight_bit(product: Product, place: Place) -> Call:
        weight_ND = place.weight_ND
        scale_N1 = weight_scales(weight_ND)[:, None]
        rounded_ND = (_eight(weight_ND.float() / scale_N1) * scale_N1).to(weight_ND.dtype)
        step = input_scale(amax[product], weight_ND.dtype)

        def call(x: Tensor) -> Tensor:
            return F.linear((_eight(x.float() / step) * step).to(x.dtype), rounded_ND, place.bias_N)

        return call

    with _replaced(found, eight_bit):
        yield


def _eight(x: Tensor) -> Tensor:
    return x.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float()


@contextmanager
def _replaced(found: Mapping[Product, Place], make: Callable[[Product, Place], Call]) -> Iterator[None]:
    before = [(place, place.owner.__dict__.get(place.attribute)) for place in found.values()]
    try:
        for product, place in found.items():
            setattr(place.owner, place.attribute, make(product, place))
        yield
    finally:
        for place, was in before:
            if was is None:  # the class's own
                place.owner.__dict__.pop(place.attribute, None)
            else:
                setattr(place.owner, place.attribute, was)
