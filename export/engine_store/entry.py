"""One engine of the store: what it was made of, how it came about, and whether its folder still holds it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec
from filelock import Timeout

from shotstream.export.files import hash_of
from shotstream.runtime.errors import UserError

PLAN, KEY = "engine.plan", "key.json"
FORMAT = 1
CHANGED = "its plan is not the one that was built"

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


def read_entry(folder: Path, expected: EngineKey | None = None) -> Entry:
    """FileNotFoundError if there is no such folder; UserError if it is not what it should be."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    try:
        found = msgspec.json.decode((folder / KEY).read_bytes())
        if found["format"] != FORMAT:
            raise broken(folder, f"its {KEY} has format {found['format']}, and this version reads {FORMAT}")
        entry = Entry(folder, msgspec.convert(found["key"], EngineKey), msgspec.convert(found["built"], Built))
        nbytes = (folder / PLAN).stat().st_size
    except FileNotFoundError as error:
        raise broken(folder, f"it has no {Path(error.filename).name}") from None
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise broken(folder, f"its {KEY} cannot be read ({error})") from None
    if entry.key.folder != folder.name or (expected is not None and entry.key != expected):
        raise broken(folder, "it holds an engine of something else than its name says")
    if nbytes != entry.built.nbytes:
        raise broken(folder, f"its plan has {nbytes} bytes of {entry.built.nbytes}")
    return entry


def whole(entry: Entry) -> bool:
    """Whether the plan is the one that was built; reads it."""
    with sentences(entry.folder):
        return hash_of(entry.folder / PLAN) == entry.built.sha256


def broken(folder: Path, why: str) -> UserError:
    """That an engine must not be used, and what to do."""
    return UserError(f"{folder} is broken: {why}; remove it with: shotstream export engines prune, and build again")


@contextmanager
def sentences(place: Path) -> Iterator[None]:
    """Errors of the file system as sentences."""
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        said = error.strerror or str(error)
        raise UserError(
            f"the engine store cannot use {place}: {said}; free some space or choose another --store"
        ) from error
