"""What fewer bits cost is measured on whole films, and the measure sees what it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_model import SmallPlugin

from shotstream.runtime.bench.accuracy import VARIANTS, accuracy
from shotstream.runtime.errors import UserError
from shotstream.runtime.graph.linear import EightBit
from shotstream.runtime.runtime import RuntimeOptions
from shotstream.runtime.storyline import Story, StoryShot

STORY = Story("short", "A forest.", (StoryShot("a fox waits"), StoryShot("a fox runs")))
OPTIONS = RuntimeOptions(plugins=["shotstream.runtime.presets:CorePlugin", SmallPlugin()], model_options={"layers": 3})


def test_every_precision_is_near_and_none_is_exact(tmp_path: Path) -> None:
    report = accuracy("small", OPTIONS, shots=2, chunks=2, story=STORY)
    assert [film.label for film in report.films] == list(VARIANTS)
    for film in report.films:
        assert len(film.by_chunk) == 2
        assert len(film.by_shot) == 2
        assert all(0 < error < 0.3 for error in (*film.by_chunk, *film.by_shot))
    by_label = {film.label: film.by_chunk[0] for film in report.films}
    assert by_label["bfloat16"] < by_label["bfloat16, fp8 all"]
    assert len(report.by_layer) == 3
    assert all(error > 0 for error in report.by_layer)
    report.write_json(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["films"][0]["label"] == "float32, fp8 cache"
    assert "shot 2" in report.lines()[1]


def test_a_worse_product_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = accuracy("small", OPTIONS, shots=1, chunks=1, story=STORY)
    real = EightBit.of.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        EightBit, "of", classmethod(lambda cls, weight, bias: real(cls, (weight * 8).round() / 8, bias))
    )
    coarse = accuracy("small", OPTIONS, shots=1, chunks=1, story=STORY)
    assert min(coarse.by_layer) > 3 * max(fine.by_layer)


def test_what_it_compares_cannot_be_set() -> None:
    with pytest.raises(UserError, match="precisions are what is compared"):
        accuracy("small", RuntimeOptions(engine_options={"fp8": "all"}))
