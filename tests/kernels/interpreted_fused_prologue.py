"""The prologue through Triton's interpreter: against its reference over odd shapes, and against the runtime's model.

The model runs its context pass, chunks, clean passes and a second shot on its own cache. Beside it the kernel gets what
each layer's projections gave, writes a cache of its own, and both caches and the queries must agree after every pass.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from shotstream.kernels.fused import reference as ref
from shotstream.kernels.fused.launch import block_lanes
from shotstream.kernels.fused.prologue import CacheWriter, kv_prologue, qk_prologue, qk_prologue_kernel
from shotstream.kernels.fused.rotary import RotaryTable
from shotstream.runtime.config import TINY, DiTConfig
from shotstream.runtime.model.attention import sdpa
from shotstream.runtime.model.cache import DualCache
from shotstream.runtime.model.rollout import ShotConditions, chunk_pass, clean_pass, context_pass
from shotstream.runtime.model.transformer import Block, Transformer

few = settings(max_examples=15, deadline=None, derandomize=True)
kinds = st.sampled_from([torch.float32, torch.float16])
POISON = -77.0


def start_at(slot: int) -> Tensor:
    return torch.tensor([slot], dtype=torch.int32)


def channelwise(v_BSHK: Tensor, padding: int = 3) -> Tensor:
    """The same buffer with its slots next to each other in memory."""
    batch, slots, heads, width = v_BSHK.shape
    memory = torch.full((batch, heads, width, slots + padding), POISON, dtype=v_BSHK.dtype)
    return memory[..., :slots].permute(0, 3, 1, 2).copy_(v_BSHK)


def assert_close(got: Tensor, wanted: Tensor) -> None:
    """Equal up to the rounding of got's dtype."""
    bound = 4e-6 if got.dtype == torch.float32 else 1e-3
    torch.testing.assert_close(got.float(), wanted.float(), atol=bound * max(1, wanted.abs().max().item()), rtol=bound)


