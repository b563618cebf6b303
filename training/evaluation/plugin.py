"""What the evaluation puts into slots: cut finders and feature extractors. Imported when asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shotstream.runtime.plugins import Registry


def register(registry: Registry) -> None:
    """Fill the slots `cuts` and `features`."""
    registry.register("cuts", "oracle", _later("cuts", "oracle_cuts"))
    registry.register("cuts", "pyscenedetect", _later("cuts", "pyscenedetect_cuts"))
    registry.register("cuts", "transnetv2", _later("cuts", "transnet_cuts"))
    registry.register("features", "dino", _later("features", "DinoFeatures"))
    registry.register("features", "clip", _later("features", "ClipFeatures"))
    registry.register("features", "oracle", _later("features", "oracle_subjects"))
    registry.register("features", "oracle-scene", _later("features", "oracle_scenes"))


def _later(module: str, name: str) -> Callable[..., Any]:
    def make(*arguments: Any) -> Any:
        return getattr(import_module(f"shotstream.training.evaluation.{module}"), name)(*arguments)

    return make
