"""How much of anything the protocol allows. A server may allow less; `welcome.limits` says what holds."""

from __future__ import annotations

import msgspec

MAGIC = b"SST/1"
"""First part of every message. Another major version is another magic."""
PROTO = (1, 0)
"""Major and minor version. Minor versions only add optional fields and messages."""

CLOCK_HZ = 90_000
"""Unit of `pts`: exact for 15, 16, 24, 25, 30 and 60 frames a second."""
BIGGEST = 2**53
"""Largest integer on the wire: beyond it JavaScript and GDScript lose digits."""
TEXT = 4096
"""Bytes of a caption (UTF-8 counted on arrival; the schema bounds characters)."""
NAME = 128
"""Characters of kinds, keys, names and tokens."""
CAST, TAGS, PARAMS, CHOICES = 8, 16, 32, 4


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits in force, as told in `welcome`. Bytes, seconds and frames; counts are per what the name says."""

    header_bytes: int = 64 * 1024
    part_bytes: int = 8 * 1024 * 1024
    """Larger parts make the transport drop the connection: check before sending."""
    parts: int = 8
    text_bytes: int = TEXT
    cast: int = CAST
    params: int = PARAMS
    tags: int = TAGS
    choices: int = CHOICES
    """This and the three above are bounds of the message types: a server that told less would not hold to it."""
    sessions: int = 4
    """Over the whole server."""
    sessions_per_connection: int = 4
    connections: int = 64
    window_min: int = 12
    window_max: int = 96
    snapshots: int = 8
    """Per session, newest kept."""
    ids: int = 256
    """Requests whose acknowledgement a session remembers."""
    replay_frames: int = 36
    """Frames that a session keeps for a client that comes back."""
    requests_per_s: int = 30
    lease_s: float = 10.0
    """A connection that says nothing for so long counts as lost."""
    session_s: float = 3600.0
    resume_ttl_s: float = 60.0
    """Longest time that a session waits for its client; `open_session` may ask for less."""
    bad_messages: int = 20
    """Within 10 s; then the connection is ignored for `ban_s`."""
    ban_s: float = 60.0
