"""The regression behind a clean history sees exactly what a playing student sees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from shotstream.runtime.config import DiTConfig
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.attention import Attention, Spans, attend_masked, matmul_softmax, sdpa
from shotstream.runtime.model.cache import DualCache
from shotstream.runtime.model.rollout import ShotConditions, chunk_pass, clean_pass, context_pass
from shotstream.runtime.model.schedule import NoiseSchedule
from shotstream.runtime.model.transformer import Transformer
from shotstream.training.method.clean_history import (
    behind_clean_history,
    clean_history_ode_loss,
    continuation_loss,
    history_spans,
    noisy_spans,
)
from shotstream.training.method.conditioning import Conditioning
from shotstream.training.method.draws import TorchDraws
from shotstream.training.stages.ode import OdeRecipe

CONFIG = DiTConfig(dim=32, heads=2, ffn_dim=48, layers=2, channels=4, text_len=6, text_dim=16, shift=3.0)
SCHEDULE = NoiseSchedule(CONFIG.shift)
PAST_NOISE = torch.randn(1, 9, 4, 4, 4, generator=torch.Generator().manual_seed(5))
STEPS = torch.cat([SCHEDULE.warp(CONFIG.nominal_steps), torch.zeros(1)])


class FixedDraws(TorchDraws):
    """Says which state each block draws, and which noise the past is remembered with."""

    def __init__(self, index: list[int]) -> None:
        super().__init__(torch.Generator())
        self.index = index

    def block_index(self, batch: int, blocks: int, entries: int) -> Tensor:
        assert entries == len(STEPS) - 1  # never the clean end
        return torch.tensor([self.index] * batch)

    def target_noise(self, shape: tuple[int, ...]) -> Tensor:
        return PAST_NOISE.expand(shape)

    def clean_noise(self, shape: tuple[int, ...], chunk: int) -> Tensor:
        return PAST_NOISE[:, : shape[1]].expand(shape)


def case(context_noise: float = 0.0) -> tuple[Transformer, Tensor, Conditioning]:
    torch.manual_seed(0)
    model = Transformer(replace(CONFIG, context_noise=context_noise))
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    states = torch.randn(1, 5, 9, 4, 4, 4)
    flags = torch.tensor([[0, 0, 1, 1, 2, 2, *[3] * 9]])
    return model, states, Conditioning(torch.randn(1, 6, 4, 4, 4), torch.randn(4, 6, 16), flags, flags.clone())


@pytest.mark.parametrize("context_noise", [0.0, 400.0])
@torch.no_grad()
def test_it_is_the_error_of_a_playing_student_behind_the_true_past(context_noise: float) -> None:
    model, states, given = case(context_noise)
    index = [2, 0, 3]
    loss = clean_history_ode_loss(model, SCHEDULE, states, STEPS, given, FixedDraws(index)).loss
    conditions = ShotConditions(
        model.embed_captions(given.captions_NLD),
        given.caption_index_BF[:, :6],  # type: ignore[index]
        torch.tensor([3]),
        given.flags_BF[:, :6],  # type: ignore[index]
        torch.tensor([3]),
    )
    cache = DualCache(CONFIG, CONFIG.tokens_per_frame(4, 4))
    context_pass(model, given.context_BFCHW, conditions, cache.context())
    errors = []
    for block, state in enumerate(index):
        span = slice(3 * block, 3 * block + 3)
        x, clean, t = states[:, state, span], states[:, -1, span], STEPS[state]
        flow = chunk_pass(model, x, t, 3 * block, conditions, cache.chunk(3 * block))
        errors.append((SCHEDULE.to_x0(x, flow, t) - clean).square().mean())
        past = SCHEDULE.remembered(clean, context_noise, lambda span=span: PAST_NOISE[:, span])
        clean_pass(model, past, 3 * block, conditions, cache.chunk(3 * block))
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)


def seen(spans: Spans) -> list[list[int]]:
    """What the first query of each row sees."""
    return [spans.dense()[begin].nonzero().flatten().tolist() for begin, _, _ in spans.rows]


def test_a_clean_block_sees_the_past_and_itself_and_a_noisy_one_is_seen_by_none() -> None:
    assert seen(history_spans(2, 6, 3, 1)) == [[0, 1], [0, 1, 2, 3, 4], list(range(8))]
    assert seen(noisy_spans(8, 9, 3, 1)) == [
        [0, 1, 8, 9, 10], [0, 1, 2, 3, 4, 11, 12, 13], [*range(8), 14, 15, 16],
    ]  # fmt: skip
    assert seen(noisy_spans(0, 1, 1, 2)) == [[0, 1]], "tokens, and no history"


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("attention", [sdpa, matmul_softmax])
def test_stretches_give_what_the_whole_mask_gives(attention: Attention, context: int) -> None:
    length = 4 * (context + 6)
    q, k, v = (torch.randn(2, length + 36, 2, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    for spans, keys, count in ((history_spans(context, 6, 3, 4), length, length),
                               (noisy_spans(context + 6, 9, 3, 4), length + 36, 36)):  # fmt: skip
        given = q[:, :count], k[:, :keys], v[:, :keys]
        torch.testing.assert_close(attend_masked(attention, *given, spans), attention(*given, spans.dense()))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_passes_have_the_output_and_the_gradient_of_one(checkpointing: bool) -> None:
    """Context, clean blocks and noisy blocks in one masked pass."""
    model, states, given = case(300.0)
    clip, draws = states[:, -1], FixedDraws([0, 0, 0])
    t = torch.tensor([[900.0] * 3 + [500.0] * 3 + [200.0] * 3])
    noisy = SCHEDULE.add_noise(clip, PAST_NOISE, t)
    clean = SCHEDULE.remembered(clip[:, :6], 300.0, lambda: PAST_NOISE[:, :6])
    mask = torch.block_diag(history_spans(6, 6, 3, 4).dense(), torch.zeros(36, 36, dtype=torch.bool))
    mask[48:] = noisy_spans(12, 9, 3, 4).dense()
    frames = [*range(12), *range(6, 15)]
    z, times = (
        torch.cat([given.context_BFCHW, clean, noisy], 1),
        torch.cat([torch.zeros(1, 6), torch.full((1, 6), 300.0), t], 1),
    )
    assert given.flags_BF is not None
    flags = given.flags_BF[:, frames]
    text = model.embed_captions(given.captions_NLD)
    whole = model(z, times, text, flags, torch.tensor([frames]), flags, mask=mask)[:, 12:]
    whole = SCHEDULE.to_x0(noisy, whole, t)
    whole.square().mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing = checkpointing
    made = behind_clean_history(model, SCHEDULE, noisy, t, clip, given, draws)
    torch.testing.assert_close(made, whole)
    made.square().mean().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], msg=name)


def test_frames_that_are_no_whole_blocks_are_refused() -> None:
    model, states, given = case()
    with pytest.raises(ValueError, match="8 frames in blocks of 3"):
        clean_history_ode_loss(model, SCHEDULE, states[:, :, :8], STEPS, given, FixedDraws([0, 0, 0]))


def test_an_unknown_history_is_refused() -> None:
    with pytest.raises(UserError, match="'mixed' or 'clean', not 'true'"):
        OdeRecipe(history="true")


def continued(
    model: Transformer, before: Transformer, clip: Tensor, given: Conditioning, index: list[int], kept: int
) -> tuple[float, float, Tensor]:
    found = continuation_loss(
        model, before, SCHEDULE, clip, STEPS[:-1], given, FixedDraws(index), kept_steps=kept, kept_weight=5.0
    )  # fmt: skip
    return found.opening.item(), found.continuation.item(), found.loss


def test_chunks_with_a_past_learn_the_data_and_the_first_one_what_the_student_before_says() -> None:
    model, states, given = case(context_noise=300.0)
    before, _, _ = case(context_noise=300.0)
    clip, index = states[:, -1], [1, 0, 3]
    noisy = SCHEDULE.add_noise(clip, PAST_NOISE, STEPS[torch.tensor(index)].repeat_interleave(3)[None])
    as_states = torch.stack([clip if i == 4 else SCHEDULE.add_noise(clip, PAST_NOISE, STEPS[i]) for i in range(5)], 1)
    assert torch.equal(as_states[:, 0, 3:6], noisy[:, 3:6])
    ode = clean_history_ode_loss(model, SCHEDULE, as_states, STEPS, given, FixedDraws(index)).loss.item()
    opening, continuation, _ = continued(model, before, clip, given, index, kept=0)
    assert (opening + 2 * continuation) / 3 == pytest.approx(ode, rel=1e-5), "all frames against the clip"
    opening, same, loss = continued(model, before, clip, given, index, kept=2)
    assert (opening, same) == (pytest.approx(0.0, abs=1e-10), continuation), "one student says what the other does"
    assert loss.item() == pytest.approx(2 * continuation / 3, rel=1e-5)
    assert continued(model, before, clip, given, [2, 0, 3], kept=2)[0] > 1e-3, "later steps have the true target"


def test_the_student_before_is_not_trained_and_sees_no_later_chunk() -> None:
    model, states, given = case()
    before, _, _ = case()
    for parameter in before.parameters():
        parameter.data += 0.01
    clip = states[:, -1]
    first, others, loss = continued(model, before, clip, given, [0, 0, 0], kept=4)
    assert loss.item() == pytest.approx((5 * first + 2 * others) / 3, rel=1e-5), "kept frames count five times"
    loss.backward()
    assert all(p.grad is None for p in before.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    other = torch.cat([clip[:, :3], clip[:, 3:] + 1], dim=1)
    assert first > 0
    assert continued(model, before, other, given, [0, 0, 0], kept=4)[0] == pytest.approx(first, rel=1e-4)


def test_a_single_chunk_has_no_continuation() -> None:
    model, states, given = case()
    with pytest.raises(ValueError, match="3 frames in blocks of 3 hold no continuation"):
        continued(model, model, states[:, -1, :3], given, [0], kept=1)
