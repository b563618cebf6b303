"""Fixtures of the training room's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from command_line import shell

__all__ = ["shell"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """For all tests here: models are small, and threads cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
