"""What goes out to clients: messages to the transport without waiting, and the slots of frames on their way.

ROUTER cannot throw a connection out, so what it has taken for a client that does not read stays with it until the
connection ends. That is why every connection has its own row of flights, and why strangers are not waited for.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from dataclasses import dataclass

import zmq

from shotstream.bridge.frame_store import FrameStore
from shotstream.bridge.protocol.envelope import pack
from shotstream.bridge.protocol.limits import MAGIC
from shotstream.bridge.record import Recorder
from shotstream.bridge.server.hub import Hub, Outgoing

_STALLED = 4096
"""Messages that wait for one slow connection before it counts as lost."""


@dataclass
class Flight:
    """A frame on its way out: its slot is held until the transport has let go of it."""

    tracker: zmq.MessageTracker
    slot: int


class Outbox:
    """Empties the hub's queue into a ROUTER. ``store`` is where frames lie, None before the model is ready."""

    def __init__(self, hub: Hub, router: zmq.Socket[bytes], recorder: Recorder | None = None) -> None:
        self.store: FrameStore | None = None
        self._hub, self._router, self._recorder = hub, router, recorder
        self._flights: dict[bytes, deque[Flight]] = {}
        self._stalled: dict[bytes, deque[Outgoing]] = {}

    @property
    def empty(self) -> bool:
        """True if everything has left the process."""
        return not self._stalled and not self._flights

    def pass_on(self) -> None:
        """Hand over whatever the transport takes now, and free the slots of what has left."""
        outgoing = self._hub.outgoing
        while outgoing:
            out = outgoing.popleft()
            waiting = self._stalled.get(out.peer)
            if waiting is not None:
                waiting.append(out)
            elif not self._send(out):
                if out.peer in self._hub.peers:
                    self._stalled[out.peer] = deque([out])
                else:
                    self._drop(out)  # a stranger that does not read its errors
        for peer, waiting in tuple(self._stalled.items()):
            while waiting and self._send(waiting[0]):
                waiting.popleft()
            if len(waiting) > _STALLED or peer not in self._hub.peers:
                while waiting:
                    self._drop(waiting.popleft())
                self._hub.lost(peer, time.monotonic())
            if not waiting:
                del self._stalled[peer]
        for peer, flights in tuple(self._flights.items()):
            while flights and flights[0].tracker.done:
                self._hub.films.slots.drop(flights.popleft().slot)
            if not flights:
                del self._flights[peer]

    def _send(self, out: Outgoing) -> bool:
        """Hand a message to the transport; False if it must wait. One for a connection that is gone is dropped."""
        parts: list[bytes | memoryview] = [out.peer, MAGIC, pack(out.message)]
        payload = out.payload
        try:
            if payload is None:
                self._router.send_multipart(parts, zmq.DONTWAIT)
            else:
                assert self.store is not None
                parts.append(self.store.view(payload.slot, payload.start, payload.length).data)
                tracker = self._router.send_multipart(parts, zmq.DONTWAIT, copy=False, track=True)
                assert tracker is not None
                self._flights.setdefault(out.peer, deque()).append(Flight(tracker, payload.slot))
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            self._drop(out)
            self._hub.lost(out.peer, time.monotonic())
            return True
        if self._recorder is not None:
            self._recorder.sent(out)
        return True

    def _drop(self, out: Outgoing) -> None:
        if out.payload is not None:
            self._hub.films.slots.drop(out.payload.slot)
