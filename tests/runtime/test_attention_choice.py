"""The attention `auto`: what it takes, what it says of each candidate, and the faults that its check finds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from shotstream.runtime.attention_choice import ORDER, Choice, check_attention, choose_attention
from shotstream.runtime.errors import UserError
from shotstream.runtime.model.attention import Attention, Prefix, attend, matmul_softmax, sdpa
from shotstream.runtime.runtime import assemble_registry

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class OverPrefix:
    """A backend that reads the length from the device, and computes in torch; faults are planted in it."""

    eight_bit = True

    def __init__(self, *, extra: int = 0, scale: float = 1.0, trusts_host: bool = False, factor: float = 1.0) -> None:
        self.extra, self.scale, self.trusts_host, self.factor = extra, scale, trusts_host, factor

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return sdpa(self.scale * q, k, v, mask)

    def over_prefix(self, q: Tensor, prefix: Prefix) -> Tensor:
        length = prefix.filled if self.trusts_host else int(prefix.length_1)
        scale = None if prefix.v_scale_H is None else self.factor * prefix.v_scale_H
        return attend(sdpa, self.scale * q, replace(prefix, filled=length + self.extra, v_scale_H=scale))


def choose(candidates: dict[str, Callable[[], Attention]], dtype: torch.dtype = torch.float32) -> Choice:
    return choose_attention(candidates, CPU, dtype, heads=3, head_dim=64)


def raising(error: Exception) -> Callable[[], Attention]:
    def factory() -> Attention:
        raise error

    return factory


def not_finite(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return torch.full_like(q, torch.nan)


def causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return sdpa(q, k, v, torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril())


def first_clip_only(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return sdpa(q, k[:1].expand_as(k), v[:1].expand_as(v), mask)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("attention", [sdpa, matmul_softmax, OverPrefix()], ids=["sdpa", "matmul", "prefix"])
def test_what_computes_rightly_passes(attention: Attention, eight_bit: bool, dtype: torch.dtype) -> None:
    assert check_attention(attention, CPU, dtype, 3, 64, eight_bit) is None


FAULTS: dict[str, tuple[Attention, str]] = {
    "wrong scale": (OverPrefix(scale=1.1), "its error is"),
    "one key too many": (OverPrefix(extra=1), "not finite: it reads what lies behind"),
    "one key too few": (OverPrefix(extra=-1), "over 1 of 300 keys"),
    "the host's length": (OverPrefix(trusts_host=True), "not finite"),
    "not a number": (not_finite, "not finite"),
    "causal": (causal, "its error is"),
    "another clip's keys": (first_clip_only, "over all of 77 keys its error is"),
    "another shape": (lambda q, k, v, mask=None: sdpa(q, k, v)[:, :-1], "it gives [1, 36, 3, 64]"),
    "another dtype": (lambda q, k, v, mask=None: sdpa(q, k, v).double(), "in torch.float64"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_computes_wrongly_is_found_and_described(name: str, dtype: torch.dtype) -> None:
    attention, said = FAULTS[name]
    fault = check_attention(attention, CPU, dtype, 3, 64)
    assert fault is not None
    assert said in fault


@pytest.mark.parametrize("fault", [{"factor": 1.1}, {"scale": 1.2}, {"extra": 1}])
def test_faults_in_eight_bits_are_found(fault: dict[str, float]) -> None:
    assert check_attention(OverPrefix(**fault), CPU, torch.bfloat16, 3, 64, eight_bit=True)  # type: ignore[arg-type]


def test_the_first_that_passes_is_taken_and_all_are_accounted_for(caplog: pytest.LogCaptureFixture) -> None:
    made: list[str] = []

    def last() -> Attention:
        made.append("sdpa")
        return sdpa

    with caplog.at_level(logging.INFO, "shotstream.runtime.attention_choice"):
        choice = choose({"sdpa": last, "flash": OverPrefix, "triton": lambda: OverPrefix(scale=2.0), "own": last})
    assert choice.name == "flash"
    assert isinstance(choice.attention, OverPrefix)
    assert choice.reasons["triton"].startswith("over 17 of 300 keys its error is")
    assert choice.reasons["flash"] == "taken, its check passed"
    assert choice.reasons["sdpa"] == "not tried, 'flash' comes first"
    assert choice.reasons["own"] == "only taken by name"
    assert not made, "what comes later is not even made"
    assert [record.message for record in caplog.records] == [
        f"attention {name}: {reason}" for name, reason in choice.reasons.items()
    ]


def test_what_raises_costs_that_candidate_only() -> None:
    refused = UserError("the attention 'triton' needs a CUDA device and torch sees none; choose another attention")
    choice = choose(
        {"triton": raising(refused), "flash": raising(RuntimeError("no kernel\nimage")), "sdpa": lambda: sdpa}
    )
    assert choice.name == "sdpa"
    assert choice.reasons["triton"] == "needs a CUDA device and torch sees none"
    assert choice.reasons["flash"] == "raised RuntimeError: no kernel"


def test_if_none_works_the_sentence_says_why() -> None:
    with pytest.raises(
        UserError, match=r"no attention works on cpu in torch.float32: sdpa: over 1 of 300 keys it gives"
    ):
        choose({"sdpa": lambda: not_finite})
    with pytest.raises(UserError, match="there is none"):
        choose({})


def test_on_a_cpu_the_installed_backends_come_down_to_sdpa_at_once() -> None:
    registry = assemble_registry()
    candidates = {name: registry.factory("attention", name) for name in registry.names("attention")}
    assert set(ORDER) <= set(candidates)
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    begin = time.process_time()
    choice = choose(candidates)
    assert time.process_time() - begin < 2.0
    assert choice.attention is sdpa
    assert choice.reasons["triton"].startswith("needs ")
    assert choice.reasons["flash"].startswith("needs ")
