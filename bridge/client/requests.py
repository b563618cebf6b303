"""Requests on their way: sent in order, again while nobody answers, never faster than the server takes them. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from shotstream.bridge.client.receipts import Receipt
from shotstream.bridge.protocol.messages import SessionRequest

MOST = 256
"""Requests without an answer, and accepted ones whose effect is awaited: as many as a server remembers."""
RETRY_S = 1.0
RETRY_MOST_S = 8.0


@dataclass(eq=False)
class Asked:
    """A request without an answer."""

    message: SessionRequest
    receipt: Receipt
    due: float
    """When to send it (again), in seconds."""
    tries: int = 0


class Ledger:
    """All requests of one film that are not over."""

    def __init__(self) -> None:
        self._unanswered: OrderedDict[int, Asked] = OrderedDict()
        self._awaited: OrderedDict[int, Receipt] = OrderedDict()

    def __len__(self) -> int:
        return len(self._unanswered)

    def ask(self, now: float, message: SessionRequest, receipt: Receipt) -> bool:
        """Remember a request until it is answered; False where `MOST` are waiting already."""
        if len(self._unanswered) >= MOST:
            return False
        self._unanswered[receipt.id] = Asked(message, receipt, now)
        return True

    def next(self, now: float) -> Asked | None:
        """The oldest request that is to be sent now."""
        return next((asked for asked in self._unanswered.values() if asked.due <= now), None)

    def sent(self, now: float, asked: Asked) -> None:
        """It has left; without an answer it is due again after 1, 2, 4 and then every 8 seconds."""
        asked.due = now + min(RETRY_S * 2**asked.tries, RETRY_MOST_S)
        asked.tries += 1

    def postpone(self, number: int, until: float) -> None:
        """The server wants it later."""
        asked = self._unanswered.get(number)
        if asked is not None:
            asked.due = until

    def send_again(self, now: float) -> None:
        """After a reconnection: everything without an answer is due at once, in order."""
        for asked in self._unanswered.values():
            asked.due, asked.tries = now, 0

    def find(self, number: int) -> Receipt | None:
        """The receipt of a request that is not over."""
        asked = self._unanswered.get(number)
        return asked.receipt if asked else self._awaited.get(number)

    def answered(self, number: int) -> None:
        """An answer came: not sent again, but its effect may still be awaited."""
        asked = self._unanswered.pop(number, None)
        if asked is not None and not asked.receipt.done:
            self._awaited[number] = asked.receipt
            while len(self._awaited) > MOST:
                self._awaited.popitem(last=False)

    def over(self, number: int) -> None:
        """Nothing more will be heard of it."""
        self._unanswered.pop(number, None)
        self._awaited.pop(number, None)

    def all(self) -> list[Receipt]:
        """Receipts of everything that is not over, oldest first."""
        return [*self._awaited.values(), *(asked.receipt for asked in self._unanswered.values())]


class Pace:
    """Spreads requests so that no second holds more than ``per_s`` of them: bursts of a third, then two thirds a
    second. A storm of events in a game is thus late, not refused."""

    def __init__(self, per_s: float) -> None:
        self._burst = max(1.0, per_s / 3)
        self._rate = max(1.0, per_s * 2 / 3)
        self._left = self._burst
        self._filled = 0.0

    def ready(self, now: float) -> bool:
        """True where one more may leave."""
        self._left = min(self._burst, self._left + max(0.0, now - self._filled) * self._rate)
        self._filled = now
        return self._left >= 1

    def spend(self) -> None:
        self._left -= 1
