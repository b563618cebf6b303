"""``python -m shotstream.kernels.report``: compile every kernel for every architecture and print what it takes."""

from __future__ import annotations

import argparse
import sys

from shotstream.kernels import aot
from shotstream.runtime.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Print the report; returns 1 if anything is over a limit or does not compile, 2 if nothing can be compiled."""
    parser = argparse.ArgumentParser(prog="python -m shotstream.kernels.report", description=__doc__)
    parser.add_argument(
        "--arch", type=int, action="append", choices=aot.ARCHITECTURES, help="only this one; repeatable"
    )
    parser.add_argument("--kernel", default="", help="only kernels with this in their name")
    given = parser.parse_args(arguments)
    try:
        specs = [spec for spec in aot.collect() if given.kernel in spec.name]
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    rows = aot.compile_all(specs, given.arch or aot.ARCHITECTURES)
    sys.stdout.write(aot.table(rows) + "\n")
    return 1 if any(row.faults() for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
