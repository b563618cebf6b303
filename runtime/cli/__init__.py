"""The `shotstream` command line; one file per group of commands. This file holds the entry and what happens on errors.

Exit codes: 0 done, 1 something failed that should not (or a check did not pass), 2 the user can put it right, 130
stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

DEBUG_FLAG = "--debug"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the `shotstream` script."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every failure becomes one sentence on standard error."""
    from shotstream.runtime.cli.interrupts import Interrupts

    debug = DEBUG_FLAG in arguments  # accepted anywhere, since it is added after something went wrong
    arguments = [argument for argument in arguments if argument != DEBUG_FLAG]
    with Interrupts() as interrupts:
        try:
            from shotstream.runtime.cli.app import call

            return call(arguments, debug=debug, interrupts=interrupts)
        except BaseException as error:  # the one place that turns anything into an exit code
            from shotstream.runtime.cli.failures import report

            return report(error, debug=debug, interrupts=interrupts)
