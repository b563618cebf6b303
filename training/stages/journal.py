"""What a stage leaves to read while it runs: ``log.jsonl``, TensorBoard scalars, curves."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shotstream.runtime.sinks.base import replace_file
from shotstream.training.stages.curves import write_curves

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


class Journal:
    """The figures of a stage, from step ``first`` on: lines after it, of a run that was killed, are dropped.

    Raises UserError if the log cannot be written; what it held is then still there.
    """

    def __init__(self, out: Path, first: int) -> None:
        self.out = out
        self.path = out / "log.jsonl"
        lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        replace_file(self.path, "".join(line + "\n" for line in lines if _step(line) <= first).encode())
        self.scalars = _scalars(out / "tensorboard", first)

    def write(self, line: dict[str, Any]) -> None:
        """Add a line; it has the key ``step``."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.scalars is not None:
            for name, value in line.items():
                if name != "step":
                    self.scalars.add_scalar(name, value, line["step"])

    def draw(self) -> None:
        """The curves so far."""
        write_curves(self.path, self.out / "curves.png")

    def close(self) -> None:
        """Write out what TensorBoard holds back."""
        if self.scalars is not None:
            with suppress(OSError):  # a full disk has been said by then, or hurts nobody
                self.scalars.close()


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the end of a line that a killed run began
        return 1 << 62


def _scalars(folder: Path, first: int) -> SummaryWriter | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("no TensorBoard scalars: tensorboard is not installed (pip install 'shotstream[train]')")
        return None
    # purge_step hides what a killed run wrote after its last checkpoint.
    return SummaryWriter(str(folder), purge_step=first + 1)
