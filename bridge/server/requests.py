"""Which requests were made and how they were answered, so that a repeated one is answered again and done once. Pure."""

from __future__ import annotations

from collections import OrderedDict

from shotstream.bridge.protocol.messages import ServerMessage


class RequestMemory:
    """Answers of the last ``limit`` request ids of a session."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._answers: OrderedDict[int, list[ServerMessage]] = OrderedDict()
        self._forgotten = 0
        """The largest id whose answers are no longer known."""

    def knows(self, request: int) -> bool:
        """True if this id was seen before, its answers remembered or not."""
        return request in self._answers or request <= self._forgotten

    def begin(self, request: int) -> None:
        """A new id; the oldest is forgotten."""
        self._answers[request] = []
        while len(self._answers) > self.limit:
            oldest, _ = self._answers.popitem(last=False)
            self._forgotten = max(self._forgotten, oldest)

    def answer(self, request: int, message: ServerMessage) -> None:
        """Remember one answer."""
        if request in self._answers:
            self._answers[request].append(message)

    def answers(self, request: int) -> list[ServerMessage]:
        """Everything that was answered; empty for forgotten ids."""
        return list(self._answers.get(request, ()))


class Rate:
    """At most ``per_second`` requests a second on average, with bursts of as many."""

    def __init__(self, per_second: int, now: float) -> None:
        self.per_second = per_second
        self._left, self._at = float(per_second), now

    def allows(self, now: float) -> bool:
        """Count one request; False if it is one too many. Clocks that jump back do no harm."""
        self._left = min(float(self.per_second), self._left + max(0.0, now - self._at) * self.per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
