"""Files as this room writes them: hashes, json, and a full disk as a sentence."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from shotstream.runtime.errors import UserError


def hash_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_of(value: Any) -> bytes:
    """Of dataclasses and plain values, with indents."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns an OSError meanwhile into a UserError that names the target."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror or error}; free some space or choose another folder"
        ) from error
