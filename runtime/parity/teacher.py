"""Parity of the bidirectional teacher: one guided forward over context and target, with and without the jump."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from shotstream.runtime.model.transformer import Transformer
from shotstream.runtime.parity.report import CaseGroup, Row, compare
from shotstream.runtime.parity.vectors import VectorFile


def teacher_flow(model: Transformer, x_BFCHW: Tensor, t_BF: Tensor, text: Tensor, flags: Tensor | None) -> Tensor:
    """Flow of one whole sequence; every frame reads the caption of its flag, or the only one there is."""
    batch, frames = x_BFCHW.shape[:2]
    positions = torch.arange(frames).expand(batch, frames)
    flags_BF = None if flags is None else flags[None].long().expand(batch, frames)
    index = flags_BF if text.shape[0] > 1 else None
    return model(x_BFCHW, t_BF, model.embed_captions(text), index, positions, flags_BF)


def _check(file: VectorFile, name: str) -> Iterator[Row]:
    case, schedule = file.cases[name], file.schedule()
    model = file.model(case["weights"])
    x, t_BF, flags = case["x"], case["timestep"], case["flags"]
    if t_BF.dim() < 2:
        t_BF = t_BF.reshape(-1, 1).expand(x.shape[:2])
    branches = (("", case.get("prompt_embeds"), flags), ("_neg", case.get("neg_embeds"), flags))
    with torch.no_grad():
        for suffix, text, used_flags in branches:
            if text is None:
                continue
            flow = teacher_flow(model, x, t_BF, text, used_flags)
            if f"flow{suffix}" in case:
                yield compare(name, f"flow{suffix}", flow, case[f"flow{suffix}"])
            if f"x0{suffix}" in case:
                yield compare(name, f"x0{suffix}", schedule.to_x0(x, flow, t_BF), case[f"x0{suffix}"])
        if "flow_neg_plain_rope" in case:
            flow = teacher_flow(model, x, t_BF, case["neg_embeds"], None)
            yield compare(name, "flow_neg_plain_rope", flow, case["flow_neg_plain_rope"])


def _claims(name: str) -> bool:
    return name.startswith("teacher_") and "_ode" not in name


GROUPS = [CaseGroup("teacher", ("teacher_A", "teacher_B"), _claims, _check)]
