"""Parity with the public reference: recorded inputs and outputs, run through our own code and compared.

`run_parity(path, groups)` is the entry point; `runtime_groups()` lists the cases this room can check. The training
room hands in its own through the `parity` slot. No tolerance, size or seed of a vector file is written here except the
agreed error bounds.
"""

from shotstream.runtime.parity.report import CaseGroup, ParityReport, Row, run_parity
from shotstream.runtime.parity.vectors import VectorFile

__all__ = ["CaseGroup", "ParityReport", "Row", "VectorFile", "run_parity", "runtime_groups"]


def runtime_groups() -> list[CaseGroup]:
    """The case groups of the runtime, in the order of the table. Imports the model, hence not at module level."""
    from shotstream.runtime.parity import codecs, multishot, student, tables, teacher

    return [*tables.GROUPS, *codecs.GROUPS, *student.GROUPS, *multishot.GROUPS, *teacher.GROUPS]
