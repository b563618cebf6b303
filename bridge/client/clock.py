"""The difference between the server's clock and ours, from pings. Pure."""

from __future__ import annotations

from collections import deque

SAMPLES = 8


class ServerClock:
    """Keeps the last samples and believes the one with the smallest round trip: it was disturbed least."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, float]] = deque(maxlen=SAMPLES)

    def add(self, t0: int, t1: int, t2: int, t3: int) -> None:
        """A ping left at ``t0`` and its pong came at ``t3`` (our clock); the server had it from ``t1`` to ``t2`` (its
        clock). All in us. What cannot be is left out."""
        trip = (t3 - t0) - (t2 - t1)
        if t3 >= t0 and t2 >= t1 and trip >= 0:
            self._samples.append((trip, ((t1 - t0) + (t2 - t3)) / 2))

    def forget(self) -> None:
        """For a new connection: it may lead to another server."""
        self._samples.clear()

    @property
    def offset_us(self) -> float | None:
        """Add this to our clock to get the server's; None before the first sample."""
        return min(self._samples)[1] if self._samples else None

    @property
    def round_trip_ms(self) -> float | None:
        return min(self._samples)[0] / 1000 if self._samples else None
