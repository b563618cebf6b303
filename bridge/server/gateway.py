"""The bridge process: gives the hub its ROUTER socket, a clock, and the model process. Decides nothing by itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeAlias

import zmq

from shotstream.bridge.frame_store import FrameStore, SlotBook
from shotstream.bridge.model import orders
from shotstream.bridge.model.options import WorkerOptions
from shotstream.bridge.record import Recorder
from shotstream.bridge.server.hub import Hub
from shotstream.bridge.server.outbox import Outbox
from shotstream.bridge.server.supervisor import Supervisor

log = logging.getLogger(__name__)

Secure: TypeAlias = Callable[[zmq.Socket], Callable[[], None]]
"""Makes a socket demand keys; what it returns ends that."""

_TICK_MS = 20


class Gateway:
    """One server. `run` works until `stop` is called, from a signal handler or another thread."""

    def __init__(
        self, hub: Hub, worker: WorkerOptions, bind: str, *, secure: Secure | None = None,
        context: zmq.Context | None = None, recorder: Recorder | None = None,
    ) -> None:  # fmt: skip
        self.hub = hub
        self._context = context or zmq.Context()
        self._router = _router(self._context, hub.limits.part_bytes)
        self._end_security = secure(self._router) if secure is not None else lambda: None
        self._router.bind(bind)
        self.endpoint: str = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
        self.supervisor = Supervisor(self._context, worker)
        self._recorder = recorder
        self._outbox = Outbox(hub, self._router, recorder)
        self._stopping = False
        self.failure = ""
        """Why the server ended by itself; "" otherwise."""

    def stop(self) -> None:
        """End `run` soon. Safe in a signal handler."""
        self._stopping = True

    def run(self, tell: Callable[[str], None] = log.info) -> None:
        """Serve. ``tell`` is given a line for people at every change of the model's state."""
        self._tell = tell
        self.supervisor.start(time.monotonic())
        try:
            while not self._stopping:
                self._once()
            self._farewell()
        finally:
            self.supervisor.stop()
            self._router.close(500)
            self._end_security()
            if self._outbox.store is not None:
                self._outbox.store.unlink()
            if self._recorder is not None:
                self._recorder.close()

    def _once(self) -> None:
        """Wait for something to happen, and deal with all of it."""
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        if self.supervisor.socket is not None:
            poller.register(self.supervisor.socket, zmq.POLLIN)
        poller.poll(_TICK_MS)
        now = time.monotonic()
        for _ in range(256):
            try:
                peer, *parts = self._router.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            self.hub.receive(peer, parts, now)
        while (result := self.supervisor.receive()) is not None:
            self._model_says(result, time.monotonic())
        if reason := self.supervisor.died():
            self._model_died(reason, now)
        self.hub.tick(time.monotonic())
        self._pass_on()

    def _pass_on(self) -> None:
        """Everything that the hub has put out, to where it goes."""
        while self.hub.model_orders:
            order = self.hub.model_orders.popleft()
            self.supervisor.send(order)
            if self._recorder is not None:
                self._recorder.order(order)
        self._outbox.pass_on()

    # --- the model process ------------------------------------------------------------------------------------------
    def _model_says(self, result: orders.Result, now: float) -> None:
        match result:
            case orders.Loading():
                self._tell(result.step)
                self.hub.model_state("warming_up" if result.state == "warming_up" else "loading", result.step)
            case orders.Ready():
                self._model_ready(result.facts)
            case orders.Broken():
                self.failure = result.message
                self.hub.model_state("failed", result.message)
                self._stopping = True
            case _:
                if self._recorder is not None:
                    self._recorder.result(result)
                self.hub.films.model_says(result, now)

    def _model_ready(self, facts: orders.Facts) -> None:
        slots = self.hub.films.slots
        store = self._outbox.store
        if store is None:
            count = self.hub.films.slots_for(facts)
            store, slots = FrameStore.create(count, facts.slot_bytes), SlotBook(count, self.hub.films.share(facts))
            self._outbox.store = store
        self.supervisor.send(orders.UseStore(str(store.path), store.slots, store.slot_bytes))
        self.hub.model_ready(facts, slots)
        self._tell(f"ready: {facts.description}")

    def _model_died(self, reason: str, now: float) -> None:
        if self.failure:
            return
        log.warning("the model process died (%s)", reason)
        self.hub.model_died(f"the model process died ({reason}) and is started again")
        if not self.supervisor.may_restart(now):
            self.failure = f"the model process died too often, last with {reason}"
            self.hub.model_state("failed", self.failure)
            self._stopping = True
            return
        self._tell(f"the model process died ({reason}); starting it again")
        self.supervisor.start(now)

    def _farewell(self) -> None:
        """Tell everybody, and give the transport a moment."""
        self.hub.shut_down()
        deadline = time.monotonic() + 0.5
        self._pass_on()
        while not self._outbox.empty and time.monotonic() < deadline:
            time.sleep(0.005)
            self._pass_on()


def _router(context: zmq.Context, part_bytes: int) -> zmq.Socket:
    """A ROUTER that loses nothing silently, notices dead peers, and takes nothing oversized."""
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.ROUTER_HANDOVER, 1)
    router.setsockopt(zmq.MAXMSGSIZE, part_bytes)
    router.setsockopt(zmq.SNDHWM, 1024)
    router.setsockopt(zmq.RCVHWM, 64)  # messages that a connection can make us hold; clients send 30 a second
    router.setsockopt(zmq.HEARTBEAT_IVL, 1000)
    router.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
    router.setsockopt(zmq.HEARTBEAT_TTL, 3000)
    router.setsockopt(zmq.HANDSHAKE_IVL, 3000)
    router.setsockopt(zmq.TCP_KEEPALIVE, 1)
    router.setsockopt(zmq.LINGER, 500)
    return router
