"""A server on loopback that answers as many lines at once as its knee says, and has the others wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self


@contextmanager
def answering(knee: int, seconds: float) -> Iterator[int]:
    """Run a server in a thread; yields its port."""
    ports, began = list[int](), threading.Event()
    loop: asyncio.AbstractEventLoop
    ended: asyncio.Event

    async def main() -> None:
        nonlocal loop, ended
        loop, ended, places = asyncio.get_running_loop(), asyncio.Event(), asyncio.Semaphore(knee)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while await reader.readline():
                async with places:
                    await asyncio.sleep(seconds)
                writer.write(b"answer\n")
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
            ports.append(listener.sockets[0].getsockname()[1])
            began.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert began.wait(60)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(60)


class Connections:
    """Connections to it, which are used again."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Self:
        return self

    async def ask(self, number: int) -> int:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"question\n")
        assert await reader.readline() == b"answer\n"
        self._idle.append((reader, writer))
        return number

    async def __aexit__(self, *_: object) -> None:
        for _reader, writer in self._idle:
            writer.close()
            await writer.wait_closed()
