"""httpx and httpx2 under a policy: streams, uploads, connections, HTTP/2, and what only their transports have."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
import time
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
import trio

from integrations.clients.conftest import HTTPX2, NOW
from integrations.clients.service import Handler, Seen, Service
from opero import CallTimeoutError, ConfigError, Policy
from opero.integrations.httpx import AsyncTransport, Transport

BODY = b"x" * 100_000


def busy(transport: Any) -> int:
    """The number of connections in the pool of a transport that are in use."""
    return sum(not each.is_idle() and not each.is_closed() for each in transport.transport._pool.connections)


@pytest.mark.parametrize("name", HTTPX2)
def test_httpx2_is_served_as_httpx_is(name: str, service: Service) -> None:
    client = HTTPX2[name]()
    client.use(**NOW, circuit_breaker=5)
    service.answers = [503, "drop", 200, *[503] * 5]
    assert client.request("GET", service.url).status == 200
    assert client.request("GET", service.url).status == 503
    for _ in range(2):
        service.answers = ["drop"] * 4
        with pytest.raises(client.error):
            client.request("GET", service.url)
    client.close()


# Responses


def stream(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for _ in range(3):
        handler.wfile.write(b"5\r\nhello\r\n")
        handler.wfile.flush()
    handler.service.released.wait(60)
    handler.wfile.write(b"0\r\n\r\n")


def test_a_streamed_response_is_read_as_it_comes(service: Service) -> None:
    transport = Transport(**NOW, attempt_timeout=30)
    service.answers = [503, stream]
    with httpx.Client(transport=transport) as client:
        with client.stream("GET", service.url) as response:
            chunks = response.iter_raw()
            assert [next(chunks) for _ in range(3)] == [b"hello"] * 3  # the rest has not been sent
            assert busy(transport) == 1
        assert busy(transport) == 0


async def read_a_stream(service: Service) -> None:
    transport = AsyncTransport(**NOW, attempt_timeout=30)
    service.answers = [503, stream]
    async with httpx.AsyncClient(transport=transport) as client:
        async with client.stream("GET", service.url) as response:
            chunks = response.aiter_raw()
            assert [await anext(chunks) for _ in range(3)] == [b"hello"] * 3  # the rest has not been sent
            assert busy(transport) == 1
            service.released.set()
            assert [each async for each in chunks] == []
        assert busy(transport) == 0


def test_a_streamed_response_of_an_async_client_is_read_as_it_comes(service: Service) -> None:
    asyncio.run(read_a_stream(service))


def test_async_clients_run_under_trio(service: Service) -> None:
    trio.run(read_a_stream, service)


def test_a_response_that_another_takes_the_place_of_is_closed(service: Service) -> None:
    transport = Transport(retries=2, min_delay=0, retry_if_result=lambda response: response.status_code == 200)
    closed = []

    class Inner(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            response = super().handle_request(request)
            closed.append(response)
            return response

    transport = Transport(policy=transport.bound.policy, transport=Inner())
    service.answers = [503, 200, 503]
    with httpx.Client(transport=transport) as client:
        request = client.build_request("GET", service.url)
        response = client.send(request, stream=True)
        assert [each.is_closed for each in closed] == [True, True, False]
        assert response.read() == b"503"


def test_a_failed_response_that_a_fallback_answers_for_is_closed(service: Service) -> None:
    policy = Policy(fallback={"function": lambda request: httpx.Response(200, content=b"old")})
    transport = Transport(policy)
    service.answers = [503]
    with httpx.Client(transport=transport) as client:
        assert client.get(service.url).content == b"old"
        assert busy(transport) == 0


# Uploads


@pytest.mark.parametrize("kind", ["bytes", "json", "form", "list", "multipart"])
def test_a_body_that_can_be_sent_again_is(service: Service, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(BODY)
    with path.open("rb") as file, httpx.Client(transport=Transport(**NOW)) as client:
        given: dict[str, Any] = {
            "bytes": {"content": BODY},
            "json": {"json": {"a": 1}},
            "form": {"data": {"a": "1"}},
            "list": {"content": [BODY, BODY]},
            "multipart": {"files": {"file": file, "other": io.BytesIO(b"other")}},
        }[kind]
        service.answers = [503, "drop", 200]
        assert client.put(service.url, **given).status_code == 200
    first, second, third = service.bodies
    assert first == second == third != b""
    assert kind != "multipart" or BODY in first


def test_a_file_is_sent_once(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(BODY)
    with path.open("rb") as file, httpx.Client(transport=Transport(**NOW)) as client:
        service.answers = [503]
        assert client.put(service.url, content=file).status_code == 503
    assert service.bodies == [BODY]


def test_a_file_is_not_read_by_two_attempts_at_once(service: Service) -> None:
    file = io.BytesIO(BODY)
    transport = Transport(**NOW, attempt_timeout=0.2)
    service.answers = ["hang"]
    with httpx.Client(transport=transport) as client, pytest.raises(CallTimeoutError):
        client.put(service.url, files={"file": file})
    assert len(service.seen) == 1


# Connections


def test_attempts_of_a_cancelled_request_leave_no_connection_in_use(service: Service) -> None:
    async def main() -> None:
        transport = AsyncTransport(**NOW)
        async with httpx.AsyncClient(transport=transport) as client:
            service.answers = ["hang"]
            task = asyncio.create_task(client.get(service.url))
            while not service.seen:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert busy(transport) == 0
            assert transport.bound.stats.attempts == 1
            assert (await client.get(service.url)).status_code == 200

    asyncio.run(main())


def test_attempts_that_time_out_leave_no_connection_in_use(service: Service) -> None:
    transport = AsyncTransport(retries=2, min_delay=0, attempt_timeout=0.1)

    async def main() -> None:
        service.answers = ["hang"] * 3
        async with httpx.AsyncClient(transport=transport) as client:
            with pytest.raises(httpx.TimeoutException):
                await client.get(service.url)
            assert busy(transport) == 0

    asyncio.run(main())


def test_a_response_that_comes_after_its_timeout_is_closed(service: Service) -> None:
    """Outside of the main thread an attempt goes on after its timeout, and nobody receives what it returns."""
    transport = Transport(retries=0, attempt_timeout=0.1)
    late = threading.Event()

    def answer(handler: Handler) -> None:
        late.wait(60)
        handler.answer(200, b"late")

    service.answers = [answer]
    raised: list[Exception] = []

    def ask() -> None:
        try:
            client.get(service.url)
        except Exception as error:
            raised.append(error)

    with httpx.Client(transport=transport) as client:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert isinstance(raised[0], httpx.TimeoutException)
        assert busy(transport) == 1
        late.set()
        until = time.monotonic() + 60
        while busy(transport) and time.monotonic() < until:
            time.sleep(0.01)
        assert busy(transport) == 0


def test_connections_are_reused(service: Service) -> None:
    with httpx.Client(transport=Transport(**NOW)) as client:
        for _ in range(3):
            client.get(service.url)
    assert len(service.sockets) == 1


def test_a_client_opens_and_closes_the_transport_that_it_is_given(service: Service) -> None:
    class Inner(httpx.HTTPTransport):
        def __enter__(self) -> Any:
            calls.append("enter")
            return super().__enter__()

        def __exit__(self, *args: Any) -> None:
            calls.append("exit")
            super().__exit__(*args)

        def close(self) -> None:
            calls.append("close")
            super().close()

    calls: list[str] = []
    with httpx.Client(transport=Transport(transport=Inner())) as client:
        client.get(service.url)
    httpx.Client(transport=Transport(transport=Inner())).close()
    assert calls == ["enter", "exit", "close"]


def test_transports_may_be_mounted_under_a_client(service: Service) -> None:
    transport = Transport(**NOW)
    service.answers = [503, 200]
    with httpx.Client(mounts={"http://127.0.0.1": transport}) as client:
        assert client.get(service.url).status_code == 200
    assert transport.bound.stats.retries == 1


def test_threads_share_a_transport(service: Service) -> None:
    transport = Transport(**NOW)
    with httpx.Client(transport=transport) as client:
        threads = [threading.Thread(target=client.get, args=(service.url,)) for _ in range(20)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert (transport.bound.stats.calls, transport.bound.stats.failures) == (20, 0)


# HTTP/2


def speak_http2(handler: Handler) -> None:
    """Serve a connection over HTTP/2, whose client has sent the preface: each stream is answered by the script."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    connection.initiate_connection()
    handler.connection.sendall(connection.data_to_send())
    data = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    service, bodies = handler.service, {}
    while data:
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                bodies[event.stream_id] = (dict(event.headers or ()), b"")
            elif isinstance(event, h2.events.DataReceived):
                headers, body = bodies[event.stream_id]
                bodies[event.stream_id] = (headers, body + event.data)
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                headers, body = bodies.pop(event.stream_id)
                plain = {name.decode(): value.decode() for name, value in headers.items()}
                service.seen.append(Seen(plain[":method"], plain[":path"], plain, body))
                status = str(service.next()).encode()
                connection.send_headers(event.stream_id, [(b":status", status)])
                connection.send_data(event.stream_id, status, end_stream=True)
        handler.connection.sendall(connection.data_to_send())
        data = handler.connection.recv(65536)


