"""Players who do everything for a while over a network that keeps breaking: nothing is lost and nothing grows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from shotstream.bridge.bench import write_json
from shotstream.bridge.soak import Soaked, soak


def assert_well(soaked: Soaked, requests: int) -> None:
    assert not soaked.wrong
    assert soaked.frames > requests
    assert sum(soaked.requests.values()) >= requests
    assert sum(soaked.answers.values()) == sum(soaked.requests.values())


def test_restless_players_on_a_bad_network_lose_nothing() -> None:
    assert_well(soak(10 / 60, lambda line: None, seed=1), requests=20)


@pytest.mark.slow
def test_restless_players_lose_nothing_in_a_minute() -> None:
    soaked = soak(1, lambda line: None, seed=2)
    assert_well(soaked, requests=150)
    assert soaked.reconnects >= 3


def test_what_came_of_it_can_be_written_down(tmp_path: Path) -> None:
    file = tmp_path / "soak.json"
    write_json(Soaked(1, requests=Counter(prompt=2)), file)
    assert json.loads(file.read_text())["requests"] == {"prompt": 2}
