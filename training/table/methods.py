"""The rows of the table: ours, its rivals by family, and what ours is without one of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from shotstream.training.method.rollout import RolloutSettings
from shotstream.training.table.bidirectional import Keyframes, WholeStory
from shotstream.training.table.past import everything, forgotten, sampled, window
from shotstream.training.table.students import StudentPlan

OURS = "ours"


@dataclass(frozen=True)
class Method:
    """One row: `plan` says how it is trained and played. `like` names the published methods that it stands for."""

    title: str
    plan: StudentPlan | WholeStory | Keyframes
    like: str = ""
    ablation: bool = False


def _without(title: str, **changes: object) -> Method:
    return Method(title, replace(StudentPlan(), **changes), ablation=True)  # type: ignore[arg-type]  # named fields


METHODS: Mapping[str, Method] = {
    "all-at-once": Method("bidirectional, all shots at once", WholeStory(), "LCT, HoloCine, Mask2DiT"),
    "keyframes": Method("keyframes first, then each shot from its own", Keyframes(), "keyframe pipelines"),
    "single-scene": Method("autoregressive, no global cache", StudentPlan(memory=forgotten), "CausVid, Self Forcing"),
    "recache": Method("one long roll-out, keys computed anew at each prompt", StudentPlan(memory=window()), "LongLive"),
    "rolling": Method("rolling denoising window", StudentPlan(memory=window(), rolling=True), "Rolling Forcing"),
    "sparse": Method("sparse attention over all history", StudentPlan(memory=everything, top=6), "Mixture of Contexts"),
    OURS: Method("ours", StudentPlan(), "ShotStream"),
    "no-jump": _without("no phase jump at cuts", jump=0.0),
    "global-only": _without("global cache only", rollout=RolloutSettings(local_cache=False)),
    "budget-2": _without("2 context frames", memory=sampled(2), slots=2),
    "budget-4": _without("4 context frames", memory=sampled(4), slots=4),
    "budget-8": _without("8 context frames", memory=sampled(8), slots=8),
    "remainder-last": _without("remainder to the newest shot (paper)", memory=sampled(remainder="last")),
    "stage-1": _without("stage 1 only", own_history=0.0),
    "stage-2": _without("stage 2 only", own_history=1.0),
    "detached": _without("no gradient through the cache", rollout=RolloutSettings(detach_cache=True)),
    "ours-rolling": _without("a rolling denoising window inside each shot", rolling=True),
    "ours-continued": _without("shots go on as true clips do (stage `continuation`)", continued=0.33),
    "steps-1": _without("1 denoising step", steps=(1000,)),
    "steps-2": _without("2 denoising steps", steps=(1000, 500)),
}
"""By the name that the command line takes. The local cache alone is `single-scene`."""
