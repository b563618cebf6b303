"""The client of the bridge for Python: one for game loops (`Client`), one for asyncio (`AsyncClient`).

The parts without sockets can be used alone: `ClientCore` speaks the protocol, `Playout` shows frames in time, `Hold`
helps to hide what takes time. Nothing is loaded before it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shotstream.bridge.client.aio import AsyncClient, AsyncFilm, AsyncReceipt
    from shotstream.bridge.client.client import Client, Film
    from shotstream.bridge.client.core import ClientCore
    from shotstream.bridge.client.picture import Frame
    from shotstream.bridge.client.playout import Hold, Playout
    from shotstream.bridge.client.receipts import Receipt, Refused

_HOMES = {
    "AsyncClient": "aio",
    "AsyncFilm": "aio",
    "AsyncReceipt": "aio",
    "Client": "client",
    "ClientCore": "core",
    "Film": "client",
    "Frame": "picture",
    "Hold": "playout",
    "Playout": "playout",
    "Receipt": "receipts",
    "Refused": "receipts",
}

__all__ = [
    "AsyncClient",
    "AsyncFilm",
    "AsyncReceipt",
    "Client",
    "ClientCore",
    "Film",
    "Frame",
    "Hold",
    "Playout",
    "Receipt",
    "Refused",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
