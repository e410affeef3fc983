"""Tries gRPC under policies against a server on loopback, and prints what each trial came to, as JSON.

It is a process of its own, as the threads of gRPC stay, and tests that fork need a process without.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio

import opero
from opero import CircuitOpenError, ConfigError, Policy
from opero.integrations.grpc import AioInterceptor, Interceptor

NOW: dict[str, Any] = {"retry": {"retries": 3, "min_delay": 0}}
SAFE = {"/shop.Orders/Get*"}


class Handler(grpc.GenericRpcHandler):
    """Answers as `steps` say: codes, "hang" for half a second, or the number of messages before a code."""

    def __init__(self) -> None:
        self.steps: list[Any] = []
        self.seen: Counter[str] = Counter()
        self.timeouts: list[float | None] = []
        self.lock = threading.Lock()

    def step(self, method: str, context: Any) -> Any:
        with self.lock:
            self.seen[method] += 1
            self.timeouts.append(context.time_remaining())
            return self.steps.pop(0) if self.steps else None

    def service(self, details: Any) -> grpc.RpcMethodHandler:
        method = details.method.rpartition("/")[2]

        def one(request: bytes, context: grpc.ServicerContext) -> bytes:
            step = self.step(method, context)
            if step == "hang":
                time.sleep(0.5)
            elif step is not None:
                context.abort(step, "no")
            return request + b"!"

        def several(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            step = self.step(method, context)
            for number in range(step[0] if isinstance(step, tuple) else 3):
                yield request + str(number).encode()
            if step is not None:
                context.abort(step[1], "no")

        if "Stream" in method:
            return grpc.unary_stream_rpc_method_handler(several)
        return grpc.unary_unary_rpc_method_handler(one)


UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
HANDLER = Handler()


class Sync:
    """Calls by an intercepted channel."""

    def __init__(self, target: str) -> None:
        self.target = target

    @contextlib.contextmanager
    def under(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        HANDLER.steps, HANDLER.seen, HANDLER.timeouts = [], Counter(), []
        interceptor = Interceptor(*args, **kwargs)
        with grpc.insecure_channel(self.target) as channel:
            self.channel = grpc.intercept_channel(channel, interceptor)
            yield interceptor

    def one(self, method: str, **options: Any) -> Any:
        return self.channel.unary_unary(f"/shop.Orders/{method}")(b"x", **options).decode()

    def several(self, method: str) -> list[str]:
        return [each.decode() for each in self.channel.unary_stream(f"/shop.Orders/{method}")(b"x")]


class Aio(Sync):
    """The same on grpc.aio."""

    @contextlib.contextmanager
    def under(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        HANDLER.steps, HANDLER.seen, HANDLER.timeouts = [], Counter(), []
        self.interceptor = AioInterceptor(*args, **kwargs)
        yield self.interceptor

    def run(self, use: Callable[[Any], Any]) -> Any:
        async def main() -> Any:
            async with grpc.aio.insecure_channel(self.target, interceptors=self.interceptor.interceptors) as channel:
                return await use(channel)

        return asyncio.run(main())

    def one(self, method: str, **options: Any) -> Any:
        async def use(channel: Any) -> str:
            return (await channel.unary_unary(f"/shop.Orders/{method}")(b"x", **options)).decode()

        return self.run(use)

    def several(self, method: str) -> list[str]:
        async def use(channel: Any) -> list[str]:
            return [each.decode() async for each in channel.unary_stream(f"/shop.Orders/{method}")(b"x")]

        return self.run(use)


def raised(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return f"no exception, but {call(*args, **options)}"
    except grpc.RpcError as error:
        return error


def trials(caller: Sync, closed: str) -> Iterator[tuple[str, Any]]:
    """Yield what is tried, and what it came to."""
    with caller.under(Policy(**NOW), retry_methods=SAFE) as policed:
        HANDLER.steps = [UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
        stats = policed.bound.stats
        yield "repeated", [caller.one("GetOrder"), stats.attempts, stats.retries, stats.recoveries, stats.function]
        HANDLER.steps = [UNAVAILABLE]
        yield "once", [raised(caller.one, "Place").code().name, HANDLER.seen["Place"]]
        HANDLER.steps = [grpc.StatusCode.NOT_FOUND]
        yield "permanent", [raised(caller.one, "GetOrder").code().name, stats.attempts]
        HANDLER.steps = [UNAVAILABLE] * 4
        error = raised(caller.one, "GetOrder")
        yield "exhausted", [error.code().name, any("all 4 attempts failed" in each for each in error.__notes__)]
        yield "stream", caller.several("GetStream")
        HANDLER.steps = [(0, UNAVAILABLE), (0, UNAVAILABLE)]
        yield "stream repeated", [caller.several("GetStream"), policed.bound_stream.stats.retries]
        HANDLER.steps, HANDLER.seen = [(2, UNAVAILABLE)], Counter()
        yield "stream begun", [raised(caller.several, "GetStream").code().name, HANDLER.seen["GetStream"]]
        HANDLER.steps = [(0, UNAVAILABLE)]
        yield "stream once", raised(caller.several, "TailStream").code().name
    with caller.under(timeout=5):
        caller.one("GetOrder")
        caller.one("GetOrder", timeout=2)
        with opero.deadline(1):
            caller.one("GetOrder")
            caller.several("GetStream")
        caller.several("GetStream")
        yield "deadline", [None if each is None or each > 1e6 else each for each in HANDLER.timeouts]
    with caller.under(timeout={"attempt": 0.1}, retry=0):
        HANDLER.steps = ["hang"]
        yield "timed out", raised(caller.one, "GetOrder").code().name
    with caller.under(circuit_breaker={"consecutive_failures": 1}):
        HANDLER.steps = [UNAVAILABLE]
        raised(caller.one, "GetOrder")
        error = raised(caller.one, "GetOrder")
        again = pickle.loads(pickle.dumps(error))
        kinds = [isinstance(error, CircuitOpenError), isinstance(again, CircuitOpenError)]
        yield "refused", [*kinds, error.code().name, "circuit is open" in error.details(), HANDLER.seen["GetOrder"]]
    with caller.under(hedge={"after": 0.05, "budget": 1}, retry_methods=SAFE) as policed:
        caller.one("GetOrder")
        HANDLER.steps = ["hang"]
        started = time.monotonic()
        caller.one("GetOrder")
        seconds = time.monotonic() - started
        HANDLER.steps = ["hang"]
        caller.one("Place")
        yield "hedged", [policed.bound.stats.hedges, policed.bound.stats.hedge_wins, seconds < 0.4]
        yield "stream under a hedge", caller.several("GetStream")
    unreachable = type(caller)(closed)
    with unreachable.under(retry={"retries": 2, "min_delay": 0}) as policed:
        yield "unsent", [raised(unreachable.one, "Place").code().name, policed.bound.stats.attempts]


def refusals() -> Iterator[str]:
    """Yield what is said of arguments that do not fit."""
    for options in ({"cache": True}, {"fallback": {"default": 1}}, {"retry_methods": "Get"}):
        try:
            Interceptor(**options)
        except ConfigError as error:
            yield str(error)


def of_sync(caller: Sync) -> Iterator[tuple[str, Any]]:
    with caller.under(Policy(**NOW)):
        method = caller.channel.unary_unary("/shop.Orders/GetOrder")
        try:
            method.future(b"x").result()
        except ConfigError as error:
            yield "future", str(error)
        yield "with call", [each if isinstance(each, str) else str(each.code()) for each in method.with_call(b"x")[1:]]
        stream = caller.channel.unary_stream("/shop.Orders/GetStream")(b"x")
        next(stream)
        stream.cancel()
        yield "cancelled", raised(list, stream).code().name
        stream = caller.channel.unary_stream("/shop.Orders/GetStream")(b"x")
        list(stream)
        yield "metadata", [stream.code().name, list(stream.trailing_metadata())]


def main() -> None:
    found: dict[str, Any] = {}
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool, handlers=[HANDLER])
        target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        idle = grpc.server(pool)
        closed = f"127.0.0.1:{idle.add_insecure_port('127.0.0.1:0')}"
        idle.stop(None)
        for caller in (Sync(target), Aio(target)):
            found[type(caller).__name__] = dict(trials(caller, closed))
        found["refusals"] = [*refusals()]
        found["of sync"] = dict(of_sync(Sync(target)))
        server.stop(None).wait()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
