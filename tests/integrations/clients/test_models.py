"""Clients of model APIs under a policy, against a service that speaks their formats."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from integrations.clients.service import Handler, Service
from opero import CallTimeoutError, CircuitOpenError, ConfigError, Policy, Registry
from opero.integrations.models import client

RETRIES = Policy(retry={"retries": 3, "min_delay": 0})

TOOLS = {
    "openai": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}],
    "anthropic": [{"name": "add", "input_schema": {"type": "object", "properties": {}}}],
}

ANSWERS: dict[str, Any] = {
    "openai": {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "message": {
                    "role": "assistant",
                    "content": "hello world",
                    "tool_calls": [
                        {"id": "t1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
                    ],
                },
            }
        ],
    },
    "anthropic": {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "stop_reason": "tool_use",
        "content": [
            {"type": "text", "text": "hello world"},
            {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
        ],
        "usage": {"input_tokens": 1, "output_tokens": 1},
    },
}


def chunk(**delta: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


EVENTS: dict[str, list[tuple[str, Any]]] = {
    "openai": [("", chunk(role="assistant", content="hello")), ("", chunk(content=" world")), ("", "[DONE]")],
    "anthropic": [
        ("message_start", {"message": {**ANSWERS["anthropic"], "content": []}}),
        ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "hello"}}),
        ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": " world"}}),
        ("content_block_stop", {"index": 0}),
        ("message_stop", {}),
    ],
}


class Api:
    """One API, and how its client is called."""

    def __init__(self, name: str, service: Service, *, is_async: bool) -> None:
        self.name = name
        self.service = service
        self.is_async = is_async
        package: Any = {"openai": openai, "anthropic": anthropic}[name]
        self.package = package
        plain = {"openai": "OpenAI", "anthropic": "Anthropic"}[name]
        self.kind: Any = getattr(package, f"Async{plain}" if is_async else plain)

    def make(self, policy: Any = RETRIES, **options: Any) -> Any:
        return client(self.kind, policy, api_key="k", base_url=self.service.url, **options)

    def ask(self, made: Any, **options: Any) -> Any:
        """Ask for a message; its text."""
        options = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **options}
        create = made.chat.completions.create if self.name == "openai" else made.messages.create
        if self.name == "anthropic":
            options.setdefault("max_tokens", 10)
        if not self.is_async:
            with made:
                return self.texts(create(**options)) if options.get("stream") else create(**options)

        async def main() -> Any:
            async with made:
                answer = await create(**options)
                return [each async for each in self.texts_async(answer)] if options.get("stream") else answer

        return asyncio.run(main())

    def text_of(self, event: Any) -> str:
        if self.name == "openai":
            return str(event.choices[0].delta.content or "")
        return str(event.delta.text) if event.type == "content_block_delta" else ""

    def texts(self, stream: Iterator[Any]) -> list[str]:
        return [text for each in stream if (text := self.text_of(each))]

    async def texts_async(self, stream: AsyncIterator[Any]) -> AsyncIterator[str]:
        async for each in stream:
            if text := self.text_of(each):
                yield text

    def answer(self, handler: Handler) -> None:
        handler.answer(200, json.dumps(ANSWERS[self.name]).encode(), Content_Type="application/json")

    def stream(self, handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        for name, data in EVENTS[self.name]:
            if name:
                handler.wfile.write(f"event: {name}\n".encode())
            text = data if isinstance(data, str) else json.dumps({"type": name, **data} if name else data)
            handler.wfile.write(f"data: {text}\n\n".encode())
            handler.wfile.flush()
        handler.close_connection = True


@pytest.fixture(params=["openai", "anthropic-async"])
def api(request: pytest.FixtureRequest, service: Service) -> Api:
    name, _, kind = request.param.partition("-")
    return Api(name, service, is_async=bool(kind))


EACH = pytest.mark.parametrize("api", ["openai", "openai-async", "anthropic", "anthropic-async"], indirect=True)


@EACH
def test_a_message_is_asked_for_again_until_it_comes_with_its_tool_calls(api: Api) -> None:
    api.service.answers = [503, "drop", 529, api.answer]
    answer = api.ask(api.make(), tools=TOOLS[api.name])
    if api.name == "openai":
        call = answer.choices[0].message.tool_calls[0].function
        found = (answer.choices[0].message.content, call.name, json.loads(call.arguments))
    else:
        found = (answer.content[0].text, answer.content[1].name, answer.content[1].input)
    assert found == ("hello world", "add", {"a": 1})
    assert [json.loads(each)["tools"] for each in api.service.bodies] == [TOOLS[api.name]] * 4
    assert {each.method for each in api.service.seen} == {"POST"}


@EACH
def test_a_stream_is_passed_on_as_it_comes(api: Api) -> None:
    api.service.answers = [503, api.stream]
    assert api.ask(api.make(), stream=True) == ["hello", " world"]


def test_their_own_retries_are_off(api: Api) -> None:
    api.service.answers = [500] * 10
    with pytest.raises(api.package.InternalServerError) as caught:
        api.ask(api.make(Policy(retry={"retries": 1, "min_delay": 0})))
    assert (caught.value.status_code, len(api.service.seen)) == (500, 2)
    api.service.answers = [400]
    with pytest.raises(api.package.BadRequestError):
        api.ask(api.make())


def test_a_service_that_says_so_is_not_asked_again(api: Api) -> None:
    api.service.answers = [lambda handler: handler.answer(500, b"{}", x_should_retry="false")]
    with pytest.raises(api.package.InternalServerError):
        api.ask(api.make())
    assert len(api.service.seen) == 1


def test_the_errors_of_a_policy_are_causes_of_the_client_s(api: Api) -> None:
    registry = Registry({"llm": Policy(circuit_breaker=1)})
    api.service.answers = [500]
    with pytest.raises(api.package.InternalServerError):
        api.ask(api.make("llm", registry=registry))
    with pytest.raises(api.package.APIConnectionError) as open_circuit:
        api.ask(api.make("llm", registry=registry))
    assert isinstance(open_circuit.value.__cause__, CircuitOpenError)
    api.service.answers = ["hang"]
    with pytest.raises(api.package.APITimeoutError) as timed_out:
        api.ask(api.make(Policy(timeout={"total": 0.2})))
    assert isinstance(timed_out.value.__cause__, CallTimeoutError)
    assert len(api.service.seen) == 2


def test_limits_proxies_and_timeouts_are_those_of_the_client(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    plain = api.kind(api_key="k", base_url=api.service.url)
    made = api.make()
    assert made.max_retries == 0
    assert made.timeout == plain.timeout
    assert made._client._transport.transport._pool._max_connections == plain._client._transport._pool._max_connections
    assert [each.pattern for each in made._client._mounts] == [each.pattern for each in plain._client._mounts]
    assert api.make(timeout=3).timeout == 3


def test_a_transport_may_be_given(api: Api) -> None:
    kind = httpx2.AsyncHTTPTransport if api.is_async else httpx2.HTTPTransport
    transport = kind()
    assert api.make(transport=transport)._client._transport.transport is transport


def test_idempotency_keys_and_methods_are_options(api: Api) -> None:
    api.service.answers = [500, api.answer]
    api.ask(api.make(retry_methods=["GET"], idempotency_key=True))
    first, second = (each.headers["idempotency-key"] for each in api.service.seen)
    assert first == second


@pytest.mark.parametrize(
    ("make", "cure"),
    [
        (lambda: client(openai.OpenAI, max_retries=2), "set retry there"),
        (lambda: client(anthropic.Anthropic, http_client=httpx2.Client()), "pass transport="),
        (lambda: client("openai"), "expects the class of a client"),  # type: ignore[arg-type]
        (lambda: client(httpx2.Client), "expects the class of a client"),
        (lambda: client(openai.OpenAI, "llm", registry=Registry()), "no profile 'llm'"),
        (lambda: client(openai.OpenAI, Policy(cache={})), "add cache=False here"),
    ],
)
def test_what_does_not_fit_is_an_error_at_construction(make: Callable[[], Any], cure: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert cure in str(caught.value)
