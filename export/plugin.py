"""The plugin of the export room: engines, decoders, commands. Foreign runtimes are imported when one is asked for."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

    from shotstream.runtime.engine import Engine
    from shotstream.runtime.plugins import Decoder, EngineRequest, ModelRequest, Registry


class ExportPlugin:
    """Offers engines made of segments, decoders on ONNX Runtime, and the commands under ``export``."""

    name = "export"

    def build(self, registry: Registry) -> None:
        """Register them."""
        registry.register("engine", "torch-segments", _torch_segments)
        registry.register("engine", "onnx", _onnx)
        registry.register("engine", "tensorrt", _tensorrt)
        registry.register("engine", "tensorrt-rtx", _tensorrt_rtx)
        registry.register("decoder", "tiny-vae-onnx", _onnx_decoder)
        registry.register("decoder", "tiny-vae-onnx-int8", partial(_onnx_decoder, precision="int8"))
        registry.register("command", "export", _mount)


def _torch_segments(request: EngineRequest) -> Engine:
    from shotstream.export.segments.engine import torch_segments

    return torch_segments(request)


def _onnx(request: EngineRequest) -> Engine:
    from shotstream.export.onnx_runtime.engine import onnx_engine

    return onnx_engine(request)


def _tensorrt(request: EngineRequest) -> Engine:
    from shotstream.export.trt.engine import tensorrt_engine

    return tensorrt_engine(request)


def _tensorrt_rtx(request: EngineRequest) -> Engine:
    from shotstream.export.trt.engine import tensorrt_rtx_engine

    return tensorrt_rtx_engine(request)


def _onnx_decoder(request: ModelRequest, precision: str | None = None) -> Decoder:
    from shotstream.export.onnx_runtime.decoder import onnx_tiny_vae

    return onnx_tiny_vae(request, precision)


def _mount(app: typer.Typer) -> None:
    from shotstream.export.cli import mount

    mount(app)


plugin = ExportPlugin()
"""Entry point ``shotstream.plugins``."""