def test_http2_is_spoken_as_the_inner_transport_does(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(handler: Handler) -> None:
        handler.connection.recv(24, socket.MSG_WAITALL)  # the preface; rfile would read beyond it
        speak_http2(handler)

    monkeypatch.setattr(Handler, "handle", handle)

    async def main() -> None:
        transport = AsyncTransport(**NOW, transport=httpx.AsyncHTTPTransport(http1=False, http2=True))
        service.answers = [503, 200]
        async with httpx.AsyncClient(transport=transport) as client:
            response = await client.put(service.url, content=BODY)
            assert (response.http_version, response.status_code) == ("HTTP/2", 200)
            assert service.bodies == [BODY] * 2
            responses = await asyncio.gather(*(client.get(service.url) for _ in range(10)))
            assert {each.status_code for each in responses} == {200}
        assert len(service.sockets) == 1

    asyncio.run(main())


# Invalid arguments


@pytest.mark.parametrize(
    ("make", "cure"),
    [
        (lambda: Transport(transport=httpx.AsyncHTTPTransport()), "so use AsyncTransport"),
        (lambda: AsyncTransport(transport=httpx.HTTPTransport()), "so use Transport"),
        (lambda: Transport(transport=httpx.Client()), "not a value of type Client"),
        (lambda: Transport(transport=Transport()), "use a single Transport"),
        (lambda: Transport(transport=httpx.HTTPTransport(retries=2)), "create it without retries="),
    ],
)
def test_a_transport_that_does_not_fit_is_an_error_at_construction(make: Any, cure: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert cure in str(caught.value)
