"""The bridge: game engines send events and receive frames, over ZeroMQ and MessagePack.

`shotstream.bridge.Client` is the client for Python; it is loaded when it is asked for, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shotstream.bridge.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from shotstream.bridge import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
