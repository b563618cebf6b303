"""Segments and our attention between them make the film that the whole transformer makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from films import assert_same_film, latents_of

from shotstream.runtime.errors import UserError
from shotstream.runtime.runtime import Runtime

MakeRuntime = Callable[..., Runtime]
EXPORT = "shotstream.export.plugin:plugin"


@pytest.mark.parametrize("options", [{"layers": 3}, {"sink_frames": 6, "context_noise": 300.0}], ids=str)
def test_segments_make_the_film_of_the_eager_engine(small_runtime: MakeRuntime, options: dict[str, Any]) -> None:
    eager = small_runtime(engine="eager", model_options=options)
    cut = small_runtime(EXPORT, engine="torch-segments", model_options=options)
    assert_same_film(eager, cut)


def test_eight_bit_keys_are_near(small_runtime: MakeRuntime) -> None:
    made = []
    for fp8 in ("none", "cache"):
        runtime = small_runtime(EXPORT, engine="torch-segments", engine_options={"fp8": fp8})
        made.append(latents_of(runtime))
        session = runtime.open("A forest. ", seed=3)
        session.begin_shot("a fox waits", 2)
        list(session.chunks())
    error = (made[1][1] - made[0][1]).norm() / made[0][1].norm()
    assert 0 < error < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [({"fp8": "linears"}, "fp8 of an engine made of segments is none or cache"), ({"x": 1}, "has no option x")],
)
def test_options_that_do_not_exist_are_refused(small_runtime: MakeRuntime, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_runtime(EXPORT, engine="torch-segments", engine_options=options)
