"""Configurations that no model can have are refused in one sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shotstream.runtime.config import TINY, DiTConfig
from shotstream.runtime.errors import UserError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 190}, "dim 190 must split into 4 heads"),
        ({"patch": (2, 2, 2)}, "must not span several latent frames"),
        ({"context_noise": 1001.0}, "context_noise 1001.0 is a timestep"),
        ({"local_frames": 20}, "local_frames 20 less sink_frames 0 must be a multiple of chunk_frames 3"),
        ({"nominal_steps": ()}, r"nominal_steps \[\] must be one or more"),
        ({"nominal_steps": (500, 1000)}, r"nominal_steps \[500, 1000\] must be one or more, falling"),
        ({"nominal_steps": (1000, 1000)}, "falling"),
        ({"nominal_steps": (1001, 500)}, "from 1000 at most"),
        ({"nominal_steps": (1000, 0)}, "to above 0"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(TINY, **changes)


def test_a_configuration_survives_its_json() -> None:
    config = replace(TINY, nominal_steps=(1000, 250), noise_offset=0.5)
    assert DiTConfig.from_json(config.to_json()) == config
