"""Built engines on disk: found by what they were made of, and looked at again before they are used.

One folder per engine holds the plan and `key.json`, which says what the plan was made of. A folder appears by one
rename once both are complete, so an interrupted build leaves nothing that could be taken for an engine. What a
builder that died left behind goes away with the next build of the same engine, or with `prune`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from shotstream.export.engine_store.entry import (
    CHANGED,
    FORMAT,
    KEY,
    PLAN,
    Built,
    EngineKey,
    Entry,
    broken,
    read_entry,
    sentences,
    whole,
)
from shotstream.export.files import hash_of, json_of
from shotstream.runtime.errors import UserError

log = logging.getLogger(__name__)

_PART, _LOCKS = ".part-", ".locks"


class EngineStore:
    """A folder of engines. Processes may share it."""

    def __init__(self, root: Path) -> None:
        """Raises UserError if the folder cannot be made."""
        self.root = root
        with sentences(root):
            (root / _LOCKS).mkdir(parents=True, exist_ok=True)

    # -------------------------------------------------------------------------------- reading
    def find(self, key: EngineKey) -> Entry | None:
        """The engine of exactly this key, if it is there and whole; its plan's content is not looked at."""
        try:
            return read_entry(self.root / key.folder, key)
        except FileNotFoundError:
            return None
        except UserError as error:
            log.warning("%s", error)
            return None

    def best(self, key: EngineKey, gpu: str) -> Entry:
        """An engine of this key, whatever else it was built for than `gpu`. UserError says what is there instead."""
        near: EngineKey | None = None
        for entry, _ in self.entries():
            if entry is None or entry.key.graph != key.graph or entry.key.product != key.product:
                continue
            others = [what for what in entry.key.differences(key) if what != "targets"]
            if not others and entry.key.runs_on(gpu):
                return entry
            near = entry.key
        if near is None:
            raise UserError(
                f"the store {self.root} has no engine of {key.graph} for {key.product}; "
                f"build it with: shotstream export engines --target {key.product}"
            )
        raise UserError(
            f"the store {self.root} has an engine of {key.graph} for {key.product}, but with other "
            f"{', '.join(near.differences(key)) or 'targets'}; build this one with: "
            f"shotstream export engines --target {key.product}"
        )

    def load(self, entry: Entry) -> bytes:
        """The plan, checked against its hash. UserError if it is not what was built."""
        try:
            again = read_entry(entry.folder, entry.key)
        except FileNotFoundError:
            raise UserError(f"{entry.folder} was removed meanwhile; build it again") from None
        with sentences(entry.folder):
            plan = (entry.folder / PLAN).read_bytes()
            if hashlib.sha256(plan).hexdigest() != again.built.sha256:
                raise broken(entry.folder, CHANGED)
            with suppress(OSError):  # a store that others own may be read all the same
                os.utime(entry.folder / KEY)
        return plan

    def entries(self) -> Iterator[tuple[Entry | None, str]]:
        """Every engine, by name; for a folder that is none, None and why."""
        with sentences(self.root):
            folders = sorted(path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))
        for folder in folders:
            try:
                yield read_entry(folder), ""
            except FileNotFoundError:
                yield None, f"{folder} is no engine of ours"
            except UserError as error:
                yield None, str(error)

    def verify(self) -> list[str]:
        """A sentence for each engine that must not be used; reads every plan."""
        wrong = []
        for entry, why in self.entries():
            if entry is None:
                wrong.append(why)
            elif not whole(entry):
                wrong.append(str(broken(entry.folder, CHANGED)))
        return wrong

    # -------------------------------------------------------------------------------- writing
    def get_or_build(
        self, key: EngineKey, build: Callable[[Path], Mapping[str, float]], waiting: Callable[[], None] | None = None
    ) -> tuple[Entry, bool]:
        """The engine of this key, and whether it was built just now.

        build: writes the plan to a path and returns `seconds` and `peak_mb`. waiting: called once if another process
        builds the same engine; its result is then taken. Raises UserError when the disk is full, and what `build` does.
        """
        with self._held(key.folder, waiting):
            if (entry := self.find(key)) is not None:
                return entry, False
            return self._built(key, build), True

    def _built(self, key: EngineKey, build: Callable[[Path], Mapping[str, float]]) -> Entry:
        self._sweep(key.folder)
        with sentences(self.root):
            scratch = Path(tempfile.mkdtemp(dir=self.root, prefix=f"{_PART}{key.folder}-"))
        try:
            plan = scratch / PLAN
            with sentences(self.root):
                facts = build(plan)
                built = Built(hash_of(plan), plan.stat().st_size, at=time.time(), **facts)
                (scratch / KEY).write_bytes(json_of({"format": FORMAT, "key": key, "built": built}))
                _flush(scratch / KEY)
                _flush(plan)
                self.remove(key.folder)
                scratch.rename(self.root / key.folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return Entry(self.root / key.folder, key, built)

    def remove(self, folder: str) -> None:
        """Delete an engine in one step; nothing if it is not there."""
        if (self.root / folder).is_dir():
            away = Path(tempfile.mkdtemp(dir=self.root, prefix=f"{_PART}{folder}-"))
            (self.root / folder).rename(away / "old")
            shutil.rmtree(away, ignore_errors=True)

    def prune(self, unwanted: Callable[[Entry], bool], *, damaged: bool = True) -> list[str]:
        """Delete engines, what is broken, and what dead builders left; the names of the folders that went.

        Engines that somebody is building just now are left alone. Every plan is read.
        """
        gone = []
        for path in sorted(self.root.iterdir()):
            name = path.name
            if not path.is_dir() or name == _LOCKS:
                continue
            part = name.startswith(_PART)
            engine = name.removeprefix(_PART).rpartition("-")[0] if part else name
            with suppress(Timeout), sentences(self.root), FileLock(self._lock(engine), timeout=0):
                if part:
                    shutil.rmtree(path, ignore_errors=True)
                elif self._goes(path, unwanted, damaged):
                    self.remove(name)
                else:
                    continue
                gone.append(name)
        return gone

    def _goes(self, folder: Path, unwanted: Callable[[Entry], bool], damaged: bool) -> bool:
        try:
            entry = read_entry(folder)
            return unwanted(entry) or (damaged and not whole(entry))
        except FileNotFoundError:
            return False
        except UserError:  # a stranger's folder is not ours to delete
            return damaged and any((folder / name).exists() for name in (PLAN, KEY))

    def _sweep(self, folder: str) -> None:
        """Remove what dead builders of an engine left; its lock is held, so none of them lives."""
        for path in self.root.glob(f"{_PART}{folder}-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _lock(self, folder: str) -> Path:
        return self.root / _LOCKS / f"{folder}.lock"

    @contextmanager
    def _held(self, folder: str, waiting: Callable[[], None] | None) -> Iterator[None]:
        """The system frees the lock of a process that dies, however it dies."""
        with sentences(self.root):
            lock = FileLock(self._lock(folder))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if waiting is not None:
                    waiting()
                lock.acquire()
        try:
            yield
        finally:
            lock.release()


def default_store() -> Path:
    """Where engines lie if nobody says otherwise."""
    return Path.home() / ".cache" / "shotstream" / "engines"


def _flush(path: Path) -> None:
    """Onto the disk, so that a power cut after the rename finds the content there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
