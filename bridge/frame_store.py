"""The frame store: slots for chunks in memory that bridge and model process share, so that pictures are never copied
between them.

The bridge alone decides who uses a slot (`SlotBook`, plain counting); the model process writes where it is told. The
memory is a file that both map; whoever of the two ends last takes its name away.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt


class SlotBook:
    """Which slots are in use: `take` gives one with one holder, `hold` and `drop` count holders, none left frees it.

    Nobody has more than ``share`` slots at a time, so that a film whose frames are not fetched takes none from others.
    """

    def __init__(self, slots: int, share: int = 0) -> None:
        self.share = share or slots
        self._free = list(range(slots))[::-1]
        self._holders = [0] * slots
        self._taker = [""] * slots
        self._taken: Counter[str] = Counter()

    @property
    def free(self) -> int:
        """Number of free slots."""
        return len(self._free)

    @property
    def total(self) -> int:
        """Number of slots."""
        return len(self._holders)

    @property
    def used(self) -> int:
        """Number of slots in use."""
        return self.total - self.free

    def taken(self, by: str) -> int:
        """Number of slots in use that ``by`` has taken, whoever holds them now."""
        return self._taken[by]

    def room(self, by: str) -> bool:
        """True if `take` would give a slot."""
        return bool(self._free) and self._taken[by] < self.share

    def take(self, by: str = "") -> int | None:
        """A free slot, held once; None if there is none, or ``by`` has its share."""
        if not self.room(by):
            return None
        slot = self._free.pop()
        self._holders[slot], self._taker[slot] = 1, by
        self._taken[by] += 1
        return slot

    def hold(self, slot: int) -> None:
        """One more holder of a slot in use."""
        assert self._holders[slot] > 0, f"slot {slot} is free"
        self._holders[slot] += 1

    def drop(self, slot: int) -> None:
        """One holder less."""
        assert self._holders[slot] > 0, f"slot {slot} is free"
        self._holders[slot] -= 1
        if not self._holders[slot]:
            self._free.append(slot)
            by = self._taker[slot]
            self._taken[by] -= 1
            if not self._taken[by]:
                del self._taken[by]  # names of sessions come and go


class FrameStore:
    """The mapped memory. Made by the bridge with `create`, opened by the model process by path."""

    def __init__(self, path: Path, slots: int, slot_bytes: int) -> None:
        self.path, self.slots, self.slot_bytes = path, slots, slot_bytes
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), slots * slot_bytes)
        self._bytes = np.frombuffer(self._map, np.uint8)

    @classmethod
    def create(cls, slots: int, slot_bytes: int) -> FrameStore:
        """New memory of zeros, which takes room only where it is written: in shared memory where the system has enough
        (containers often give 64 MB, and writing beyond that kills a process), else in the folder for temporary files.
        """
        shared = Path("/dev/shm")
        enough = os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > slots * slot_bytes
        folder = shared if enough else None
        handle, name = tempfile.mkstemp(prefix="shotstream-frames-", dir=folder)
        with os.fdopen(handle, "r+b") as file:
            file.truncate(slots * slot_bytes)
        return cls(Path(name), slots, slot_bytes)

    def unlink(self) -> None:
        """Take the name away; the memory lives on as long as somebody maps it."""
        self.path.unlink(missing_ok=True)

    def view(self, slot: int, start: int = 0, length: int | None = None) -> npt.NDArray[np.uint8]:
        """``length`` bytes of a slot, writable, uint8 [length]."""
        begin = slot * self.slot_bytes + start
        stop = (slot + 1) * self.slot_bytes if length is None else begin + length
        return self._bytes[begin:stop]
