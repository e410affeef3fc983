"""aiohttp under a policy: uploads, streams, connections, and other middlewares."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from integrations.clients.conftest import NOW
from integrations.clients.service import Handler, Service
from opero.integrations.aiohttp import Middleware

BODY = b"x" * 100_000


def run(coroutine: Any) -> None:
    asyncio.run(coroutine)


def session_of(middleware: Middleware, **options: Any) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(middlewares=[middleware], **options)


def in_use(session: aiohttp.ClientSession) -> int:
    assert session.connector is not None
    return len(session.connector._acquired)


@pytest.mark.parametrize("kind", ["bytes", "file", "form"])
def test_a_body_that_can_be_sent_again_is(service: Service, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(BODY)

    async def main() -> None:
        with path.open("rb") as file:
            form = aiohttp.FormData()
            form.add_field("file", io.BytesIO(BODY), filename="file")
            data: Any = {"bytes": BODY, "file": file, "form": form}[kind]
            service.answers = [503, "drop", 200]
            async with session_of(Middleware(**NOW)) as session, session.put(service.url, data=data) as response:
                assert response.status == 200

    run(main())
    first, second, third = service.bodies
    assert first == second == third
    assert BODY in first


def test_a_body_that_is_still_being_sent_when_the_answer_comes_is_sent_again_whole(service: Service) -> None:
    size = 20_000_000

    def refuse(handler: Handler) -> None:
        handler.answer(503)
        handler.close_connection = True

    reads = Handler.read_body
    bodies: list[int] = []

    def read(handler: Handler) -> bytes:
        if not bodies:
            bodies.append(0)
            return b""  # the answer comes first
        body = reads(handler)
        bodies.append(len(body))
        return body

    async def main() -> None:
        service.answers = [refuse, 200]
        data = io.BytesIO(b"x" * size)
        async with (
            session_of(Middleware(**NOW)) as session,
            session.put(service.url, data=data) as response,
        ):
            assert response.status == 200

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handler, "read_body", read)
        run(main())
    assert bodies == [0, size]


def test_a_response_is_streamed_and_leaves_no_connection_in_use(service: Service) -> None:
    async def main() -> None:
        service.answers = [503, lambda handler: handler.answer(200, BODY)]
        async with session_of(Middleware(**NOW)) as session:
            async with session.get(service.url) as response:
                chunks = [each async for each in response.content.iter_chunked(50_000)]  # as they arrive
                assert (len(chunks) > 1, b"".join(chunks)) == (True, BODY)
            assert in_use(session) == 0

    run(main())


def test_a_cancelled_request_leaves_no_connection_in_use(service: Service) -> None:
    async def main() -> None:
        async with session_of(Middleware(**NOW)) as session:
            service.answers = [503, "hang"]
            task = asyncio.create_task(session.get(service.url))
            while len(service.seen) < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert in_use(session) == 0

    run(main())


def test_aiohttp_sends_nothing_again_by_itself_where_the_policy_has_retries(service: Service) -> None:
    async def main() -> None:
        for options, sent in (({**NOW, "retries": 1, "reraise": True}, 2), ({"bulkhead": 1, "retry": None}, 2)):
            service.seen.clear()
            service.answers = ["drop"] * 4
            async with session_of(Middleware(**options)) as session:
                with pytest.raises(aiohttp.ClientConnectionError):
                    await session.get(service.url)
            assert len(service.seen) == sent  # without retries it is aiohttp that has sent it again

    run(main())


def test_the_session_s_own_checks_come_after_the_policy(service: Service) -> None:
    async def main() -> None:
        service.answers = [503, 503]
        async with session_of(Middleware(**{**NOW, "retries": 1}), raise_for_status=True) as session:
            with pytest.raises(aiohttp.ClientResponseError) as caught:
                await session.get(service.url)
        assert caught.value.status == 503

    run(main())


@asynccontextmanager
async def echo() -> AsyncIterator[str]:
    async def handle(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()


def test_websockets_open_under_the_policy() -> None:
    async def main() -> None:
        middleware = Middleware(**NOW)
        async with echo() as url, session_of(middleware) as session, session.ws_connect(url) as socket:
            await socket.send_str("hello")
            assert await socket.receive_str() == "hello"
        assert middleware.bound.stats.calls == 1

    run(main())
