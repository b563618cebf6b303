"""What the user sees when something fails: one sentence, and where to find the rest. Tracebacks only with --debug."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from shotstream.runtime.errors import UserError

if TYPE_CHECKING:
    from shotstream.runtime.cli.interrupts import Interrupts

log = logging.getLogger(__name__)


def report(error: BaseException, *, debug: bool, interrupts: Interrupts) -> int:
    """Say what happened on standard error and return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(bool(error.code))
    code = getattr(error, "exit_code", None)
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        _say(interrupts.farewell)
        return interrupts.exit_code
    if type(error).__name__ == "Exit" and isinstance(code, int):
        return code
    if isinstance(error, BrokenPipeError):  # the reader of our output went away; there is nobody to tell
        _silence_stdout()
        return 1
    if isinstance(error, UserError):
        _say(f"error: {_one_line(str(error))}")
        if debug:
            traceback.print_exception(error)
        return 2
    if hasattr(error, "format_message") and isinstance(code, int):  # wrong use of a command, from click
        _say(f"error: {_one_line(error.format_message()).rstrip('.')}; `{_usage(error)} --help` shows what is possible")
        return code
    if debug:
        traceback.print_exception(error)
        return 1
    _say(f"error: unexpected {type(error).__name__}: {_one_line(str(error))[:300]} ({_write_traceback(error)})")
    return 1


def _say(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _usage(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    return str(getattr(context, "command_path", "shotstream"))


def _write_traceback(error: BaseException) -> str:
    path = Path(tempfile.gettempdir()) / f"shotstream-error-{os.getpid()}.log"
    try:
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return "run again with --debug for the details"
    return f"details are in {path}"


def _silence_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
