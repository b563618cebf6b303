"""The plugin of the kernels room: the attention ``triton``, loaded when asked for, refused where it cannot run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from shotstream.runtime.plugins import Registry


class KernelsPlugin:
    """Offers the Triton attention to the runtime."""

    name = "kernels"

    def build(self, registry: Registry) -> None:
        """Register the attention ``triton``; Triton itself is imported when a session asks for it."""
        registry.register("attention", "triton", _attention)


def _attention() -> Callable[..., Tensor]:
    from shotstream.kernels.attention.backend import make_attention

    return make_attention()


plugin = KernelsPlugin()
"""Entry point ``shotstream.plugins``."""
