"""Commands of the command line, run in the tests' own process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from shotstream.runtime.cli import run

Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """Runs a command in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    handlers, level = logging.root.handlers[:], logging.root.level

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    yield call
    logging.root.handlers[:], logging.root.level = handlers, level
