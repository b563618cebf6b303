"""Brings a real model's files to this machine, from the hub or a local folder, and vouches for them by SHA-256.

What a model consists of stands in ``manifests/<model>.yaml``: repository, pinned revision, files, sizes and hashes. A
file without a pinned hash is taken as it comes, its hash recorded in ``fetched.json`` beside the files, compared ever
after and reported as not pinned. Interrupted downloads and copies go on where they stopped. No weights are opened
here; progress is told to a callback and nothing is printed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from shotstream.runtime.errors import UserError
from shotstream.runtime.optional import require

Progress = Callable[[str, str, int, int], None]
"""Called with (``download``, ``copy`` or ``check``; file; bytes done; bytes in all, 0 when unknown)."""

HUB = "hub"
RECORD = "fetched.json"
_BLOCK = 8 << 20
_SPARE_BYTES = 256 << 20


@dataclass(frozen=True)
class ManifestFile:
    """One file of a model. ``sha256`` and ``bytes`` are None where no trustworthy value is known."""

    repository: str
    revision: str
    path: str
    """Inside the repository."""
    target: str
    """Inside the destination folder."""
    also: tuple[str, ...] = ()
    """Other folders in which a local source may keep it."""
    bytes: int | None = None
    sha256: str | None = None
    optional: str = ""
    """Empty, or what the file is for: it is then fetched only when asked for."""


@dataclass(frozen=True)
class FetchedFile:
    """What happened to one file."""

    target: str
    path: Path
    bytes: int
    sha256: str
    pinned: bool
    """True if the hash was known before; False: recorded at the first fetch."""
    action: str
    """``kept``, ``copied`` or ``downloaded``."""
    revision: str = ""


@dataclass(frozen=True)
class FetchReport:
    """All files of a model with the folder they are in."""

    model: str
    folder: Path
    files: tuple[FetchedFile, ...]

    @property
    def not_pinned(self) -> tuple[str, ...]:
        """Files whose hash nobody vouches for but their first download."""
        return tuple(file.target for file in self.files if not file.pinned)


def default_folder(model: str) -> Path:
    """Where ``fetch`` puts a model and the preset looks for it."""
    return Path.home() / ".cache" / "shotstream" / model


def manifest_names() -> list[str]:
    """Models that can be fetched."""
    folder = resources.files("shotstream.runtime") / "manifests"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_manifest(model: str) -> tuple[ManifestFile, ...]:
    """The files of a model; ``UserError`` lists the known models for an unknown one."""
    if model not in manifest_names():
        raise UserError(f"there is nothing to fetch for '{model}'; known models are {', '.join(manifest_names())}")
    import yaml  # here, because random weights need no manifest and a bare GPU machine has no yaml

    text = (resources.files("shotstream.runtime") / "manifests" / f"{model}.yaml").read_text("utf-8")
    return parse_manifest(yaml.safe_load(text), model)


def parse_manifest(content: Mapping[str, Any], name: str) -> tuple[ManifestFile, ...]:
    """Manifest files from parsed yaml; ``UserError`` for unknown keys."""
    files = []
    try:
        for source in content["sources"]:
            for entry in source["files"]:
                unknown = set(entry) - {"path", "bytes", "sha256", "optional"}
                if unknown:
                    raise UserError(f"the manifest of '{name}' has unknown keys {sorted(unknown)} at {entry['path']}")
                files.append(
                    ManifestFile(
                        repository=source["repository"],
                        revision=str(source["revision"]),
                        path=entry["path"],
                        target=f"{source['folder']}/{entry['path']}",
                        also=tuple(source.get("also", ())),
                        bytes=entry.get("bytes"),
                        sha256=entry.get("sha256"),
                        optional=entry.get("optional", ""),
                    )
                )
    except (KeyError, TypeError) as error:
        raise UserError(f"the manifest of '{name}' is incomplete: {error}") from error
    return tuple(files)


def fetch(
    model: str,
    source: str | Path = HUB,
    dest: str | Path | None = None,
    *,
    optional: bool = False,
    files: tuple[ManifestFile, ...] | None = None,
    progress: Progress | None = None,
) -> FetchReport:
    """Make ``dest`` hold every file of ``model``, checked; what is there and right is kept.

    ``source`` is ``hub`` or a local folder (laid out like ours, like the reference's, or flat). ``optional`` also
    takes files that only training needs. ``files`` replaces the shipped manifest. Raises ``UserError`` for an unknown
    model, a missing source file, no network, too little space, no permission, or a file that does not have its hash.
    """
    wanted = [f for f in (files if files is not None else read_manifest(model)) if optional or not f.optional]
    folder = Path(dest) if dest is not None else default_folder(model)
    tell = progress or (lambda *_: None)
    record = _Record.read(folder)
    local = None if str(source) == HUB else _local_sources(Path(source), wanted)
    missing = [f for f in wanted if not _looks_right(folder / f.target, f, record)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_space(folder, missing, local)
        done = [
            _keep(folder, f, record, tell) if f not in missing else _bring(folder, f, local, record, tell)
            for f in wanted
        ]
    except PermissionError as error:
        raise UserError(f"no permission to write {error.filename or folder}; choose another folder") from error
    except OSError as error:
        raise UserError(f"cannot fetch '{model}' into {folder}: {error.strerror or error}") from error
    return FetchReport(model, folder, tuple(done))


def file_sha256(path: Path, tell: Progress | None = None, name: str = "") -> str:
    """SHA-256 (hex) of a file, read in blocks."""
    digest, size, done = hashlib.sha256(), path.stat().st_size, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            if tell:
                tell("check", name or path.name, done, size)
    return digest.hexdigest()


def known_sha256(folder: Path, target: str) -> str:
    """The file's SHA-256, from the record if size and time still agree with it, else computed."""
    entry = _Record.read(folder).entries.get(target)
    path = folder / target
    if entry and entry.matches(path):
        return entry.sha256
    return file_sha256(path)


# ----------------------------------------------------------------------------------------------- the record


@dataclass(frozen=True)
class _Entry:
    sha256: str
    bytes: int
    mtime_ns: int
    revision: str = ""
    pinned: bool = False

    def matches(self, path: Path) -> bool:
        if not path.is_file():
            return False
        stat = path.stat()
        return (stat.st_size, stat.st_mtime_ns) == (self.bytes, self.mtime_ns)


@dataclass
class _Record:
    """``fetched.json``: what was fetched, so that nothing is hashed twice and nothing changes unnoticed."""

    path: Path
    entries: dict[str, _Entry]

    @classmethod
    def read(cls, folder: Path) -> _Record:
        path = folder / RECORD
        try:
            raw = json.loads(path.read_text("utf-8")) if path.is_file() else {}
            return cls(path, {target: _Entry(**entry) for target, entry in raw.items()})
        except (ValueError, TypeError, AttributeError):
            return cls(path, {})  # a broken record costs one more hashing, nothing else

    def note(self, f: ManifestFile, sha256: str, revision: str) -> None:
        stat = (self.path.parent / f.target).stat()
        self.entries[f.target] = _Entry(sha256, stat.st_size, stat.st_mtime_ns, revision, f.sha256 is not None)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({k: asdict(e) for k, e in sorted(self.entries.items())}, indent=1), "utf-8")
        partial.replace(self.path)


