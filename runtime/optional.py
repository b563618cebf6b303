"""Imports of packages that only some presets need, with one clear sentence when they are not there."""

from __future__ import annotations

import importlib
from types import ModuleType

from shotstream.runtime.errors import UserError


def require(module: str, purpose: str, extra: str = "wan") -> ModuleType:
    """Import ``module`` now; ``UserError`` with the pip line if it, or something it needs, is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise UserError(
            f"{purpose} needs the package '{missing}', which is not installed; run: pip install shotstream[{extra}]"
        ) from error