@few
@given(
    batch=st.integers(1, 2),
    tokens=st.integers(1, 5),
    heads=st.integers(1, 5),
    half=st.sampled_from([1, 3, 5, 16, 64]),
    spare=st.integers(0, 4),
    begin=st.integers(0, 3),
    start=st.integers(0, 40),
    kind=kinds,
    biased=st.booleans(),
    one_table=st.booleans(),
    turned=st.booleans(),
)
def test_any_shape_and_any_slot(
    batch: int, tokens: int, heads: int, half: int, spare: int, begin: int, start: int,
    kind: torch.dtype, biased: bool, one_table: bool, turned: bool,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    width, slots = heads * half * 2, begin + tokens + spare
    qkv = torch.randn(batch, tokens, 3 * width).to(kind)
    norms = (torch.randn(width).to(kind), torch.randn(width).to(kind))
    angle = torch.randn(1 if one_table else batch, tokens, 1, half)
    table = (angle.cos(), angle.sin())
    bias = torch.randn(3 * width).to(kind) if biased else None
    k, v = (torch.full((batch, slots, heads, 2 * half), POISON, dtype=kind) for _ in range(2))
    if turned:
        v = channelwise(v)
    q = torch.full((batch, tokens, heads, 2 * half), torch.nan, dtype=kind)
    writer = CacheWriter(k, v, start_at(start), ring_begin=begin)
    assert qk_prologue(qkv, norms, table, writer, bias_P=bias, out=q) is q

    q_ref, k_ref, v_ref = ref.qk_prologue(qkv, heads, *norms, *table, 1e-6, bias)
    where = ref.cache_slots(start, tokens, slots, begin)
    assert_close(q, q_ref)
    assert_close(k[:, where], k_ref)
    assert_close(v[:, where], v_ref)
    rest = torch.ones(slots, dtype=torch.bool)
    rest[where] = False
    assert (k[:, rest] == POISON).all()
    assert (v[:, rest] == POISON).all()


def test_without_a_ring_what_has_no_slot_is_not_written() -> None:
    torch.manual_seed(0)
    qkv, norms, table = torch.randn(1, 4, 24), (torch.ones(8), torch.ones(8)), (torch.ones(1, 4, 1, 2),) * 2
    for start, fitting in ((3, 2), (5, 0), (-2, 2), (1, 4)):
        memory = torch.full((2, 3, 5, 2, 4), POISON)  # buffers between two others, which must stay as they are
        turned = torch.full((3, 2, 4, 5), POISON)
        qk_prologue(qkv, norms, table, CacheWriter(memory[0, 1:2], memory[1, 1:2], start_at(start)))
        by_channel = turned[1:2].permute(0, 3, 1, 2)
        qk_prologue(qkv, norms, table, CacheWriter(torch.zeros(1, 5, 2, 4), by_channel, start_at(start)))
        assert (memory[:, [0, 2]] == POISON).all()
        assert (turned[[0, 2]] == POISON).all()
        assert torch.equal(by_channel, memory[1, 1:2])
        assert int((memory[0, 1] != POISON).all(-1).all(-1).sum()) == fitting


def test_values_by_channel_are_the_same_over_several_tiles() -> None:
    torch.manual_seed(0)
    kv, table = torch.randn(2, 70, 2 * 66), (torch.ones(1, 70, 1, 11), torch.zeros(1, 70, 1, 11))
    plain, turned = torch.full((2, 2, 80, 3, 22), POISON)
    turned = channelwise(turned)
    for v in (plain, turned):
        kv_prologue(kv, torch.ones(66), table, CacheWriter(torch.zeros(2, 80, 3, 22), v, start_at(33), 5))
    assert torch.equal(plain, turned)
    assert turned.stride(1) == 1


def test_keys_and_values_alone_are_those_of_the_whole_pass() -> None:
    torch.manual_seed(0)
    qkv, bias, norms = torch.randn(2, 3, 36), torch.randn(36), (torch.randn(12), torch.randn(12))
    table = (torch.randn(1, 3, 1, 3), torch.randn(1, 3, 1, 3))
    both = [CacheWriter(torch.zeros(2, 7, 2, 6), torch.zeros(2, 7, 2, 6), start_at(6), 1) for _ in range(2)]
    qk_prologue(qkv, norms, table, both[0], bias_P=bias)
    kv_prologue(qkv[..., 12:], norms[1], table, both[1], bias_P=bias[12:])
    assert torch.equal(both[0].k_BSHK, both[1].k_BSHK)
    assert torch.equal(both[0].v_BSHK, both[1].v_BSHK)
    assert both[0].k_BSHK.any()


def test_an_eight_bit_cache_holds_values_over_their_heads_scale() -> None:
    torch.manual_seed(0)
    qkv, norms = 3 * torch.randn(1, 3, 96), (torch.randn(32), torch.randn(32))
    table = (torch.ones(1, 3, 1, 4), torch.zeros(1, 3, 1, 4))
    _, k_ref, v_ref = ref.qk_prologue(qkv, 4, *norms, *table, 1e-6)
    k_scale, v_scale = ref.head_scales(k_ref), ref.head_scales(v_ref) / 2  # values saturate
    k, v = (torch.full((1, 3, 4, 8), torch.nan) for _ in range(2))
    kv = qkv[..., 32:]
    qk_prologue_kernel[(3,)](
        kv, None, None, norms[1], *table, None, k, v, k_scale, v_scale, start_at(0), 3, 3, 0, *kv.stride()[:2],
        0, eps=1e-6, D=32, K=8, BLOCK=block_lanes(32), RING=False,
    )  # fmt: skip
    assert_close(k, k_ref / k_scale[:, None])
    assert_close(v, (v_ref / v_scale[:, None]).clamp(-448, 448))
    assert v.abs().max() == 448
    eight = [torch.zeros(1, 3, 4, 8, dtype=torch.float8_e4m3fn) for _ in range(2)]
    kv_prologue(kv, norms[1], table, CacheWriter(*eight, start_at(0), None, k_scale, v_scale))
    near = (eight[0].float() - ref.quantise_heads(k_ref, k_scale).float()).abs() <= 0.126 * k.abs() + 2**-9
    assert near.float().mean() > 0.9


class Beside:
    """A model with the kernels beside it: what its layers projected, and a cache that the kernels write."""

    def __init__(self, config: DiTConfig, height: int, width: int) -> None:
        torch.manual_seed(0)
        self.config, self.height, self.width = config, height, width
        self.tokens = height * width
        self.model = Transformer(config, attention=self._attend).requires_grad_(False).eval()
        for parameter in self.model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
        self.cache = DualCache(config, self.tokens, batch=1)
        self.ours = DualCache(config, self.tokens, batch=1)
        self.start = start_at(0)
        self.queries: list[Tensor] = []
        self.projected: list[dict[str, Tensor]] = [{} for _ in range(config.layers)]
        for layer, block in enumerate(self.model.blocks):
            for name in "qkv":
                module = getattr(cast(Block, block).self_attn, name)
                module.register_forward_hook(self._recorder(layer, name))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, *mask: Tensor | None) -> Tensor:
        if mask:  # cross-attention is called without one
            self.queries.append(q)
        return sdpa(q, k, v)

    def _recorder(self, layer: int, name: str) -> Any:
        def record(_module: Any, _inputs: Any, output: Tensor) -> None:
            self.projected[layer][name] = output

        return record

    def forget(self) -> None:
        self.queries.clear()
        for projected in self.projected:
            projected.clear()

    def assert_agrees(self, positions_BF: Tensor, flags_BF: Tensor, slot_frame: int, ring: bool) -> None:
        """Run the kernel on what the pass projected; queries and the whole of both caches must then agree."""
        c = self.config
        frames = positions_BF.shape[1]
        table = RotaryTable.empty(c, frames, self.height, self.width)
        table.fill(c, positions_BF, flags_BF, self.height, self.width)
        self.start.fill_(slot_frame * self.tokens)
        ring_begin = (c.context_frames + c.sink_frames) * self.tokens if ring else None
        for layer, block in enumerate(self.model.blocks):
            attn = cast(Block, block).self_attn
            writer = CacheWriter(self.ours.k[layer], self.ours.v[layer], self.start, ring_begin)
            names = "qkv" if "q" in self.projected[layer] else "kv"
            x = torch.cat([self.projected[layer][name] - getattr(attn, name).bias for name in names], dim=-1)
            bias = torch.cat([getattr(attn, name).bias for name in names])
            tables = (table.cos, table.sin)
            if names == "kv":
                kv_prologue(x, attn.norm_k.weight, tables, writer, bias_P=bias, eps=c.eps)
            else:
                norms = (attn.norm_q.weight, attn.norm_k.weight)
                assert_close(qk_prologue(x, norms, tables, writer, bias_P=bias, eps=c.eps), self.queries[layer])
            assert_close(self.ours.k[layer], self.cache.k[layer])
            assert_close(self.ours.v[layer], self.cache.v[layer])