def _looks_right(path: Path, f: ManifestFile, record: _Record) -> bool:
    """Whether a file is there whole, as far as its size and the record tell; ``_keep`` looks into it."""
    if not path.is_file() or (f.bytes is not None and path.stat().st_size != f.bytes):
        return False
    return f.sha256 is not None or f.target in record.entries


def _keep(folder: Path, f: ManifestFile, record: _Record, tell: Progress) -> FetchedFile:
    path, entry = folder / f.target, record.entries.get(f.target)
    if entry and entry.matches(path) and f.sha256 in (None, entry.sha256):
        return _fetched(folder, f, entry.sha256, "kept", entry.revision)
    digest = file_sha256(path, tell, f.target)
    expected = f.sha256 or (entry.sha256 if entry else digest)
    if digest != expected:
        raise UserError(f"{path} does not have the sha256 {expected[:16]}... it should; delete it and fetch again")
    record.note(f, digest, entry.revision if entry else "")
    return _fetched(folder, f, digest, "kept", entry.revision if entry else "")


def _fetched(folder: Path, f: ManifestFile, digest: str, action: str, revision: str) -> FetchedFile:
    path = folder / f.target
    return FetchedFile(f.target, path, path.stat().st_size, digest, f.sha256 is not None, action, revision)


def _bring(
    folder: Path, f: ManifestFile, local: Mapping[str, Path] | None, record: _Record, tell: Progress
) -> FetchedFile:
    path = folder / f.target
    path.parent.mkdir(parents=True, exist_ok=True)
    if local is not None:
        digest, revision, action = _copy(local[f.target], path, f, tell), "", "copied"
    else:
        revision, action = _download(path, f, tell), "downloaded"
        digest = file_sha256(path, tell, f.target)
    before = record.entries.get(f.target)
    expected = f.sha256 or (before.sha256 if before else digest)
    if digest != expected:
        path.unlink(missing_ok=True)
        why = "pinned" if f.sha256 else "recorded when it was first fetched"
        raise UserError(f"{f.target} has sha256 {digest[:16]}..., not the {expected[:16]}... {why}; it was removed")
    record.note(f, digest, revision)
    return _fetched(folder, f, digest, action, revision)


