"""What a product says, kept instead of printed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

_KEPT, _SHOWN = 100, 3


def logger_of(trt: Any) -> Any:
    """A logger of a product's module; its warnings and errors are in `said`, the newest last."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: deque[str] = deque(maxlen=_KEPT)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.WARNING):
                self.said.append(message.strip())

    return Logger()


def joined(messages: Sequence[str]) -> str:
    """The last of them, as part of a sentence."""
    return "; ".join(list(messages)[-_SHOWN:]) or "it does not say why"
