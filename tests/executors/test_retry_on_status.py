"""HTTP status and Retry-After of the exceptions of real libraries."""

from __future__ import annotations

import email.message
import email.utils
import urllib.error
from typing import Any

import aiohttp
import httpx
import pytest
import requests
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from opero import AllFailedError, Policy
from opero.failures import retry_after, status_of
from opero.testing import VirtualClock


def of_requests(status: int, headers: dict[str, str]) -> Exception:
    response = requests.Response()
    response.status_code = status
    response.headers.update(headers)
    return requests.HTTPError("failed", response=response)


def of_httpx(status: int, headers: dict[str, str]) -> Exception:
    request = httpx.Request("GET", "http://localhost")
    return httpx.HTTPStatusError("failed", request=request, response=httpx.Response(status, headers=headers))


def of_aiohttp(status: int, headers: dict[str, str]) -> Exception:
    info = aiohttp.RequestInfo(URL("http://localhost"), "GET", CIMultiDictProxy(CIMultiDict()), URL("http://localhost"))
    return aiohttp.ClientResponseError(info, (), status=status, headers=CIMultiDictProxy(CIMultiDict(headers)))


def of_urllib(status: int, headers: dict[str, str]) -> Exception:
    message = email.message.Message()
    for name, value in headers.items():
        message[name] = value
    return urllib.error.HTTPError("http://localhost", status, "failed", message, None)


class ClientError(Exception):
    """Like botocore's ClientError, whose response is a mapping."""

    def __init__(self, response: dict[str, Any]) -> None:
        self.response = response


def of_botocore(status: int, headers: dict[str, str]) -> Exception:
    lower = {name.lower(): value for name, value in headers.items()}
    return ClientError({"ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": lower}, "Error": {}})


LIBRARIES = [of_requests, of_httpx, of_aiohttp, of_urllib, of_botocore]


@pytest.mark.parametrize("library", LIBRARIES)
def test_status_and_retry_after_of_each_librarys_exceptions(library: Any) -> None:
    error = library(429, {"Retry-After": "7"})
    assert (status_of(error), retry_after(error, 0.0)) == (429, 7.0)
    assert retry_after(library(503, {}), 0.0) is None


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("status", "attempts"), [(429, 3), (503, 3), (599, 3), (404, 1), (401, 1)])
def test_retry_on_status_alone_decides_if_it_is_set(library: Any, status: int, attempts: int) -> None:
    def function() -> None:
        raise library(status, {})

    policy = Policy(retry={"retries": 2, "retry_on": KeyError, "retry_on_status": [429, "5xx"]})
    bound = policy.apply(function, clock=VirtualClock())
    with pytest.raises(Exception):  # noqa: PT011
        bound()
    assert bound.stats.attempts == attempts


def test_retry_on_decides_for_an_exception_without_a_status(script: Any) -> None:
    policy = Policy(retry={"retries": 2, "retry_on": ConnectionError, "retry_on_status": 429})
    for error, attempts in ((ConnectionError(), 3), (ValueError(), 1)):
        bound = policy.apply(script(error), clock=VirtualClock())
        with pytest.raises((AllFailedError, ValueError)):
            bound()
        assert bound.stats.attempts == attempts


@pytest.mark.parametrize(
    ("header", "options", "delay"),
    [
        ("7", {}, 7),
        ("0.5", {}, 0.5),  # the server knows better than the policy
        ("0", {}, 0),
        ("7", {"retry_after": False}, 1),
        ("7", {"max_delay": 7}, 7),
        ("date", {}, 12),
        ("Wed, 01 Jan 2020 00:00:00 GMT", {}, 1),
        ("soon", {}, 1),
        ("-3", {}, 1),
        ("inf", {}, 1),
        ("nan", {}, 1),
    ],
)
def test_the_next_attempt_waits_for_the_retry_after_time(script: Any, header: str, options: Any, delay: float) -> None:
    clock = VirtualClock()
    if header == "date":
        header = email.utils.formatdate(clock.time() + 12, usegmt=True)
    policy = Policy(retry={"jitter": False, "min_delay": 1, **options})
    assert policy.apply(script(of_requests(503, {"Retry-After": header}), 1), clock=clock)() == 1
    assert clock.slept == pytest.approx([delay] if delay else [], abs=1.0 if "GMT" in header else 1e-9)


@pytest.mark.parametrize(
    "error", [ValueError(), OSError(5, "x"), SystemExit, type("E", (Exception,), {"status": "bad"})()]
)
def test_exceptions_without_a_status(error: Any) -> None:
    assert status_of(error) is None
    assert retry_after(error, 0.0) is None
