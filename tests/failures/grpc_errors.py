"""A program that makes gRPC fail with each code, and prints the failures.

It is a process of its own, as the threads of gRPC stay, and tests that fork need a process without.
"""

from __future__ import annotations

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio

from opero.failures import failure_of


class Handler(grpc.GenericRpcHandler):
    """Answers each call with the code that its method is named after."""

    def service(self, details: Any) -> grpc.RpcMethodHandler:
        code = grpc.StatusCode[details.method.rpartition("/")[2]]

        def answer(_: bytes, context: grpc.ServicerContext) -> None:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", "2500"),))
            context.abort(code, "no")

        return grpc.unary_unary_rpc_method_handler(answer)


def failures() -> dict[str, Any]:
    found: dict[str, Any] = {}

    def add(name: str, error: Exception) -> None:
        failure = failure_of(error)
        found[name] = [failure.kind, failure.status, failure.reason, failure.retry_in]

    async def call(target: str, name: str) -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            await channel.unary_unary(f"/service/{name}")(b"", timeout=10)

    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, handlers=[Handler()])
        target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        with grpc.insecure_channel(target) as channel:
            for code in grpc.StatusCode:
                if code is not grpc.StatusCode.OK:
                    try:
                        channel.unary_unary(f"/service/{code.name}")(b"", timeout=10)
                    except grpc.RpcError as error:
                        add(code.name, error)
        try:
            asyncio.run(call(target, "NOT_FOUND"))
        except grpc.RpcError as error:
            add("async", error)
        server.stop(None).wait()
    with grpc.insecure_channel(target) as channel:
        try:
            channel.unary_unary("/service/OK")(b"", timeout=10)
        except grpc.RpcError as error:
            add("refused", error)
    return found


if __name__ == "__main__":
    json.dump(failures(), sys.stdout)