WAN_LIKE = DiTConfig(
    dim=256, heads=2, ffn_dim=64, layers=2, freq_dim=32, channels=4, text_len=3, text_dim=8,
    context_frames=2, local_frames=9, sink_frames=3,
)  # fmt: skip
TINY_LIKE = dataclasses.replace(TINY, layers=2, ffn_dim=64, context_frames=3, local_frames=6)


@pytest.mark.parametrize("config", [TINY_LIKE, WAN_LIKE], ids=["tiny", "wan"])
def test_two_shots_past_the_rings_end_are_the_models_own(config: DiTConfig) -> None:
    beside = Beside(config, height=2, width=1)
    model, cache, context = beside.model, beside.cache, config.context_frames
    text = model.embed_captions(torch.randn(1, config.text_len, config.text_dim))
    for shot, jump in enumerate((1, 5)):  # the second shot's flag is four jumps on
        flags = torch.tensor([[shot * 4] * context])
        target = torch.tensor([jump])
        shown = ShotConditions(text, None, None, flags, target)
        beside.forget()
        context_pass(model, torch.randn(1, context, config.channels, 4, 2), shown, cache.context())
        beside.assert_agrees(torch.arange(context)[None], flags, 0, ring=False)
        chunk = config.chunk_frames
        for start in range(0, config.local_frames + 2 * chunk, chunk):
            x = torch.randn(1, chunk, config.channels, 4, 2)
            positions = torch.arange(context + start, context + start + chunk)[None]
            for clean in (False, True):
                beside.forget()
                if clean:
                    clean_pass(model, x, start, shown, cache.chunk(start))
                else:
                    chunk_pass(model, x, torch.tensor(500.0), start, shown, cache.chunk(start))
                beside.assert_agrees(positions, target[:, None].expand(1, chunk), context + start, ring=True)


