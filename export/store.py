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
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from shotstream.export.artifact import hash_of
from shotstream.runtime.errors import UserError

log = logging.getLogger(__name__)

PLAN, KEY = "engine.plan", "key.json"
FORMAT = 1
_PART, _LOCKS = ".part-", ".locks"
_CHANGED = "its plan is not the one that was built"

Shape = tuple[int, ...]
Profile = tuple[Shape, Shape, Shape]
"""Least, usual and largest shape of an input."""


@dataclass(frozen=True)
class EngineKey:
    """All that decides what an engine computes and where it runs.

    graph: name in the export. graph_sha256: of its files together. profiles: by input with free sizes. product and
    version: who built it. targets: GPU architectures such as sm_120; none: wherever the product runs. plugins: version
    of our plugins inside, "" without any.
    """

    graph: str
    weights_hash: str
    graph_sha256: str
    profiles: Mapping[str, Profile]
    precision: str
    product: str
    version: str
    targets: tuple[str, ...] = ()
    plugins: str = ""

    @property
    def folder(self) -> str:
        """Name of the engine's folder."""
        digest = hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()
        return f"{self.graph.replace('/', '-')}-{digest[:32]}"

    def runs_on(self, gpu: str) -> bool:
        """Whether it was built for a GPU of this architecture."""
        return not self.targets or gpu in self.targets

    def differences(self, other: EngineKey) -> list[str]:
        """In what the two differ, in words."""
        names = [field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)]
        return [name.replace("_", " ") for name in names]


@dataclass(frozen=True)
class Built:
    """How a plan came about. at: seconds since 1970. peak_mb: memory of the building process."""

    sha256: str
    nbytes: int
    seconds: float
    peak_mb: float
    at: float


@dataclass(frozen=True)
class Entry:
    """One engine of a store."""

    folder: Path
    key: EngineKey
    built: Built

    @property
    def used(self) -> float:
        """When it was last loaded or built, seconds since 1970."""
        return (self.folder / KEY).stat().st_mtime


class EngineStore:
    """A folder of engines. Processes may share it."""

    def __init__(self, root: Path) -> None:
        """Raises UserError if the folder cannot be made."""
        self.root = root
        with _sentences(root):
            (root / _LOCKS).mkdir(parents=True, exist_ok=True)

    # -------------------------------------------------------------------------------- reading
    def find(self, key: EngineKey) -> Entry | None:
        """The engine of exactly this key, if it is there and whole; its plan's content is not looked at."""
        try:
            return self._read(self.root / key.folder, key)
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
            again = self._read(entry.folder, entry.key)
        except FileNotFoundError:
            raise UserError(f"{entry.folder} was removed meanwhile; build it again") from None
        with _sentences(entry.folder):
            plan = (entry.folder / PLAN).read_bytes()
            if hashlib.sha256(plan).hexdigest() != again.built.sha256:
                raise _broken(entry.folder, _CHANGED)
            with suppress(OSError):  # a store that others own may be read all the same
                os.utime(entry.folder / KEY)
        return plan

    def entries(self) -> Iterator[tuple[Entry | None, str]]:
        """Every engine, by name; for a folder that is none, None and why."""
        with _sentences(self.root):
            folders = sorted(path for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))
        for folder in folders:
            try:
                yield self._read(folder), ""
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
            elif not _whole(entry):
                wrong.append(str(_broken(entry.folder, _CHANGED)))
        return wrong

    def _read(self, folder: Path, expected: EngineKey | None = None) -> Entry:
        """FileNotFoundError if there is no such folder; UserError if it is not what it should be."""
        if not folder.is_dir():
            raise FileNotFoundError(folder)
        try:
            found = msgspec.json.decode((folder / KEY).read_bytes())
            if found["format"] != FORMAT:
                raise _broken(folder, f"its {KEY} has format {found['format']}, and this version reads {FORMAT}")
            entry = Entry(folder, msgspec.convert(found["key"], EngineKey), msgspec.convert(found["built"], Built))
            nbytes = (folder / PLAN).stat().st_size
        except FileNotFoundError as error:
            raise _broken(folder, f"it has no {Path(error.filename).name}") from None
        except (msgspec.MsgspecError, KeyError, TypeError) as error:
            raise _broken(folder, f"its {KEY} cannot be read ({error})") from None
        if entry.key.folder != folder.name or (expected is not None and entry.key != expected):
            raise _broken(folder, "it holds an engine of something else than its name says")
        if nbytes != entry.built.nbytes:
            raise _broken(folder, f"its plan has {nbytes} bytes of {entry.built.nbytes}")
        return entry

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
        with _sentences(self.root):
            scratch = Path(tempfile.mkdtemp(dir=self.root, prefix=f"{_PART}{key.folder}-"))
        try:
            plan = scratch / PLAN
            with _sentences(self.root):
                facts = build(plan)
                built = Built(hash_of(plan), plan.stat().st_size, at=time.time(), **facts)
                _write_json(scratch / KEY, {"format": FORMAT, "key": key, "built": built})
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

    def prune(self, unwanted: Callable[[Entry], bool], *, broken: bool = True) -> list[str]:
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
            with suppress(Timeout), _sentences(self.root), FileLock(self._lock(engine), timeout=0):
                if part:
                    shutil.rmtree(path, ignore_errors=True)
                elif self._goes(path, unwanted, broken):
                    self.remove(name)
                else:
                    continue
                gone.append(name)
        return gone

    def _goes(self, folder: Path, unwanted: Callable[[Entry], bool], broken: bool) -> bool:
        try:
            entry = self._read(folder)
            return unwanted(entry) or (broken and not _whole(entry))
        except FileNotFoundError:
            return False
        except UserError:  # a stranger's folder is not ours to delete
            return broken and any((folder / name).exists() for name in (PLAN, KEY))

    def _sweep(self, folder: str) -> None:
        """Remove what dead builders of an engine left; its lock is held, so none of them lives."""
        for path in self.root.glob(f"{_PART}{folder}-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _lock(self, folder: str) -> Path:
        return self.root / _LOCKS / f"{folder}.lock"

    @contextmanager
    def _held(self, folder: str, waiting: Callable[[], None] | None) -> Iterator[None]:
        """The system frees the lock of a process that dies, however it dies."""
        with _sentences(self.root):
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


def _write_json(path: Path, value: Any) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")
    _flush(path)


def _flush(path: Path) -> None:
    """Onto the disk, so that a power cut after the rename finds the content there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _whole(entry: Entry) -> bool:
    with _sentences(entry.folder):
        return hash_of(entry.folder / PLAN) == entry.built.sha256


def _broken(folder: Path, why: str) -> UserError:
    return UserError(f"{folder} is broken: {why}; remove it with: shotstream export engines prune, and build again")


@contextmanager
def _sentences(place: Path) -> Iterator[None]:
    """Errors of the file system as sentences."""
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        said = error.strerror or str(error)
        raise UserError(
            f"the engine store cannot use {place}: {said}; free some space or choose another --store"
        ) from (error)
