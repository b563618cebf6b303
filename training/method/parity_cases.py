"""Parity of the training mathematics: sampler, losses, gradients and LoRA merge against reference vectors.

What is here: case groups for `shotstream parity`, handed in through the `parity` slot because the runtime does not
know this room. What is not here: the comparison machinery (`runtime/parity`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shotstream.runtime.model.state_dicts import merge_lora
from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.parity.report import (
    LOSS,
    CaseGroup,
    NotUnderstood,
    Row,
    compare,
    compare_all,
    compare_equal,
)
from shotstream.runtime.parity.vectors import VectorFile
from shotstream.training.method import objectives
from shotstream.training.method.conditioning import Conditioning
from shotstream.training.method.draws import Shape, TorchDraws
from shotstream.training.method.lora import TARGETS
from shotstream.training.method.rollout import RolloutSettings
from shotstream.training.method.sampling import sample_teacher


class RecordedDraws(TorchDraws):
    """Draws taken from a case of a vector file; what the case does not hold raises KeyError."""

    def __init__(self, case: Mapping[str, Any]) -> None:
        super().__init__()
        self._case = case
        self._draws: Sequence[Tensor] = case.get("draws", ())
        self._exit = int(case.get("exit_step", 0))

    def _chunk_draw(self, shape: Shape, chunk: int, step: int) -> Tensor:
        # Number of blocks, shot noise, then per chunk one draw per step before the exit and one for the clean pass.
        return self._draws[2 + chunk * (self._exit + 1) + step].reshape(shape)

    def shot_noise(self, shape: Shape) -> Tensor:
        return self._draws[1].reshape(shape)

    def renoise(self, shape: Shape, chunk: int, step: int) -> Tensor:
        return self._chunk_draw(shape, chunk, step)

    def clean_noise(self, shape: Shape, chunk: int) -> Tensor:
        return self._chunk_draw(shape, chunk, self._exit)

    def target_noise(self, shape: Shape) -> Tensor:
        return (self._draws[-1] if self._draws else self._case["noise"]).reshape(shape)

    def timestep_index(self, batch: int, entries: int) -> Tensor:
        return self._draws[-2] if self._draws else self._case["timestep_id"]

    def exit_step(self, steps: int) -> int:
        return self._exit

    def block_index(self, batch: int, blocks: int, entries: int) -> Tensor:
        drawn = self._case["index_draw"]
        return drawn[:, :: drawn.shape[1] // blocks]


def _conditioning(case: Mapping[str, Any]) -> Conditioning:
    flags_BF = case["flags"][None].long()
    captions = case["prompt_embeds"]
    return Conditioning(case["cond"], captions, flags_BF, flags_BF if captions.shape[0] > 1 else None)


def _model(file: VectorFile, case: Mapping[str, Any], key: str = "weights") -> Transformer:
    return file.model(case[key], context_frames=case["cond"].shape[1])


def _gradients(name: str, case: Mapping[str, Any], model: Transformer) -> Iterator[Row]:
    ours = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    recorded = {key.removeprefix("model."): g for key, g in case.get("grads", {}).items()}
    if recorded:
        unused = sorted(set(recorded) - set(ours))
        if unused:
            yield compare_equal(name, "parameters with a gradient", f"none for {unused}", "all recorded ones")
        pairs = [(ours[key], g) for key, g in recorded.items() if key in ours]
        yield compare_all(name, f"gradients of {len(pairs)} parameters", pairs)
    if "grad_norm" in case:
        norm = torch.stack([g.double().square().sum() for g in ours.values()]).sum().sqrt()
        yield compare(name, "gradient norm", norm.reshape(()), torch.as_tensor(case["grad_norm"]).reshape(()))


def _scalar(value: Tensor) -> Tensor:
    return value.detach().reshape(())


def _loss(name: str, ours: Tensor, reference: Any, quantity: str = "loss") -> Row:
    return compare(name, quantity, _scalar(ours), torch.as_tensor(reference).reshape(()), LOSS)


def _teacher(file: VectorFile, name: str) -> Iterator[Row]:
    case = file.cases[name]
    model = _model(file, case)
    loss = objectives.teacher_loss(model, file.schedule(), case["latent"], _conditioning(case), RecordedDraws(case))
    yield _loss(name, loss, case["loss"])
    loss.backward()
    yield from _gradients(name, case, model)


def _ode(file: VectorFile, name: str) -> Iterator[Row]:
    case = file.cases[name]
    model, schedule, conditioning = _model(file, case), file.schedule(), _conditioning(case)
    states, draws = case["latent_all"], RecordedDraws(case)
    result = objectives.ode_loss(model, schedule, states, case["step_list"], conditioning, draws)
    yield _loss(name, result.loss, case["loss"])
    if "unnormalized_loss" in case:
        yield _loss(name, result.unmasked, case["unnormalized_loss"], "loss over all frames")
    result.loss.backward()
    yield from _gradients(name, case, model)
    if "fwd_x" in case:
        context, frames = conditioning.context_frames, states.shape[2]
        tokens = model.config.tokens_per_frame(*states.shape[-2:])
        mask = objectives.block_causal_mask(context, frames, model.config.chunk_frames, tokens, states.device)
        with torch.no_grad():
            x, t_BF = case["fwd_x"], case["fwd_timestep"]
            flow = objectives.whole_sequence_flow(model, x, t_BF, conditioning, mask)
        if "fwd_flow" in case:
            yield compare(name, "flow of a masked pass", flow, case["fwd_flow"])
        if "fwd_x0" in case:
            yield compare(name, "x0 of a masked pass", schedule.to_x0(x, flow, t_BF), case["fwd_x0"])


def _dmd_settings(name: str, case: Mapping[str, Any]) -> objectives.DmdSettings:
    detach = "detachcache1" in name or bool(case.get("detach_cache", False))
    return objectives.DmdSettings(
        guidance=float(case.get("guidance", 3.0)), rollout=RolloutSettings(detach_cache=detach)
    )


def _with_base(file: VectorFile, name: str) -> dict[str, Any]:
    """A case, with the inputs that a gradient variant leaves to the case it varies."""
    case = dict(file.cases[name])
    base_name, _, variant = name.partition("_grad_variant")
    if not variant:
        return case
    if base_name not in file.cases:
        raise NotUnderstood(f"it is a variant of {base_name}, which is not in this file")
    results = ("loss", "pred_x0", "grads", "grad_norm")
    return {key: value for key, value in file.cases[base_name].items() if key not in results} | case


def _dmd_generator(file: VectorFile, name: str) -> Iterator[Row]:
    case = _with_base(file, name)
    model = _model(file, case)
    result = objectives.dmd_generator_loss(
        model,
        _model(file, case, "real"),
        _model(file, case, "fake"),
        file.schedule(),
        file.steps(case),
        _conditioning(case),
        case["neg_embeds"],
        _frames(case),
        RecordedDraws(case),
        settings=_dmd_settings(name, case),
    )
    if "pred_x0" in case:
        yield compare(name, "roll-out", result.x0_BFCHW, case["pred_x0"])
    yield _loss(name, result.loss, case["loss"])
    if "ckpt0" in name:
        # Without gradient checkpointing the reference's text cache is constant; we always differentiate the text.
        yield Row(name, "gradients", "not understood", note="gradients without checkpointing are not ours")
        return
    result.loss.backward()
    yield from _gradients(name, case, model)


def _dmd_critic(file: VectorFile, name: str) -> Iterator[Row]:
    case = file.cases[name]
    fake = _model(file, case, "fake")
    result = objectives.dmd_critic_loss(
        _model(file, case), fake, file.schedule(), file.steps(case), _conditioning(case), _frames(case),
        RecordedDraws(case), settings=_dmd_settings(name, case),
    )  # fmt: skip
    if "pred_x0" in case:
        yield compare(name, "roll-out", result.x0_BFCHW, case["pred_x0"])
    yield _loss(name, result.loss, case["loss"])
    result.loss.backward()
    yield from _gradients(name, case, fake)


def _frames(case: Mapping[str, Any]) -> int:
    return int(case["draws"][1].shape[1])


def _ode_pairs(file: VectorFile, name: str) -> Iterator[Row]:
    case, schedule = file.cases[name], file.schedule()
    steps = len(case["sigmas"]) if "sigmas" in case else 50
    if "sigmas" in case:
        yield compare(name, "sampler sigmas", schedule.euler_sigmas(steps)[:steps], case["sigmas"])
    saved = {int(i): state for i, state in case.get("saved", {}).items()}
    trajectory = sample_teacher(
        _model(file, case), schedule, case["noise"], _conditioning(case), case["neg_embeds"],
        steps=steps, guidance=float(case.get("guide", 6.0)), save=list(saved),
    )  # fmt: skip
    if saved:
        pairs = [(trajectory.states[i], state) for i, state in saved.items()]
        yield compare_all(name, f"states before steps {', '.join(map(str, saved))}", pairs)
    yield compare(name, "x0", trajectory.x0_BFCHW, case["x0"])


def _lora(file: VectorFile, name: str) -> Iterator[Row]:
    case = file.cases[name]
    plain = merge_lora(file.weights(case["weights"]), case["lora"], float(case["alpha"]) / int(case["rank"]))
    merged = {f"model.{key}": tensor for key, tensor in plain.items()}
    reference: Mapping[str, Tensor] = case["merged"]
    pairs = [(merged[key], tensor) for key, tensor in reference.items()]
    yield compare_all(name, f"merged weights, {len(pairs)} tensors", pairs)
    if "merged_keys" in case:
        yield compare_equal(name, "key names", sorted(merged), sorted(case["merged_keys"]))
    if "targets" in case:
        config = file.config(case["weights"])
        ours = sorted(f"blocks.{i}.{target}" for i in range(config.layers) for target in TARGETS)
        yield compare_equal(name, "adapted modules", ours, sorted(case["targets"]))


def parity_groups() -> list[CaseGroup]:
    """The case groups of this room, for the `parity` slot."""

    def starts(prefix: str) -> Any:
        return lambda name: name.startswith(prefix)

    return [
        CaseGroup("ode pairs", ("teacher_A_ode50",), lambda n: n.startswith("teacher_") and "_ode" in n, _ode_pairs),
        CaseGroup("teacher loss", ("train_teacher_A",), starts("train_teacher"), _teacher),
        CaseGroup("ode loss", ("train_ode_A",), starts("train_ode"), _ode),
        CaseGroup("generator loss", ("train_dmd_generator_A",), starts("train_dmd_generator"), _dmd_generator),
        CaseGroup("critic loss", ("train_dmd_critic_A",), starts("train_dmd_critic"), _dmd_critic),
        CaseGroup("lora", ("lora_A",), starts("lora_"), _lora),
    ]