def test_the_table_stays_where_it_is_and_refuses_other_frames() -> None:
    table = RotaryTable.empty(WAN_LIKE, 3, 2, 2)
    address = table.cos.data_ptr()
    assert (table.cos == 1).all()
    table.fill(WAN_LIKE, torch.tensor([[6, 7, 8]]), torch.tensor([[1, 1, 1]]), 2, 2)
    first = table.cos.clone()
    table.fill(WAN_LIKE, torch.tensor([[6, 7, 8]]), torch.tensor([[2, 2, 2]]), 2, 2)
    assert table.cos.data_ptr() == address
    time, rest = slice(0, 22), slice(22, 64)
    assert not torch.equal(table.cos[..., time], first[..., time])
    assert torch.equal(table.cos[..., rest], first[..., rest])
    with pytest.raises(ValueError, match="the frames need"):
        table.fill(WAN_LIKE, torch.tensor([[6, 7]]), None, 2, 2)


def test_what_does_not_fit_is_refused_in_words() -> None:
    qkv, norms = torch.randn(1, 4, 24), (torch.ones(8), torch.ones(8))
    table = (torch.ones(1, 4, 1, 2), torch.ones(1, 4, 1, 2))
    k = torch.zeros(1, 9, 2, 4)
    eight, scale = k.to(torch.float8_e4m3fn), torch.ones(2)

    def call(*, qkv: Tensor = qkv, table: Any = table, k: Tensor = k, v: Tensor | None = None, **kw: Any) -> None:
        start = kw.pop("start", start_at(0))
        options = {name: kw.pop(name) for name in ("bias_P", "out") if name in kw}
        qk_prologue(qkv, norms, table, CacheWriter(k, k.clone() if v is None else v, start, **kw), **options)

    call()
    refused = {
        r"q, k, v has shape \[1, 4, 23\]": {"qkv": qkv[..., :23]},
        r"cos has shape": {"table": (table[0][:, :3], table[1])},
        r"sin is torch.float64": {"table": (table[0], table[1].double())},
        r"k_BSHK must be contiguous": {"k": torch.zeros(1, 9, 2, 8)[..., :4]},
        r"k_BSHK has shape \[9, 2, 4\]": {"k": k[0]},
        r"v_BSHK is torch.float16": {"v": k.half()},
        r"start_1 is torch.int64": {"start": torch.tensor([0])},
        r"ring_begin is 9": {"ring_begin": 9},
        r"4 tokens do not fit 3 slots": {"ring_begin": 6},
        r"k_scale_H is missing": {"k": eight},
        r"k_scale_H is given": {"k_scale_H": scale},
        r"v_scale_H has shape": {"k": eight, "k_scale_H": scale, "v_scale_H": torch.ones(3)},
        r"bias_P has shape": {"bias_P": torch.ones(8)},
        r"out has shape": {"out": torch.ones(1, 4, 8)},
        r"heads are 3 wide": {"k": torch.zeros(1, 9, 2, 3)},
    }
    for message, wrong in refused.items():
        with pytest.raises(ValueError, match=message):
            call(**cast(Any, wrong))
