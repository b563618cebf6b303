"""Gives free memory back to the system between shots. It frees nothing: what it hands over is already unused.

glibc keeps freed blocks for reuse; the few small tensors that outlive a shot (context latents, text keys) settle among
them and split them, so that the next shot's large buffers no longer fit and the heap grows by some MB per shot without
end. Handing the holes back keeps a session of any length flat; it costs milliseconds, once per shot.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import lru_cache


@lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's function, or None where the C library has none (macOS, Windows, musl)."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None


def give_back_free_memory() -> None:
    """Return unused pages of this process's heap to the system, where the C library can."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
