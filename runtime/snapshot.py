"""Snapshots: a session's state between two shots as bytes, and back. Versioned, self-checking, a few MB at most.

Layout: magic (8 bytes), version (u32), header length (u32), payload length (u64), all little-endian; a msgpack header;
a safetensors payload with the candidate latents; SHA-256 of everything before. Caches, text embeddings and noise are
not stored: they are rebuilt from what is. This file opens no files and makes no sessions.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

import safetensors.torch
from safetensors import SafetensorError

from shotstream.runtime.errors import UserError
from shotstream.runtime.history import History, PastShot

MAGIC = b"SHOTSNAP"
VERSION = 3  # 2 adds memory_begins, 3 the captions of steered shots; snapshots of versions 1 and 2 are read as well
_UNSTEERED = 2  # what is written as long as it says everything, so that older versions of us can go on with it
_PREFIX = struct.Struct("<8sIIQ")
_DIGEST_BYTES = 32
_MOST = 1 << 31


@dataclass(frozen=True)
class ModelIdentity:
    """What must agree for a session to continue bit for bit: preset, SHA-256 of its weights, and number format."""

    name: str
    weights_hash: str
    dtype: str


@dataclass(frozen=True)
class SavedSession:
    """A session between two shots."""

    model: ModelIdentity
    seed: int
    global_caption: str
    shots_begun: int
    frames_made: int
    history: History
    memory_begins: int = 0
    """Number of the first shot that is remembered."""


@dataclass(frozen=True)
class _Shot:
    number: int
    caption: str
    length: int
    frames: list[int]
    earlier: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Header:
    model: ModelIdentity
    seed: int
    global_caption: str
    shots_begun: int
    frames_made: int
    budget: int
    shots: list[_Shot]
    memory_begins: int = 0


def pack(saved: SavedSession) -> bytes:
    """Serialise a session."""
    import msgspec  # here, because a runtime that keeps nothing must run without it

    shots = [_Shot(s.number, s.caption, s.length, sorted(s.latents), s.earlier) for s in saved.history.shots]
    version = VERSION if any(shot.earlier for shot in shots) else _UNSTEERED
    header = msgspec.msgpack.encode(
        _Header(
            model=saved.model,
            seed=saved.seed,
            global_caption=saved.global_caption,
            shots_begun=saved.shots_begun,
            frames_made=saved.frames_made,
            budget=saved.history.budget,
            shots=shots,
            memory_begins=saved.memory_begins,
        )
    )
    payload = safetensors.torch.save(
        {
            _key(shot.number, frame): latent.detach().cpu().contiguous()
            for shot in saved.history.shots
            for frame, latent in shot.latents.items()
        }
    )
    body = _PREFIX.pack(MAGIC, version, len(header), len(payload)) + header + payload
    return body + hashlib.sha256(body).digest()


def unpack(data: bytes, model: ModelIdentity, latent_shape: tuple[int, int, int], budget: int) -> SavedSession:
    """Read what `pack` wrote; latents are on the CPU.

    model, latent_shape ([C, h, w]) and budget (context frames) are those of the runtime that is to continue. Raises
    UserError, with the reason, for bytes that are no snapshot, are truncated or damaged, were written by a newer
    version, or belong to another model.
    """
    import msgspec

    header, payload = _split(bytes(data))
    try:
        head = msgspec.msgpack.decode(header, type=_Header)
        tensors = safetensors.torch.load(payload)
        shots = [
            PastShot(s.number, s.caption, s.length, {f: tensors[_key(s.number, f)] for f in s.frames}, s.earlier)
            for s in head.shots
        ]
    except (msgspec.MsgspecError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"the snapshot is intact but its content makes no sense ({error})") from error
    _check_model(head.model, model)
    history = History(budget, shots)
    _check_content(head, history, latent_shape)
    return SavedSession(
        model=head.model,
        seed=head.seed,
        global_caption=head.global_caption,
        shots_begun=head.shots_begun,
        frames_made=head.frames_made,
        history=history,
        memory_begins=head.memory_begins,
    )


def _split(data: bytes) -> tuple[bytes, bytes]:
    """Header and payload, after every check that needs no understanding of them."""
    if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
        raise UserError("this is not a session snapshot: it does not begin as one")
    if len(data) < _PREFIX.size:
        raise UserError(f"the snapshot is truncated: it ends after {len(data)} bytes")
    _, version, header_bytes, payload_bytes = _PREFIX.unpack_from(data)
    if version > VERSION:
        raise UserError(f"the snapshot has format {version}, but this version reads up to {VERSION}; update shotstream")
    expected = _PREFIX.size + header_bytes + payload_bytes + _DIGEST_BYTES
    if len(data) < expected:
        raise UserError(f"the snapshot is truncated: {len(data)} of {expected} bytes are there")
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if len(data) > expected or hashlib.sha256(body).digest() != digest:
        raise UserError("the snapshot is damaged: its checksum does not match its content")
    start = _PREFIX.size + header_bytes
    return body[_PREFIX.size : start], body[start:]


def _check_model(saved: ModelIdentity, here: ModelIdentity) -> None:
    if saved.name != here.name:
        raise UserError(f"the snapshot belongs to the model '{saved.name}', but this runtime has '{here.name}'")
    if saved.weights_hash != here.weights_hash:
        raise UserError(
            f"the snapshot was made with other weights of '{saved.name}' ({saved.weights_hash[:12]}) than are loaded "
            f"here ({here.weights_hash[:12]})"
        )
    if saved.dtype != here.dtype:
        raise UserError(f"the snapshot was made in {saved.dtype}, but this runtime computes in {here.dtype}")


def _check_content(head: _Header, history: History, latent_shape: tuple[int, int, int]) -> None:
    """A right checksum proves no good will: what the session relies on is checked too."""
    if head.budget != history.budget:
        raise UserError(f"the snapshot's context has {head.budget} frames, but this model's has {history.budget}")
    if any(not 0 < shot.length < _MOST for shot in history.shots) or len(history.shots) > history.budget:
        raise UserError("the snapshot is intact but its shots make no sense")
    if not 0 <= head.seed < 1 << 64 or not 0 <= head.frames_made < 1 << 53 or not 0 <= head.shots_begun < _MOST:
        raise UserError("the snapshot is intact but its counters make no sense")
    if not 0 <= head.memory_begins <= head.shots_begun:
        raise UserError("the snapshot is intact but its counters make no sense")
    if head.shots_begun > head.memory_begins and not history.shots:
        raise UserError("the snapshot is intact but has lost its shots")
    numbers = [shot.number for shot in history.shots]
    oldest = max(head.memory_begins, head.shots_begun - len(numbers))
    if numbers != list(range(oldest, head.shots_begun)):
        raise UserError("the snapshot is intact but its shot numbers make no sense")
    for shot in history.shots:
        if not shot.earlier.keys() <= shot.latents.keys():
            raise UserError("the snapshot is intact but its captions make no sense")
        for frame, latent in shot.latents.items():
            if tuple(latent.shape) != latent_shape or not latent.isfinite().all():
                raise UserError(f"the snapshot's frame {frame} of shot {shot.number} does not fit this model")
    try:
        history.context()
    except KeyError as error:
        raise UserError(f"the snapshot lacks frame {error} that the next shot needs") from error


def _key(shot: int, frame: int) -> str:
    return f"latent.{shot}.{frame}"
