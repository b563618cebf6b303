"""The attention `flash` over stand-ins for the two packages: the calls are the packages' own, the sums torch's.

The stand-ins take the arguments that the packages take (flash-attn 4.0 and 2.8), no others.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from shotstream.kernels.attention.flash import FlashAttention, find_flash_attention, make_flash_attention
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.attention import Prefix, PrefixAttention, attend, reads_device_length, sdpa

calls: list[dict[str, Any]] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


def over(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return sdpa(q, k, v)
    assert lengths.dtype == torch.int32
    assert lengths.shape == (q.shape[0],)
    assert lengths.is_contiguous()
    clips = [sdpa(q[i : i + 1], k[i : i + 1, :n], v[i : i + 1, :n]) for i, n in enumerate(lengths.tolist())]
    return torch.cat(clips)


def version_4() -> ModuleType:
    made: Any = ModuleType("flash_attn.cute")

    def flash_attn_func(
        q: Tensor, k: Tensor, v: Tensor, qv: None = None, gather_kv_indices: None = None,
        softmax_scale: float | None = None, causal: bool = False,
    ) -> tuple[Tensor, None]:  # fmt: skip
        calls.append({"function": "flash_attn_func", "scale": softmax_scale, "causal": causal})
        return over(q, k, v, None), None

    def flash_attn_varlen_func(
        q: Tensor, k: Tensor, v: Tensor, qv: None = None, cu_seqlens_q: None = None, cu_seqlens_k: None = None,
        max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, min_seqlen_k: int | None = None,
        seqused_q: Tensor | None = None, seqused_k: Tensor | None = None, softmax_scale: float | None = None,
        causal: bool = False,
    ) -> tuple[Tensor, None]:  # fmt: skip
        calls.append({"function": "flash_attn_varlen_func", "scale": softmax_scale, "causal": causal, "k": k.shape})
        return over(q, k, v, seqused_k), None

    made.flash_attn_func, made.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    return made


def version_2() -> ModuleType:
    made: Any = ModuleType("flash_attn")

    def flash_attn_func(
        q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None,
        causal: bool = False,
    ) -> Tensor:  # fmt: skip
        calls.append({"function": "flash_attn_func", "scale": softmax_scale, "causal": causal, "dropout": dropout_p})
        return over(q, k, v, None)

    def flash_attn_with_kvcache(
        q: Tensor, k_cache: Tensor, v_cache: Tensor, k: None = None, v: None = None, rotary_cos: None = None,
        rotary_sin: None = None, cache_seqlens: Tensor | None = None, softmax_scale: float | None = None,
        causal: bool = False,
    ) -> Tensor:  # fmt: skip
        calls.append({"function": "flash_attn_with_kvcache", "scale": softmax_scale, "causal": causal})
        assert k_cache.stride(-1) == v_cache.stride(-1) == 1
        return over(q, k_cache, v_cache, cache_seqlens)

    made.flash_attn_func, made.flash_attn_with_kvcache = flash_attn_func, flash_attn_with_kvcache
    return made


def install(patch: pytest.MonkeyPatch, four: ModuleType | None, two: ModuleType | None) -> None:
    patch.setitem(sys.modules, "flash_attn", two)  # None: an import fails
    patch.setitem(sys.modules, "flash_attn.cute", four)


def operands(batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn((batch, n, 2, 64), generator=generator).bfloat16() for n in (5, 20, 20))
    return q, k, v


@pytest.mark.parametrize(("version", "function"), [(4, "flash_attn_varlen_func"), (2, "flash_attn_with_kvcache")])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_prefix_goes_to_the_package_whole_with_its_length_on_the_device(
    version: int, function: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, version_4() if version == 4 else None, version_2())
    attention = find_flash_attention()
    assert attention.version == version
    assert isinstance(attention, PrefixAttention)
    assert reads_device_length(attention, eight_bit=False)
    assert not reads_device_length(attention, eight_bit=True)
    q, k, v = operands(batch)
    prefix = Prefix(k, v, torch.tensor([13], dtype=torch.int32), filled=2)
    torch.testing.assert_close(attend(attention, q, prefix), sdpa(q, k[:, :13], v[:, :13]))
    assert [call["function"] for call in calls] == [function]
    assert (calls[0]["scale"], calls[0]["causal"]) == (None, False), "the default scale, and every key is seen"


@pytest.mark.parametrize("version", [2, 4])
def test_all_keys_and_masks(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, version_4() if version == 4 else None, version_2())
    q, k, v = operands()
    attention = find_flash_attention()
    torch.testing.assert_close(attention(q, k, v), sdpa(q, k, v))
    mask = torch.arange(20)[None].expand(5, 20) < 7
    torch.testing.assert_close(attention(q, k, v, mask), sdpa(q, k[:, :7], v[:, :7]), atol=1e-2, rtol=1e-2)
    assert [call["function"] for call in calls] == ["flash_attn_func"]


def test_without_either_package_it_says_so_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    empty_folder = ModuleType("flash_attn")  # what is left of it when version 4 cannot be imported
    for two in (None, empty_folder):
        install(monkeypatch, None, two)
        with pytest.raises(UserError, match="needs the package flash-attn-4 or flash-attn 2"):
            find_flash_attention()


def test_it_asks_for_the_gpu_first(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, version_4(), None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert make_flash_attention().version == 4


def test_float32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, version_4(), None)
    q, k, v = (x.float() for x in operands())
    attention = FlashAttention(version_4(), 4)
    with pytest.raises(UserError, match="bfloat16 or float16, not"):
        attention(q, k, v)
    with pytest.raises(UserError, match="bfloat16 or float16"):
        attention.over_prefix(q, Prefix(k, v, torch.tensor([3], dtype=torch.int32), 3))
