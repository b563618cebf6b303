"""Which engine a runtime gets: the one asked for, or, only where the user said so, another one in its place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from shotstream.runtime.engine import Engine
from shotstream.runtime.errors import UserError
from shotstream.runtime.plugins import EngineRequest, Registry

log = logging.getLogger(__name__)

Make = Callable[[EngineRequest], Engine]


@dataclass(frozen=True)
class EngineChoice:
    """An engine that was made. instead_of: the name of the one that was asked for and failed, if so; and why."""

    engine: Engine
    name: str
    instead_of: str = ""
    reason: str = ""

    @property
    def sentence(self) -> str:
        """What runs, for records: the name alone, or with what it stands in for."""
        return f"{self.name} (instead of {self.instead_of}: {self.reason})" if self.instead_of else self.name


class EngineMaker:
    """Factories of an engine and of its fall-back, looked up before anything is loaded."""

    def __init__(self, registry: Registry, name: str, fallback: str | None) -> None:
        """Raises UserError for names that are not there."""
        if fallback == name:
            raise UserError(f"the engine '{name}' cannot stand in for itself; name another one as the fall-back")
        self._name, self._make = name, registry.factory("engine", name)
        self._fallback = fallback
        self._make_fallback: Make | None = None if fallback is None else registry.factory("engine", fallback)

    def make(self, request: EngineRequest) -> EngineChoice:
        """The engine; where it raises UserError, the fall-back without options, with a warning, if there is one."""
        try:
            return EngineChoice(self._make(request), self._name)
        except UserError as error:
            if self._make_fallback is None or self._fallback is None:
                raise
            log.warning("%s; the engine '%s' runs in place of '%s'", error, self._fallback, self._name)
            engine = self._make_fallback(replace(request, options={}))
            return EngineChoice(engine, self._fallback, self._name, str(error))
