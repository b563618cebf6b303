"""The client for asyncio: the same core and the same films, with things to wait for. Every wait has a timeout.

A task polls in the background while the client is open, so that nothing has to be called in a loop. (On Windows zmq
needs asyncio's selector event loop.)
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Generator
from types import TracebackType
from typing import Any

import zmq.asyncio

from shotstream.bridge.client.client import ENDPOINT, Client, Film
from shotstream.bridge.client.film import FilmEvent
from shotstream.bridge.client.link import Curve, Link
from shotstream.bridge.client.picture import Frame
from shotstream.bridge.client.receipts import Receipt, Refused
from shotstream.bridge.client.verbs import Callback, FilmStatistics, Verbs
from shotstream.bridge.protocol import messages as m
from shotstream.runtime.errors import UserError

_NAP_S = 0.02
"""The background task wakes so often even when nothing comes: retries, pings and reconnections are due by the clock."""


class AsyncLink(Link):
    """The same socket, with a wait that lets others run."""

    _awaitable: zmq.asyncio.Socket | None = None
    """The same socket once more; made where it is waited for, since it belongs to the running loop."""

    def drop(self, linger_ms: int = 0) -> None:
        self.stop_watching()
        if self._awaitable is not None:
            self._awaitable.close(linger=linger_ms)
            self._awaitable = None
        super().drop(linger_ms)

    async def wait_a_little(self, timeout_s: float) -> None:
        if self._socket is None:
            await asyncio.sleep(timeout_s)
            return
        if self._awaitable is None:
            self._awaitable = zmq.asyncio.Socket.shadow(self._socket)
        await self._awaitable.poll(int(timeout_s * 1000))


class AsyncReceipt:
    """A `Receipt` that can be waited for. Awaiting it gives it back at once: ``await film.event(...)`` only lets the
    event leave."""

    def __init__(self, client: AsyncClient, receipt: Receipt) -> None:
        self._client, self.receipt = client, receipt

    def __await__(self) -> Generator[Any, None, AsyncReceipt]:
        yield from asyncio.sleep(0).__await__()
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.receipt, name)

    async def accepted(self, timeout_s: float = 10.0) -> Receipt:
        """Wait for the answer. Raises `Refused` for a refusal, `TimeoutError` without an answer."""
        return await self._until(lambda: self.receipt.answered, timeout_s)

    async def applied(self, timeout_s: float = 60.0) -> Receipt:
        """Wait until it shows, or made way for another (``superseded``). Raises `Refused` where it was refused or taken
        back, `TimeoutError` where nothing is heard."""
        return await self._until(lambda: self.receipt.done, timeout_s)

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> Receipt:
        await self._client.wait(condition, timeout_s)
        if self.receipt.status in ("rejected", "cancelled"):
            raise Refused(self.receipt.code, self.receipt.error)
        return self.receipt


class AsyncClient:
    """As `Client`, which takes the same arguments. Entering waits up to ``timeout_s`` for the server's welcome."""

    def __init__(
        self, endpoint: str = ENDPOINT, token: str = "", name: str = "python",
        curve: Curve | None = None, *, role: m.Role = "player",
        stats: bool = False, timeout_s: float = 10.0,
    ) -> None:  # fmt: skip
        self._link = AsyncLink(endpoint, curve)
        try:
            self._client = Client(endpoint, token, name, role=role, stats=stats, link=self._link)
        except UserError:
            self._link.close()
            raise
        self.timeout_s = timeout_s
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None

    async def __aenter__(self) -> AsyncClient:
        self._task = asyncio.create_task(self._run())
        try:
            await self.wait(lambda: self._client.state == "welcomed", self.timeout_s)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def client(self) -> Client:
        """The client underneath: state, models, limits and statistics. Its own verbs must not be mixed with ours."""
        return self._client

    async def _run(self) -> None:
        try:
            while self._client.state != "closed":
                await self._link.wait_a_little(_NAP_S)
                self._client.poll(budget_ms=5.0)
                self._wake()
                await asyncio.sleep(0)
        except Exception as error:  # a refusal, or a callback of the application: told to whoever waits
            self._failure = error
        finally:
            self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait(self, condition: Callable[[], Any], timeout_s: float) -> None:
        """Until ``condition()`` is true. Raises `TimeoutError` after ``timeout_s`` seconds, and `UserError` where the
        server will not have us."""
        ends = time.monotonic() + timeout_s
        while not condition():
            if self._failure is not None:
                raise self._failure
            if self._client.state == "closed":
                raise UserError("the client is closed")
            left = ends - time.monotonic()
            if left <= 0:
                trouble = self._client.statistics.trouble
                raise TimeoutError(f"nothing came within {timeout_s} s" + (f": {trouble}" if trouble else ""))
            changed = self._changed
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), min(left, 1.0))

    async def open(self, global_caption: str = "", *, timeout_s: float = 60.0, **arguments: Any) -> AsyncFilm:
        """As `Client.open`, but waits until the film is open. Raises `Refused`, `UserError` or `TimeoutError`."""
        film = AsyncFilm(self, self._client.open(global_caption, **arguments))
        return await self._opened(film, timeout_s)

    async def _opened(self, film: AsyncFilm, timeout_s: float) -> AsyncFilm:
        await self.wait(lambda: film.state != "opening", timeout_s)
        film._raise_if_lost()
        return film

    async def close(self, linger_ms: int = 200) -> None:
        """As `Client.close`; the task in the background ends."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._client.close(linger_ms)
        self._wake()


class AsyncFilm(Verbs[AsyncReceipt]):
    """As `Film`; the verbs return receipts that can be waited for."""

    def __init__(self, client: AsyncClient, film: Film) -> None:
        self._client, self.film, self._core = client, film, film._core

    def _ask(self, message: m.SessionRequest, on_change: Callback) -> AsyncReceipt:
        return AsyncReceipt(self._client, self.film._ask(message, on_change))

    def _raise_if_lost(self) -> None:
        if self.state == "lost":
            code, message = self._core.error or ("no_session", "the film is lost")
            raise Refused(code, message)

    async def fork(self, snap: str = "", *, name: str = "", timeout_s: float = 60.0) -> AsyncFilm:
        """As `Film.fork`, but waits until the new film is open."""
        film = AsyncFilm(self._client, self.film.fork(snap, name=name))
        return await self._client._opened(film, timeout_s)

    def frame(self, now: float | None = None) -> Frame | None:
        """The picture to show now, for applications that draw."""
        return self.film.frame(now)

    async def frames(self, timeout_s: float = 30.0) -> AsyncIterator[Frame]:
        """Every frame in order as it comes, until the film is closed. Raises `TimeoutError` where none comes for
        ``timeout_s`` seconds, `Refused` where the film is lost."""
        while True:
            frame = self._core.take(time.monotonic())
            if frame is not None:
                self._client._client._flush()
                yield frame
                continue
            self._raise_if_lost()
            if self.state == "closed":
                return
            await self._client.wait(lambda: self.queued or self.state in ("closed", "lost"), timeout_s)

    async def events(self, timeout_s: float = 30.0) -> AsyncIterator[FilmEvent]:
        """What happens, as it happens, until the film has ended. Raises `TimeoutError` after a silence."""
        while True:
            for event in self.film.events():
                yield event
            if self.state in ("closed", "lost"):
                return
            await self._client.wait(lambda: self.film._events or self.state in ("closed", "lost"), timeout_s)

    @property
    def receipts(self) -> list[Receipt]:
        return self.film.receipts

    @property
    def statistics(self) -> FilmStatistics:
        return self.film.statistics
