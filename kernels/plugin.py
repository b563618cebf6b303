"""The plugin of the kernels room: attentions, operations and a measurement. What cannot run here is refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    import typer

    from shotstream.runtime.graph.ops import BlockOps
    from shotstream.runtime.model.attention import Attention
    from shotstream.runtime.plugins import Registry


class KernelsPlugin:
    """Offers attentions ``triton`` and ``flash``, operations ``triton`` and the command ``bench attention``."""

    name = "kernels"

    def build(self, registry: Registry) -> None:
        """Register them; Triton itself is imported when somebody asks for one."""
        registry.register("attention", "triton", _attention)
        registry.register("attention", "flash", _flash_attention)
        registry.register("ops", "triton", _ops)
        registry.register("command", "kernels", _mount)


def _attention() -> Attention:
    from shotstream.kernels.attention.backend import make_attention

    return make_attention()


def _flash_attention() -> Attention:
    from shotstream.kernels.attention.flash import make_flash_attention

    return make_flash_attention()


def _ops(device: torch.device) -> BlockOps:
    from shotstream.kernels.gpu import EIGHT_BIT, require_gpu

    capability = require_gpu("ops backend", device)
    from shotstream.kernels.ops import TritonOps

    return TritonOps(device, eight_bit=capability >= EIGHT_BIT)


def _mount(app: typer.Typer) -> None:
    from shotstream.kernels.cli import mount

    mount(app)


plugin = KernelsPlugin()
"""Entry point ``shotstream.plugins``."""
