"""Fixtures of the export room's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from small_model import small_runtimes

small_runtime = pytest.fixture(small_runtimes)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