# --------------------------------------------------------------------------------------------- local folder


def _local_sources(source: Path, wanted: list[ManifestFile]) -> dict[str, Path]:
    if not source.is_dir():
        raise UserError(f"there is no folder {source} to fetch from; give a folder or '{HUB}'")
    found = {f.target: next((p for p in _candidates(source, f) if p.is_file()), None) for f in wanted}
    absent = [target for target, path in found.items() if path is None]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise UserError(f"{source} does not hold {', '.join(absent[:3])}{more}")
    return {target: path for target, path in found.items() if path is not None}


def _candidates(source: Path, f: ManifestFile) -> Iterator[Path]:
    yield source / f.target
    for folder in f.also:
        yield source / folder / f.path
    yield source / f.path


def _copy(source: Path, path: Path, f: ManifestFile, tell: Progress) -> str:
    """Copy and hash in one reading; goes on from a ``.partial`` left by an interrupted copy. Returns the hash."""
    size = source.stat().st_size
    partial = path.with_name(path.name + ".partial")
    if partial.is_file() and partial.stat().st_size > size:
        partial.unlink()
    digest, done = hashlib.sha256(), 0
    with source.open("rb") as reader, partial.open("r+b" if partial.is_file() else "w+b") as writer:
        while block := writer.read(_BLOCK):  # what is there must be what the source has
            if reader.read(len(block)) != block:
                writer.seek(done)
                writer.truncate()
                reader.seek(done)
                break
            digest.update(block)
            done += len(block)
            tell("copy", f.target, done, size)
        while block := reader.read(_BLOCK):
            writer.write(block)
            digest.update(block)
            done += len(block)
            tell("copy", f.target, done, size)
    partial.replace(path)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------- the hub


def _download(path: Path, f: ManifestFile, tell: Progress) -> str:
    """Download (or go on downloading) one file through huggingface_hub; returns the commit it came from."""
    hub = require("huggingface_hub", "fetching from the hub")
    root = path.parents[f.path.count("/")]  # the repository's own folder
    try:
        commit = f.revision
        if not re.fullmatch("[0-9a-f]{40}", commit):  # a branch: fix what it means now, and record that
            commit = str(hub.HfApi().model_info(f.repository, revision=f.revision).sha)
        hub.hf_hub_download(
            f.repository, f.path, revision=commit, local_dir=root, tqdm_class=_reporting_bar(tell, f.target)
        )
        return commit
    except OSError as error:
        if getattr(error, "errno", None) is not None and error.filename:
            raise
        raise UserError(_hub_trouble(f, error)) from error
    except Exception as error:  # httpx errors and the hub's own are not one family
        raise UserError(_hub_trouble(f, error)) from error


def _hub_trouble(f: ManifestFile, error: Exception) -> str:
    kind = type(error).__name__
    where = f"{f.repository} (revision {f.revision[:12]})"
    if "Gated" in kind:
        return f"{where} asks for an accepted licence: accept it on the hub, log in with `hf auth login`, fetch again"
    if "Repository" in kind or "Revision" in kind or "RemoteEntry" in kind:
        return f"the hub has no {f.path} in {where}; the manifest may be outdated"
    return f"cannot reach the hub for {f.path} of {where} ({kind}); check the network or fetch from a local folder"


def _reporting_bar(tell: Progress, name: str) -> type:
    """A silent tqdm class that hands its counts to ``tell``."""
    tqdm = require("tqdm", "fetching from the hub").tqdm

    class Bar(tqdm):  # type: ignore[misc,valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)  # the hub's own classes know it, tqdm's does not
            super().__init__(*args, **{**kwargs, "disable": False, "file": _Silent()})

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            tell("download", name, int(self.n), int(self.total or 0))
            return shown

    return Bar


class _Silent:
    """A stream that forgets what is written to it."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        return None


def _check_space(folder: Path, missing: list[ManifestFile], local: Mapping[str, Path] | None) -> None:
    """Refuse before the first byte if the known sizes do not fit; files of unknown size count as nothing."""
    needed = sum(f.bytes or (local[f.target].stat().st_size if local else 0) for f in missing)
    free = shutil.disk_usage(folder).free
    if needed and needed + _SPARE_BYTES > free:
        raise UserError(f"{folder} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are needed; make room")
