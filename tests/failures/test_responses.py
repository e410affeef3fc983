"""Returned responses: which are failures, and which values are none."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import types
import urllib.request
import weakref
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock, Mock

import aiohttp
import django.conf
import django.http
import httpx
import pytest
import requests
import starlette.responses
import urllib3
import werkzeug
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from failures.misbehaving_server import http_server
from opero.failures import ORDINARY, Failure, is_response, response_failure


@pytest.fixture(scope="module")
def http() -> Iterator[str]:
    with http_server() as url:
        yield url


def by_requests(url: str) -> Any:
    with requests.Session() as session:
        return session.get(url)


def by_httpx(url: str) -> Any:
    with httpx.Client(trust_env=False) as client:
        return client.get(url)


def by_aiohttp(url: str) -> Any:
    async def get() -> Any:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            await response.read()
            return response

    return asyncio.run(get())


def by_urllib3(url: str) -> Any:
    with urllib3.PoolManager(retries=False) as pool:
        return pool.request("GET", url)


@pytest.mark.parametrize("client", [by_requests, by_httpx, by_aiohttp, by_urllib3])
def test_responses_of_clients(client: Any, http: str) -> None:
    for _ in range(2):  # at first the type is decided, then remembered
        assert response_failure(client(f"{http}/200")) is None
        assert response_failure(client(f"{http}/404")) == Failure("permanent", 404, "HTTP 404")
        assert response_failure(client(f"{http}/busy")) == Failure("throttled", 503, "HTTP 503 with Retry-After", 3.0)


def test_a_response_of_urllib_is_a_success(http: str) -> None:
    with urllib.request.urlopen(f"{http}/200") as response:
        assert response_failure(response) is None


def test_dictionaries_of_botocore() -> None:
    def response(status: object, **headers: str) -> dict[str, Any]:
        return {"ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers}}

    assert response_failure(response(200)) is None
    assert response_failure(response(503)) == Failure("transient", 503, "HTTP 503")
    assert response_failure(response(429, **{"retry-after": "2"})) == Failure("throttled", 429, "HTTP 429", 2.0)
    for other in ({}, {"status": 503}, {"ResponseMetadata": None}, response("503"), response(None)):
        assert response_failure(other) is None


def test_objects_of_the_same_shape() -> None:
    @dataclasses.dataclass(slots=True)
    class Reply:
        status: int
        headers: dict[str, str]

    class OwnResponse:
        def __init__(self, status_code: int) -> None:
            self.status_code = status_code

    for value in (Reply(500, {}), OwnResponse(500), types.SimpleNamespace(status_code=500, headers={})):
        assert response_failure(value) == Failure("transient", 500, "HTTP 500")


def test_a_namespace_is_a_response_by_what_it_has_and_not_by_what_another_one_had() -> None:
    for _ in range(2):
        assert response_failure(types.SimpleNamespace(total=1)) is None
        assert not is_response(types.SimpleNamespace(total=1))
        assert response_failure(types.SimpleNamespace(status_code=500, headers={})) is not None
        assert is_response(types.SimpleNamespace(status_code=500, headers={}))


def test_what_has_a_status_but_is_no_response() -> None:
    @dataclasses.dataclass
    class Order:
        status: int

    @dataclasses.dataclass
    class Visited:
        url: str
        status_code: int

    class ClosedError(Exception):
        status = 500
        headers: dict[str, str] = {}

    for value in (
        Order(500),
        Visited("http://localhost", 404),
        ClosedError(),
        ClosedError,
        Mock(),
        MagicMock(status_code=503),
    ):
        assert response_failure(value) is None


def test_answers_of_web_frameworks_say_nothing_about_a_service() -> None:
    if not django.conf.settings.configured:
        django.conf.settings.configure()
    for answer in (
        werkzeug.Response(status=503),
        starlette.responses.PlainTextResponse("", 503),
        django.http.HttpResponse(status=503),
        web.Response(status=503),
        web.HTTPServiceUnavailable(),
    ):
        assert response_failure(answer) is None


@given(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.lists(st.integers())
    | st.dictionaries(st.text() | st.just("ResponseMetadata"), st.none() | st.text() | st.integers())
)
def test_ordinary_results_are_no_failures(value: Any) -> None:
    assert response_failure(value) is None
    assert type(value) in ORDINARY or type(value) is dict


def test_reading_a_response_never_raises() -> None:
    class HostileResponse:
        headers: dict[str, str] = {}

        @property
        def status_code(self) -> int:
            raise RuntimeError("closed")

    class StrangeResponse:
        status_code = 503
        headers = Mock()

    assert response_failure(HostileResponse()) is None
    assert response_failure(StrangeResponse()) == Failure("transient", 503, "HTTP 503")


def test_classes_of_results_are_not_kept_alive() -> None:
    def classify(attributes: dict[str, Any]) -> weakref.ref[type[Any]]:
        cls = type("Short", (), attributes)
        response_failure(cls())
        return weakref.ref(cls)

    found = [classify({}), classify({"status_code": 503, "headers": {}})]
    gc.collect()
    assert [each() for each in found] == [None, None]


def test_what_is_remembered_of_a_class_does_not_outlive_it() -> None:
    # The identity of a class that is gone is soon that of another.
    for attributes in ({}, {"status_code": 503, "headers": {}}, {}):
        failures = [response_failure(type("Short", (), dict(attributes))()) for _ in range(300)]
        assert [each is not None for each in failures] == [bool(attributes)] * 300
        gc.collect()
