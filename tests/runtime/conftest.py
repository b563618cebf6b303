"""Fixtures of the runtime's tests."""

from __future__ import annotations

import pytest
from command_line import shell
from small_model import one_thread, small_runtime

__all__ = ["one_thread", "shell", "small_runtime"]


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For all tests here: models are small, and threads cost more than they bring."""
