"""The asyncio client over real sockets: receipts, frames, a broken connection, timeouts."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from shotstream.bridge.client import AsyncClient
from shotstream.bridge.protocol import messages as m
from shotstream.runtime.errors import UserError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(main) -> None:
    asyncio.run(asyncio.wait_for(main(), 15))


def test_asyncio_waits_for_receipts_and_iterates_over_frames(server) -> None:
    async def main() -> None:
        async with AsyncClient(server.endpoint) as client:
            film = await client.open("a story")
            receipt = await film.prompt("a cat")
            assert (await receipt.applied(5)).caption == "shot 0"
            seen = []
            async for frame in film.frames(timeout_s=5):
                seen.append(frame.seq)
                if len(seen) == 60:
                    break
            assert seen == list(range(60))
            with pytest.raises(UserError, match="no words for it"):
                await (await film.prompt("refuse me")).applied(5)
            twin = await film.fork()
            assert twin.info.session != film.info.session
            await (await film.close()).applied(5)
            async for _ in film.frames(timeout_s=5):
                pass
            assert film.state == "closed"

    run(main)


def test_asyncio_takes_a_film_up_again_after_a_broken_connection(serve) -> None:
    port = free_port()

    async def main() -> None:
        with serve(port=port) as first:
            async with AsyncClient(first.endpoint) as client:
                film = await client.open("a story")
                film.prompt("a cat")
                seen: list[int] = []
                second = None
                try:
                    async for frame in film.frames(timeout_s=8):
                        seen.append(frame.seq)
                        if len(seen) == 30:
                            first.stop()
                            second = serve(port=port)
                            again = second.__enter__()
                            again.script.sessions = first.script.sessions
                            again.script.disconnect()
                        if len(seen) == 90:
                            break
                finally:
                    if second is not None:
                        second.__exit__(None, None, None)
                assert seen == list(range(90))

    run(main)


def test_asyncio_gives_up_in_time() -> None:
    async def main() -> None:
        began = time.perf_counter()
        with pytest.raises(TimeoutError):
            async with AsyncClient(f"tcp://127.0.0.1:{free_port()}", timeout_s=0.3):
                pass
        assert time.perf_counter() - began < 2

    run(main)


def test_asyncio_raises_what_the_server_refuses(server) -> None:
    server.script.refusal = m.Error(code="unauthorized", message="the token is wrong", fatal=True)

    async def main() -> None:
        with pytest.raises(UserError, match="token is wrong"):
            async with AsyncClient(server.endpoint):
                pass

    run(main)


def test_asyncio_keeps_its_timeouts_when_nothing_is_said(server) -> None:
    async def main() -> None:
        async with AsyncClient(server.endpoint) as client:
            film = await client.open("a story")
            server.script.mute = True
            receipt = await film.event("Door")
            with pytest.raises(TimeoutError):
                await receipt.accepted(0.2)
            with pytest.raises(TimeoutError):
                async for _ in film.frames(timeout_s=0.2):
                    pass
            with pytest.raises(TimeoutError):
                await client.open("another", timeout_s=0.2)

    run(main)
